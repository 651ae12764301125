"""The lines of a run's metrics: which steps have one, and when it is written."""

import time
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from scops_jax import optimizer
from scops_jax.progress import Bar
from scops_jax.runs.metrics import MetricsLog
from scops_jax.runs.step_metrics import StepMetrics


class StepLog:
  """Writes the lines of metrics.jsonl, each while an accelerator computes the step after it."""

  def __init__(self, config: ConfigDict, *, metrics: StepMetrics, log: MetricsLog, bar: Bar) -> None:
    """Takes the run's config, what checks its steps, and where their lines and progress go."""
    self._batch_size, self._metrics, self._log, self._bar = config.batch_size, metrics, log, bar
    self._schedule = optimizer.make_schedule(config.optimizer, num_steps=config.num_steps)
    self._unwritten = 0  # the step of a line that is due; 0: none
    self.restart_clock()

  def restart_clock(self) -> None:
    """Counts the images per second of the next line from now on."""
    self._began, self._images = time.perf_counter(), 0

  def add(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Takes the metrics of a step that has been started, after the line of the step before is written."""
    if self._unwritten:
      self._write(self._unwritten)
    self._metrics.add(step, metrics)
    self._images += self._batch_size
    self._bar.update()

  def settle(self, step: int, *, logs: bool, wait: bool) -> None:
    """Waits for the newest step, checks it and writes its line; or leaves that to the next one.

    Args:
      step: the newest.
      logs: whether it has a line.
      wait: whether to wait.

    Raises:
      UserError: as StepMetrics.check; so does `add`.
    """
    if logs and wait:
      self._write(step)
    elif logs:
      self._unwritten = step
    elif wait:
      self._metrics.check()

  def _write(self, step: int) -> None:
    self._unwritten = 0
    self._metrics.check()
    if (scalars := self._metrics.take()) is None:
      return
    speed = self._images / (time.perf_counter() - self._began)
    # The rate of the update just done, which is schedule(step - 1).
    rate = optimizer.rate_on_host(self._schedule, step - 1)
    self._log.write(step, {**scalars, "lr": rate, "images_per_second": speed})
    self._bar.show(loss=f"{scalars['loss']:.3g}", images_per_second=f"{speed:.1f}")
    self.restart_clock()
