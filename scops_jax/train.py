"""A run from its config to its results: train, log, evaluate, save. No maths here."""

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from scops_jax.config import check_values
from scops_jax.data.collection import Collection, ExampleSource, open_collection
from scops_jax.data.lookahead import ahead
from scops_jax.data.pipeline import evaluation_batches, image_order, train_batches
from scops_jax.data.workers import num_workers
from scops_jax.errors import UserError
from scops_jax.evaluation.evaluate import Dff, evaluate, fit_dff
from scops_jax.kernels.memory import compute_in_calling_thread, keep_freed_memory, map_large_blocks
from scops_jax.progress import Bar, phase, tracked
from scops_jax.report import charts, figures
from scops_jax.report.gallery import GALLERY_FILE
from scops_jax.report.page import write_report
from scops_jax.runs import hosts, setup
from scops_jax.runs.checkpoints import (
  Checkpoints,
  is_intact,
  latest_step,
  read_position,
  restore_state,
  restore_variables,
)
from scops_jax.runs.compiled import keep_programs
from scops_jax.runs.devices import announce_devices
from scops_jax.runs.feature_cache import CachedFeatures
from scops_jax.runs.inputs import Inputs, check_inputs, run_inputs
from scops_jax.runs.interruption import Interruption
from scops_jax.runs.metrics import MetricsLog, check_metrics, read_metrics
from scops_jax.runs.parallel import CompiledSteps, compile_steps
from scops_jax.runs.profiler import Profiler
from scops_jax.runs.sizes import choose_sizes
from scops_jax.runs.step_log import StepLog
from scops_jax.runs.step_metrics import StepMetrics
from scops_jax.runs.workdir import load_config, open_workdir, owned, write_text, writing

_DFF_FILE = "dff.npz"  # in a run's directory


class _Run(NamedTuple):
  """What the loop, the baseline and every evaluation share."""

  config: ConfigDict
  workdir: pathlib.Path
  collection: Collection
  steps: CompiledSteps


def train_and_evaluate(
  config: ConfigDict, workdir: str | pathlib.Path, *, profile: bool = False
) -> dict[str, Any]:
  """Trains to config.num_steps, saving and evaluating on the way; resumes or reports a run in `workdir`.

  The outcome of a step depends on the config and the step's number alone, on any number of hosts: a run that
  is interrupted and started again ends with the same numbers. All hosts call this; only the first writes.

  Args:
    config: complete and locked, see config.default_config.
    workdir: the run's directory.
    profile: whether to record a few steps in `workdir`/profile (runs/profiler.py).

  Returns:
    The entries of evaluation.json.

  Raises:
    UserError: the config, the data or the directory can't serve; a new directory has not been made then. Or a
      step is not finite, or the disk is full; the last checkpoint is intact then.
    SystemExit: SIGTERM or SIGINT has come; the step in progress is saved (runs/interruption.py).
  """
  check_values(config)
  keep_programs(config.compilation_cache_dir)
  with contextlib.ExitStack() as stack:
    hosts.first_host_first(stack.enter_context, owned(workdir))
    if _is_finished(config, workdir):
      return evaluate_run(config, workdir)
    return _resume_or_begin(config, workdir, profile=profile)


def _resume_or_begin(config: ConfigDict, workdir: str | pathlib.Path, *, profile: bool) -> dict[str, Any]:
  """Opens and builds everything, then trains as train_and_evaluate does."""
  compute_in_calling_thread()
  announce_devices(config)
  if jax.default_backend() == "cpu":
    map_large_blocks()
  with phase("opening the images"):
    collection = hosts.first_host_first(open_collection, config)
  config = choose_sizes(config, collection, workdir=workdir)

  networks = setup.create_networks(config)
  transformation = setup.create_optimizer(networks, config)
  steps = compile_steps(networks, transformation, config)
  resumes = bool(hosts.broadcast_from_first(latest_step(workdir) > 0))
  with phase("loading the networks"):
    reference_variables = setup.load_reference(networks, config)
    inputs = run_inputs(collection, reference_variables, config)
    segmenter_variables = None if resumes else setup.init_segmenter(networks, config)
  hosts.first_host_first(setup.write_saliency_maps, collection, networks, reference_variables, config)
  reference_variables = hosts.first_host_first(
    setup.fit_feature_code, collection, networks, reference_variables, config
  )
  features = hosts.first_host_first(setup.open_features, collection, networks, reference_variables, config)
  reference_variables = steps.replicate(reference_variables)

  # From here on no mistake of the user stops the start, so a failed one leaves no new directory behind.
  workdir = hosts.first_host_first(open_workdir, workdir, config)
  run = _Run(config, workdir, collection, steps)
  batches = train_batches(
    collection.train,
    batch_size=config.batch_size // jax.process_count(),
    image_size=config.image_size,
    seed=config.seed,
    num_threads=num_workers(config.data),
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    kept=features,
  )
  start = 0
  if resumes:
    template = setup.abstract_state(networks, transformation, config, sharding=steps.state_sharding)
    with phase("restoring the newest checkpoint"):
      state, position, start = restore_state(workdir, template)
    inputs = check_inputs(position, inputs, workdir)
    check_metrics(workdir, start, position.get("metrics"))
    batches.set_state(position)
    dff = _load_or_fit_dff(run, lambda: (reference_variables, features))
  else:
    dff = _fit_dff(run, reference_variables, features)
    state = setup.initial_state(
      networks, transformation, config, segmenter_variables=segmenter_variables, part_basis=dff.part_basis
    )
  # No other name may hold these arrays: the first step frees them.
  del segmenter_variables
  state = steps.replicate(state)
  with contextlib.closing(Checkpoints(workdir)) as checkpoints:
    profiler = Profiler(run.workdir / "profile" if profile and hosts.is_first() else None, start=start)
    results = _train(
      run,
      state,
      batches,
      reference_variables,
      inputs=inputs,
      dff=dff,
      start=start,
      checkpoints=checkpoints,
      profiler=profiler,
    )
  _print_results(results, workdir)
  return results


def evaluate_run(config: ConfigDict, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Evaluates the newest intact checkpoint of `workdir` and writes evaluation.json.

  Args:
    config: of the run.
    workdir: the run's directory.

  Returns:
    The entries of evaluation.json.

  Raises:
    UserError: the config or the data can't serve, or `workdir` holds no such run or no intact checkpoint.
  """
  check_values(config)
  keep_programs(config.compilation_cache_dir)
  announce_devices(config)
  with phase("opening the images"):
    collection = hosts.first_host_first(open_collection, config)
  config = choose_sizes(config, collection, workdir=workdir)
  workdir = hosts.first_host_first(functools.partial(open_workdir, train=False), workdir, config)
  networks = setup.create_networks(config)
  steps = compile_steps(networks, setup.create_optimizer(networks, config), config)
  with phase("restoring the newest checkpoint"):
    variables, step = restore_variables(workdir, sharding=steps.state_sharding)
  check_metrics(workdir, step, read_position(workdir, step).get("metrics"))
  run = _Run(config, workdir, collection, steps)

  def factorized() -> tuple[Any, CachedFeatures | None]:
    reference = setup.load_reference(networks, config)
    features = hosts.first_host_first(setup.open_features, collection, networks, reference, config)
    return steps.replicate(reference), features

  results = _evaluate(
    run,
    (variables["params"]["segmenter"], variables["batch_stats"]),
    dff=_load_or_fit_dff(run, factorized),
    step=step,
  )
  _print_results(results, workdir)
  return results


def _is_finished(config: ConfigDict, workdir: str | pathlib.Path) -> bool:
  """Returns whether the run in `workdir` has done its last step, and its checkpoint is intact."""
  step = latest_step(workdir)
  last = step > 0 and step == (config.num_steps or load_config(workdir).num_steps)
  step = int(hosts.broadcast_from_first(step if last else 0))
  return step > 0 and is_intact(workdir, step)


def _batches(run: _Run, source: ExampleSource, **options: Any) -> Iterator[dict[str, Any]]:
  """Yields all hosts' batches of a split on every host; each host reads its part of them."""
  local_batches = evaluation_batches(
    source,
    batch_size=run.config.eval_batch_size // jax.process_count(),
    image_size=run.config.image_size,
    num_threads=num_workers(run.config.data),
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    **options,
  )
  return map(hosts.all_gather, local_batches)


def _tracked(
  run: _Run, batches: Iterator[dict[str, Any]], source: ExampleSource, what: str
) -> Iterator[dict[str, Any]]:
  """Yields all hosts' batches of a split under a bar."""
  return tracked(batches, len(source), what, size=run.config.eval_batch_size, first="compiling")


def _load_or_fit_dff(run: _Run, inputs: Callable[[], tuple[Any, CachedFeatures | None]]) -> Dff:
  """Returns the run's DFF baseline; if it is damaged, fits it again to what `inputs` returns."""
  dff = None
  try:
    dff = Dff.load(run.workdir / _DFF_FILE)
  except UserError as error:
    print(f"{error}: the baseline is fitted again", file=sys.stderr)
  missing = hosts.any_host(dff is None)
  return _fit_dff(run, *inputs()) if dff is None or missing else dff


def _fit_dff(run: _Run, reference_variables: Any, cached: CachedFeatures | None) -> Dff:
  """Fits the DFF baseline and keeps it in the run's directory; `cached` are the training images' features."""
  collection = run.collection

  def features(batch: Mapping[str, Any]) -> np.ndarray:
    used = {name: batch[name] for name in ("image", "saliency", "features") if name in batch}
    return run.steps.features(reference_variables, used)

  def batches(source: ExampleSource, what: str = "") -> Iterator[dict[str, Any]]:
    kept = cached if source is collection.train else None
    images = _batches(run, source, fields=("image", "saliency"), kept=kept)
    return _tracked(run, images, source, f"baseline: {what} images") if what else images

  with phase("factorising the reference's features (DFF, the baseline)"):
    dff = fit_dff(
      features,
      train=batches(collection.train),
      regression=batches(collection.regression, "regression"),
      test=batches(collection.test, "test"),
      config=run.config,
    )
  # The hosts may round differently, but must start from one part basis.
  dff = hosts.broadcast_from_first(dff)
  if hosts.is_first():
    with writing(run.workdir / _DFF_FILE):
      dff.save(run.workdir / _DFF_FILE)
  return dff


def _prefetch(
  batches: Any, shard_batch: Callable[[Any], Any]
) -> Generator[tuple[Any, dict[str, Any]], None, None]:
  """Yields (batch on the devices, pipeline position after it), and prepares the next two meanwhile."""
  with ThreadPoolExecutor(1) as thread:
    yield from ahead(
      thread, lambda _: (shard_batch(next(batches)), batches.get_state()), itertools.count(), depth=2
    )


def _train(
  run: _Run,
  state: Any,
  batches: Any,
  reference_variables: Any,
  *,
  inputs: Inputs,
  dff: Dff,
  start: int,
  checkpoints: Checkpoints,
  profiler: Profiler,
) -> dict[str, Any]:
  """Runs steps start + 1 … num_steps and returns the last evaluation; the state is donated."""
  config, steps = run.config, run.steps
  log = MetricsLog(run.workdir, start_step=start, config=config)
  bar = Bar(config.num_steps, "train", unit="step", done=start, first="compiling the step")
  fetched = StepMetrics(config, image_names=functools.partial(_image_names, run))
  lines = StepLog(config, metrics=fetched, log=log, bar=bar)
  stream = _prefetch(batches, steps.shard_batch)
  with (
    Interruption(start) as interruption,
    contextlib.closing(log),
    contextlib.closing(bar),
    contextlib.closing(stream),
    contextlib.closing(profiler),
  ):

    def evaluate_now(step: int) -> dict[str, Any]:
      variables = (state.params["segmenter"], state.batch_stats)
      with interruption.at_once():  # what it stops is done by the next start
        return _evaluate(run, variables, dff=dff, step=step, log=log)

    if start and start % config.eval_every == 0 and _evaluated_step(run.workdir) < start:
      evaluate_now(start)
    lines.restart_clock()
    for step in range(start + 1, config.num_steps + 1):
      batch, position = next(stream)
      state, metrics = profiler.step(step, steps.train, state, batch, reference_variables)
      if step == start + 1 and jax.default_backend() == "cpu":  # compiled now
        keep_freed_memory()
      lines.add(step, metrics)
      last = step == config.num_steps
      logs = step % config.log_every == 0 or last
      evaluates = step % config.eval_every == 0 or last
      stops = interruption.stops_after(step)
      saves = step % config.checkpoint_every == 0 or evaluates or stops
      # On a CPU the step has been waited for; a checkpoint waits for it.
      lines.settle(step, logs=logs, wait=saves or jax.default_backend() == "cpu")
      # Before the evaluation, which may fail.
      if saves:
        log.publish()  # before the checkpoint: whoever goes on from it keeps the lines up to it
        kept = {**position, **inputs._asdict(), "metrics": log.digest()}
        checkpoints.save(step, state, position=kept)
      if stops:
        checkpoints.wait()
        bar.close()
        print(f"stopped after step {step}, which is saved; the same command goes on", file=sys.stderr)
        interruption.exit()
      if evaluates:
        results = evaluate_now(step)
        lines.restart_clock()
        bar.resume()
  return results


def _image_names(run: _Run, step: int) -> list[str]:
  """Returns the names of the images of a step, of all hosts."""
  source, size = run.collection.train, run.config.batch_size
  order = image_order(len(source), run.config.seed)
  return [source.read(order[i], ("name",))["name"] for i in range((step - 1) * size, step * size)]


def _evaluated_step(workdir: pathlib.Path) -> int:
  """Returns the step of evaluation.json; 0 if there is none, or none that can be read."""
  path = workdir / "evaluation.json"
  try:
    return int(json.loads(path.read_bytes())["step"])
  except FileNotFoundError:
    return 0
  except (KeyError, OSError, TypeError, ValueError) as error:
    print(f"{path} is damaged ({error}): the next evaluation replaces it", file=sys.stderr)
    return 0


def _evaluate(
  run: _Run, variables: tuple[Any, Any], *, dff: Dff, step: int, log: MetricsLog | None = None
) -> dict[str, Any]:
  """Returns the entries of evaluation.json on every host; the first writes them, the figures and the report.

  `variables` are the segmenter's params and batch_stats, replicated.
  """
  config, steps, refine = run.config, run.steps, run.config.crf.num_iterations > 0

  def batches(source: ExampleSource, split: str) -> Iterator[dict[str, Any]]:
    return _tracked(run, _batches(run, source), source, f"evaluating {split} images")

  def predictor(function: Callable[..., Any]) -> Callable[[Mapping[str, np.ndarray]], Any]:
    return lambda batch: function(variables, batch["image"])

  measures, figure, gallery = evaluate(
    predictor(steps.predict),
    regression=batches(run.collection.regression, "regression"),
    test=batches(run.collection.test, "test"),
    predict_refined=predictor(steps.predict_refined) if refine else None,
    # A CPU has no maps to send, and one program less to compile.
    predict_centers=None if jax.default_backend() == "cpu" else predictor(steps.centers),
    dff=dff,
    num_classes=len(run.collection.part_names),
    config=config,
  )
  results = {**measures, "step": step}
  if not hosts.is_first():
    return results
  gallery = dataclasses.replace(
    gallery,
    names=tuple(run.collection.test.read(i, ("name",))["name"] for i in gallery.indices),
    landmark_names=run.collection.landmark_names,
    landmark_normalizer=config.data.landmark_normalizer,
  )
  parts, losses, report = _result_files(run.workdir, step)
  records = [record for record in read_metrics(run.workdir) if record["step"] <= step]
  with writing(run.workdir), phase("writing figures and the report"):
    figures.part_figure(path=parts, **figure)
    if records:
      charts.loss_curves(records, losses, weights=config.loss.to_dict())
    write_report(report, results=results, records=records, config=config, gallery=gallery)
    gallery.save(report.with_name(GALLERY_FILE))
    write_text(run.workdir / "evaluation.json", json.dumps(results, indent=2) + "\n")
  if log is not None:
    log.write_scalars(step, measures, prefix="evaluation")
    with Image.open(io.BytesIO(parts.read_bytes())) as picture:
      log.write_image(step, "parts", np.asarray(picture.convert("RGB")))
    log.publish()
  return results


def _result_files(workdir: pathlib.Path, step: int) -> tuple[pathlib.Path, pathlib.Path, pathlib.Path]:
  """Returns the paths of the test images' figure, the loss curves and the report."""
  figures = workdir / "figures"
  return figures / f"parts_{step:06d}.png", figures / "losses.png", workdir / "report" / "index.html"


def _print_results(results: dict[str, Any], workdir: pathlib.Path) -> None:
  """Prints the measures and where the figures and the report are, on the first host."""
  if not hosts.is_first():
    return
  fractions = " ".join(f"{share:.3f}" for share in results["part_area_fractions"])
  rows = [(name, f"{value:.4f}") for name, value in results.items() if isinstance(value, float)]
  rows += [(name, str(results[name])) for name in ("num_train", "num_test", "step")]
  rows.append(("part_area_fractions", fractions))
  width = max(len(name) for name, _ in rows)
  print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))
  print(*(path for path in _result_files(workdir, results["step"]) if path.exists()), sep="\n")
