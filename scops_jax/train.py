"""A run from its config to its results: train, log, evaluate, save. No maths here."""

import functools
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from scops_jax import optimizer
from scops_jax.config import check_values
from scops_jax.data.collection import Collection, ExampleSource, open_collection
from scops_jax.data.lookahead import ahead
from scops_jax.data.pipeline import evaluation_batches, train_batches
from scops_jax.errors import UserError
from scops_jax.evaluation.evaluate import Dff, evaluate, fit_dff
from scops_jax.kernels.memory import compute_in_calling_thread, keep_freed_memory, map_large_blocks
from scops_jax.report import figures, write_report
from scops_jax.runs import hosts, setup
from scops_jax.runs.checkpoints import Checkpoints, latest_step, restore_variables
from scops_jax.runs.feature_cache import CachedFeatures
from scops_jax.runs.metrics import MetricsLog, read_metrics
from scops_jax.runs.parallel import CompiledSteps, compile_steps
from scops_jax.runs.sizes import choose_sizes
from scops_jax.runs.workdir import open_workdir, write_text

_DFF_FILE = "dff.npz"  # in a run's directory


class _Run(NamedTuple):
  """What the loop and every evaluation share."""

  config: ConfigDict
  workdir: pathlib.Path
  collection: Collection
  steps: CompiledSteps
  dff: Dff


def train_and_evaluate(config: ConfigDict, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Trains to config.num_steps, evaluating and saving on the way, and resumes a run found in `workdir`.

  The outcome of a step depends on the config and the step's number alone, on any number of hosts: a run that
  is interrupted and started again ends with the same numbers. All hosts call this; only the first writes.

  Args:
    config: complete and locked, see config.default_config.
    workdir: the run's directory.

  Returns:
    The entries of evaluation.json.

  Raises:
    UserError: the config, the data or the directory can't serve; a new directory has not been made then.
  """
  compute_in_calling_thread()
  map_large_blocks()
  check_values(config)
  collection = hosts.first_host_first(open_collection, config)
  config = choose_sizes(config, collection, workdir=workdir)

  networks = setup.create_networks(config)
  transformation = setup.create_optimizer(networks, config)
  steps = compile_steps(networks, transformation, config)
  reference_variables = setup.load_reference(networks, config)
  start = int(hosts.broadcast_from_first(latest_step(workdir)))
  segmenter_variables = None if start else setup.load_segmenter(networks, config)

  hosts.first_host_first(setup.write_saliency_maps, collection, networks, reference_variables, config)
  features = hosts.first_host_first(setup.open_features, collection, networks, reference_variables, config)
  # All that a user's mistake can stop is done, so a failed start leaves no new directory behind.
  workdir = hosts.first_host_first(open_workdir, workdir, config)
  reference_variables = steps.replicate(reference_variables)
  dff = _dff(config, workdir, collection, steps, reference_variables, features)

  checkpoints = Checkpoints(workdir)
  batches = train_batches(
    collection.train,
    batch_size=config.batch_size // jax.process_count(),
    image_size=config.image_size,
    seed=config.seed,
    num_threads=config.data.num_threads,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    kept=features,
  )
  if start:
    template = setup.abstract_state(networks, transformation, config, sharding=steps.state_sharding)
    state, position = checkpoints.restore(start, template)
    batches.set_state(position)
  else:
    state = setup.initial_state(
      networks, transformation, config, segmenter_variables=segmenter_variables, part_basis=dff.part_basis
    )
  # The loop donates the state: another reference to these arrays would keep them in memory.
  del segmenter_variables
  state = steps.replicate(state)

  run = _Run(config, workdir, collection, steps, dff)
  log = MetricsLog(workdir, start_step=start) if hosts.is_first() else None
  state, results = _train(
    run, state, batches, reference_variables, start=start, log=log, checkpoints=checkpoints
  )
  checkpoints.close()
  if results is None:  # the run was at its end already
    if hosts.broadcast_from_first(_is_evaluated(workdir, config.num_steps)):
      results = _read_results(workdir)
    else:
      results = _evaluate(run, _segmenter_variables(steps, state), step=config.num_steps, log=log)
  if log is not None:
    log.close()
    losses = workdir / "figures" / "losses.png"
    figures.loss_curves(read_metrics(workdir), losses, weights=config.loss.to_dict())
    _print_results(results, [_figure_path(workdir, config.num_steps), losses, _report_path(workdir)])
  return results


def evaluate_run(config: ConfigDict, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Evaluates the newest checkpoint of `workdir` and writes evaluation.json.

  Args:
    config: of the run.
    workdir: the run's directory.

  Returns:
    The entries of evaluation.json.

  Raises:
    UserError: as train_and_evaluate, or `workdir` holds no checkpoint.
  """
  check_values(config)
  collection = hosts.first_host_first(open_collection, config)
  config = choose_sizes(config, collection, workdir=workdir)
  workdir = open_workdir(workdir, config, create=False)
  networks = setup.create_networks(config)
  steps = compile_steps(networks, setup.create_optimizer(networks, config), config)
  variables, step = restore_variables(workdir, sharding=steps.state_sharding)

  reference_variables = setup.load_reference(networks, config)
  hosts.first_host_first(setup.write_saliency_maps, collection, networks, reference_variables, config)
  features = None
  if not hosts.broadcast_from_first(
    (workdir / _DFF_FILE).exists()
  ):  # an evaluation has no other use for them
    features = hosts.first_host_first(setup.open_features, collection, networks, reference_variables, config)
  dff = _dff(config, workdir, collection, steps, steps.replicate(reference_variables), features)

  run = _Run(config, workdir, collection, steps, dff)
  results = _evaluate(run, (variables["params"]["segmenter"], variables["batch_stats"]), step=step, log=None)
  if hosts.is_first():
    _print_results(results, [_figure_path(workdir, step), _report_path(workdir)])
  return results


def _batches(config: ConfigDict, source: ExampleSource, **options: Any) -> Iterator[dict[str, Any]]:
  """Yields all hosts' batches of a split on every host; each host reads its part of them."""
  local_batches = evaluation_batches(
    source,
    batch_size=config.eval_batch_size // jax.process_count(),
    image_size=config.image_size,
    num_threads=config.data.num_threads,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    **options,
  )
  return map(hosts.all_gather, local_batches)


def _dff(
  config: ConfigDict,
  workdir: pathlib.Path,
  collection: Collection,
  steps: CompiledSteps,
  reference_variables: Any,
  cached: CachedFeatures | None,
) -> Dff:
  """Returns the run's DFF baseline, fitted once and kept in its directory."""
  path = workdir / _DFF_FILE
  if hosts.broadcast_from_first(path.exists()):
    return Dff.load(path)
  reference_variables = steps.unreplicate(reference_variables)

  def features(batch: Mapping[str, Any]) -> np.ndarray:
    used = {name: batch[name] for name in ("image", "saliency", "features") if name in batch}
    return steps.features(reference_variables, used)

  def batches(source: ExampleSource) -> Iterator[dict[str, Any]]:
    kept = cached if source is collection.train else None
    return _batches(config, source, fields=("image", "saliency"), kept=kept)

  dff = fit_dff(
    features,
    train=batches(collection.train),
    regression=batches(collection.regression),
    test=batches(collection.test),
    config=config,
  )
  # The hosts may round differently, but must start from one part basis.
  dff = hosts.broadcast_from_first(dff)
  if hosts.is_first():
    dff.save(path)
  return dff


def _prefetch(batches: Any, shard_batch: Callable[[Any], Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
  """Yields (batch on the devices, pipeline position after it), and prepares the next during a step."""
  with ThreadPoolExecutor(1) as thread:
    yield from ahead(
      thread, lambda _: (shard_batch(next(batches)), batches.get_state()), itertools.count(), depth=1
    )


def _segmenter_variables(steps: CompiledSteps, state: Any) -> tuple[Any, Any]:
  """Returns (params, batch_stats) of the segmenter as an evaluation takes them."""
  return steps.unreplicate((state.params["segmenter"], state.batch_stats))


def _train(
  run: _Run,
  state: Any,
  batches: Any,
  reference_variables: Any,
  *,
  start: int,
  log: MetricsLog | None,
  checkpoints: Checkpoints,
) -> tuple[Any, dict[str, Any] | None]:
  """Runs steps start + 1 … num_steps; returns the state and the last evaluation, None without a step."""
  config, steps = run.config, run.steps
  schedule = optimizer.make_schedule(config)
  progress = {"total": config.num_steps, "initial": start, "unit": "step", "desc": "train"}
  bar = tqdm(**progress, dynamic_ncols=True, disable=not hosts.is_first())
  results = None
  began, images = time.perf_counter(), 0
  stream = _prefetch(batches, steps.shard_batch)
  for step in range(start + 1, config.num_steps + 1):
    batch, position = next(stream)
    state, metrics = steps.train(state, batch, reference_variables)
    if step == start + 1:  # compiled now
      keep_freed_memory()
    images += config.batch_size
    bar.update()
    last = step == config.num_steps
    if step % config.log_every == 0 or last:
      scalars = {name: float(value) for name, value in metrics.items()}
      speed = images / (time.perf_counter() - began)
      if log is not None:
        # The rate of the update just done, which is schedule(step - 1).
        log.write(step, {**scalars, "lr": float(schedule(step - 1)), "images_per_second": speed})
      bar.set_postfix(loss=f"{scalars['loss']:.3g}", images_per_second=f"{speed:.1f}")
      _check_finite(scalars["loss"], step)
      began, images = time.perf_counter(), 0
    if step % config.eval_every == 0 or last:
      results = _evaluate(run, _segmenter_variables(steps, state), step=step, log=log)
      began, images = time.perf_counter(), 0
    # After the evaluation: a run that resumes from here does not repeat it.
    if step % config.checkpoint_every == 0 or last:
      checkpoints.save(step, steps.unreplicate(state), position=position)
  bar.close()
  return state, results


def _check_finite(loss: float, step: int) -> None:
  if not np.isfinite(loss):
    raise UserError(
      f"the loss is {loss} at step {step}: lower optimizer.learning_rate or the largest loss weight; "
      "the last checkpoint is from before"
    )


def _figure_path(workdir: pathlib.Path, step: int) -> pathlib.Path:
  return workdir / "figures" / f"parts_{step:06d}.png"


def _report_path(workdir: pathlib.Path) -> pathlib.Path:
  return workdir / "report" / "index.html"


def _evaluate(run: _Run, variables: tuple[Any, Any], *, step: int, log: MetricsLog | None) -> dict[str, Any]:
  """Returns the entries of evaluation.json on every host; the first writes them, a figure and the report."""
  config, collection, steps = run.config, run.collection, run.steps
  refine = config.crf.num_iterations > 0
  measures, figure, gallery = evaluate(
    functools.partial(steps.predict, variables),
    regression=_batches(config, collection.regression),
    test=_batches(config, collection.test),
    predict_refined=functools.partial(steps.predict_refined, variables) if refine else None,
    dff=run.dff,
    num_classes=len(collection.part_names),
    config=config,
  )
  results = {**measures, "step": step}
  if not hosts.is_first():
    return results
  path = _figure_path(run.workdir, step)
  figures.part_figure(path=path, **figure)
  records = [record for record in read_metrics(run.workdir) if record["step"] <= step]
  write_report(_report_path(run.workdir), results=results, records=records, config=config, gallery=gallery)
  write_text(run.workdir / "evaluation.json", json.dumps(results, indent=2) + "\n")
  if log is not None:
    log.write_scalars(step, measures, prefix="evaluation")
    with Image.open(path) as picture:
      log.write_image(step, "parts", np.asarray(picture.convert("RGB")))
  return results


def _read_results(workdir: pathlib.Path) -> dict[str, Any]:
  return json.loads((workdir / "evaluation.json").read_text(encoding="utf-8"))


def _is_evaluated(workdir: pathlib.Path, step: int) -> bool:
  return (workdir / "evaluation.json").exists() and _read_results(workdir)["step"] == step


def _print_results(results: dict[str, Any], files: Iterable[pathlib.Path]) -> None:
  fractions = " ".join(f"{share:.3f}" for share in results["part_area_fractions"])
  rows = [(name, f"{value:.4f}") for name, value in results.items() if isinstance(value, float)]
  rows += [(name, str(results[name])) for name in ("num_train", "num_test", "step")]
  rows.append(("part_area_fractions", fractions))
  width = max(len(name) for name, _ in rows)
  print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))
  for path in itertools.filterfalse(lambda path: not path.exists(), files):
    print(path)
