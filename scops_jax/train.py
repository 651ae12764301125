"""A run from its config to its results: train, log, evaluate, save. No maths here."""

import itertools
import json
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from scops_jax import optimizer
from scops_jax.data.lookahead import ahead
from scops_jax.data.pipeline import evaluation_batches, train_batches
from scops_jax.errors import UserError
from scops_jax.evaluation.evaluate import Dff, evaluate, fit_dff
from scops_jax.kernels.memory import compute_in_calling_thread, keep_freed_memory, map_large_blocks
from scops_jax.report import charts, figures
from scops_jax.report.page import write_report
from scops_jax.runs import hosts, setup
from scops_jax.runs.checkpoints import Checkpoints
from scops_jax.runs.setup import Run
from scops_jax.runs.workdir import MetricsLog, read_metrics, write_text


def train_and_evaluate(config: ConfigDict, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Trains to config.num_steps, evaluating and saving on the way, and resumes a run found in `workdir`.

  A step's outcome depends on the config and the step's number alone, so an interrupted run that is started
  again ends with the numbers of one left alone, on however many hosts. All hosts call this, the first writes.

  Args:
    config: complete and locked, see config.default_config.
    workdir: the run's directory.

  Returns:
    The entries of evaluation.json.

  Raises:
    UserError: the config, the data or the directory can't serve; nothing has been written then.
  """
  compute_in_calling_thread()
  map_large_blocks()
  run = setup.set_up(config, workdir, create=True)
  config = run.config
  checkpoints = Checkpoints(run.workdir)
  batches = train_batches(
    run.collection.train,
    batch_size=config.batch_size // jax.process_count(),
    image_size=config.image_size,
    seed=config.seed,
    num_threads=config.data.num_threads,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    kept=run.features,
  )
  dff = _dff(run)
  start = int(hosts.first_says(checkpoints.latest_step() or 0))
  if start:
    state, position = checkpoints.restore(start, setup.abstract_state(run))
    batches.set_state(position)
  else:
    state = setup.initial_state(run, part_basis=dff.part_basis)
  log = MetricsLog(run.workdir, start_step=start) if hosts.is_first() else None
  state = run.steps.place(state)  # under the same name: the arrays placed are freed with the first step
  state, results = _train(run, state, batches, start=start, dff=dff, log=log, checkpoints=checkpoints)
  checkpoints.close()
  if results is None:  # the run was at its end already
    if hosts.first_says(_is_evaluated(run.workdir, config.num_steps)):
      results = _read_results(run.workdir)
    else:
      results = _evaluate(run, state, dff=dff, step=config.num_steps, log=log)
  if log is not None:
    losses = run.workdir / "figures" / "losses.png"
    charts.loss_curves(log.records(), losses, weights=config.loss.to_dict())
    log.close()
    _print_results(results, [_figure_path(run.workdir, config.num_steps), losses, _report_path(run.workdir)])
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
  run = setup.set_up(config, workdir, create=False)
  checkpoints = Checkpoints(run.workdir)
  step = setup.newest_step(checkpoints, workdir)
  state, _ = checkpoints.restore(step, setup.abstract_state(run))
  checkpoints.close()
  results = _evaluate(run, run.steps.place(state), dff=_dff(run), step=step, log=None)
  if hosts.is_first():
    _print_results(results, [_figure_path(run.workdir, step), _report_path(run.workdir)])
  return results


def _batches(run: Run, split: str, **options: Any) -> Iterator[dict[str, Any]]:
  """All hosts' batches of a split, "train", "regression" or "test", of which each host reads its piece."""
  config = run.config
  limit = config.eval_num_train if split == "regression" else 0
  pieces = evaluation_batches(
    getattr(run.collection, split),
    batch_size=config.eval_batch_size // jax.process_count(),
    image_size=config.image_size,
    limit=limit,
    num_threads=config.data.num_threads,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    **options,
  )
  return map(run.steps.gather, pieces)


def _dff(run: Run) -> Dff:
  """Returns the run's DFF baseline, fitted once a run and kept in its directory."""
  path = run.workdir / setup.DFF_FILE
  if hosts.first_says(path.exists()):
    return Dff.load(path)

  def features(batch: Mapping[str, Any]) -> np.ndarray:
    seen = {name: batch[name] for name in ("image", "saliency", "features") if name in batch}
    return run.steps.features(run.reference_variables, seen)

  def batches(split: str) -> Iterator[dict[str, Any]]:
    cached = run.features if getattr(run.collection, split) is run.collection.train else None
    return _batches(run, split, fields=("image", "saliency"), kept=cached)

  # The part basis may become the hosts' common start: not each its own, should they round differently.
  dff = hosts.first_says(fit_dff(features, batches, run.config))
  if hosts.is_first():
    dff.save(path)
  return dff


def _ahead(batches: Any, put: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
  """Yields (batch on the devices, pipeline position after it); the next is fetched while a step computes."""

  def fetch() -> tuple[Any, dict[str, Any]]:
    batch = put(next(batches))
    return batch, batches.get_state()

  if jax.default_backend() != "cpu":
    upcoming = fetch()
    while True:
      yield upcoming
      upcoming = fetch()
  with ThreadPoolExecutor(1) as thread:  # the caller waits for a step on a CPU
    yield from ahead(thread, lambda _: fetch(), itertools.count(), depth=1)


def _train(
  run: Run,
  state: Any,
  batches: Any,
  *,
  start: int,
  dff: Dff,
  log: MetricsLog | None,
  checkpoints: Checkpoints,
) -> tuple[Any, dict[str, Any] | None]:
  """Runs steps start + 1 … num_steps; returns the placed state and, if there was a step, the results."""
  config = run.config
  schedule = optimizer.make_schedule(config)
  progress = {"total": config.num_steps, "initial": start, "unit": "step", "desc": "train"}
  bar = tqdm(**progress, dynamic_ncols=True, disable=not hosts.is_first())
  results = None
  began, images = time.perf_counter(), 0
  stream = _ahead(batches, run.steps.put_batch)
  for step in range(start + 1, config.num_steps + 1):
    batch, position = next(stream)
    state, metrics = run.steps.train(state, batch, run.reference_variables)
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
      results = _evaluate(run, state, dff=dff, step=step, log=log)
      began, images = time.perf_counter(), 0
    # After the evaluation, so that a checkpoint says that its evaluation is done.
    if step % config.checkpoint_every == 0 or last:
      checkpoints.save(step, run.steps.fetch(state), position=position)
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


def _evaluate(run: Run, state: Any, *, dff: Dff, step: int, log: MetricsLog | None) -> dict[str, Any]:
  """Returns the entries of evaluation.json on every host; the first writes them, a figure and the report."""
  steps, refine = run.steps, run.config.crf.num_iterations > 0
  measures, figure, gallery = evaluate(
    lambda images: steps.predict(state, images),
    lambda split: _batches(run, split),
    predict_refined=(lambda images: steps.predict_refined(state, images)) if refine else None,
    dff=dff,
    num_classes=len(run.collection.part_names),
    config=run.config,
  )
  results = {**measures, "step": step}
  if not hosts.is_first():
    return results
  path = _figure_path(run.workdir, step)
  figures.part_figure(path=path, **figure)
  records = [record for record in read_metrics(run.workdir) if record["step"] <= step]
  write_report(
    _report_path(run.workdir), results=results, records=records, config=run.config, gallery=gallery
  )
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
