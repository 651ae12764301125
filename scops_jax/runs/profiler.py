"""A trace of a few training steps, for xprof and TensorBoard's profile plugin."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax

from scops_jax.progress import say
from scops_jax.storage.mirror import local_path, push

# The first steps of a process compile and warm up.
_SKIPPED, _STEPS = 5, 5


class Profiler:
  """Numbers the steps of a run for tools that trace them, and itself traces steps 6 to 10 after the start."""

  def __init__(self, folder: pathlib.Path | None, *, start: int) -> None:
    """Takes where the trace goes, None for no trace, and the last step done before."""
    self._folder = folder
    self._first = start + _SKIPPED + 1
    self._tracing = False

  def step(self, number: int, train: Callable, *arguments: Any) -> Any:
    """Calls `train` with the arguments as step `number`, and returns its result."""
    if self._folder is not None and number == self._first:
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0  # every call of every function: a hundred megabytes
      jax.profiler.start_trace(local_path(self._folder), profiler_options=options)
      self._tracing = True
    with jax.profiler.StepTraceAnnotation("train", step_num=number):
      result = train(*arguments)
    if self._tracing and number >= self._first + _STEPS - 1:
      jax.block_until_ready(result)
      self.close()
    return result

  def close(self) -> None:
    """Writes the trace, if one is being recorded."""
    if self._tracing and self._folder is not None:
      self._tracing = False
      jax.profiler.stop_trace()
      push(self._folder)
      say(f"profile of training steps: {self._folder} (xprof --logdir={self._folder})")
