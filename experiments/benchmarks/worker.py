"""A contestant in a process of its own, which computes on request and waits otherwise.

python -m experiments.benchmarks.worker CONTESTANT FOLDER reads requests [METHOD, ARGUMENT, …] and writes
replies, both as lines of JSON. CONTESTANT is "jax" or "pytorch", each with options after colons, or "input";
FOLDER holds the workload.
"""

import importlib
import json
import os
import pathlib
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

from experiments.benchmarks import workload
from scops_jax.errors import UserError
from scops_jax.kernels.memory import keep_freed_memory

# For each framework, the module with Step and the module with build.
_MODULES = {"jax": ("pieces", "pieces"), "pytorch": ("pytorch_step", "pytorch_pieces")}


class StepContestant:
  """A framework's training step, and its pieces after `build_pieces`."""

  def __init__(self, name: str, folder: pathlib.Path) -> None:
    """Loads the framework and the workload.

    Raises:
      UserError: there is no such contestant.
    """
    framework, *options = name.split(":")
    if framework not in _MODULES:
      raise UserError(f"contestant {name!r} is not jax or pytorch, with options after colons")
    step_module, self._module = (_import(module) for module in _MODULES[framework])
    self._step = step_module.Step(folder, options)
    self._pieces = {"step": self._step}

  def losses(self) -> list[dict[str, float]]:
    """Does the first steps and returns their metrics; call it before any other method."""
    steps = [self._step() for _ in range(workload.DRAWN_STEPS)]
    keep_freed_memory()
    return [{name: float(value) for name, value in metrics.items()} for metrics in steps]

  def build_pieces(self) -> list[str]:
    """Builds the step's pieces and returns their names."""
    pieces = self._module.build(self._step)
    self._pieces |= pieces
    return list(pieces)

  def time(self, piece: str, calls: int) -> float:
    """Returns the mean seconds per call, over `calls` calls."""
    return mean_seconds(self._pieces[piece], calls)

  def device_memory(self) -> int | None:
    """Returns the peak bytes of device memory so far; None on a CPU."""
    return self._module.device_memory()

  def host_memory(self) -> int:
    """Returns this process's peak bytes since its start or the last `forget_peak`."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

  def forget_peak(self) -> bool:
    """Resets the peak of `host_memory`; returns False if the system can't."""
    try:
      pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
      return False
    return True


class InputContestant:
  """The input pipeline."""

  def __init__(self, folder: pathlib.Path) -> None:
    """Draws the images."""
    self._pipeline = _import("input_pipeline").InputPipeline(folder)

  def time(self, piece: str, calls: int) -> float:
    """Returns the mean seconds per batch, over `calls` batches; there is only one piece."""
    del piece
    self._pipeline.empty_buffer()
    return mean_seconds(self._pipeline, calls)

  def image_bytes(self) -> int:
    """Returns the mean bytes of an image's file."""
    return self._pipeline.image_bytes


def mean_seconds(function: Callable[[], Any], calls: int) -> float:
  """Returns the mean seconds per call, over `calls` calls."""
  began = time.perf_counter()
  for _ in range(calls):
    function()
  return (time.perf_counter() - began) / calls


def _import(module: str) -> Any:
  return importlib.import_module(f"experiments.benchmarks.{module}")


def main(arguments: list[str]) -> None:
  """Answers requests until standard input ends."""
  # What libraries print goes to standard error, so that it can't come between the replies.
  replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
  name, folder = arguments[0], pathlib.Path(arguments[1])
  try:
    contestant = InputContestant(folder) if name == "input" else StepContestant(name, folder)
  except UserError as error:
    sys.exit(f"error: {error}")
  for line in sys.stdin:
    method, *options = json.loads(line)
    print(json.dumps(getattr(contestant, method)(*options)), file=replies, flush=True)


if __name__ == "__main__":
  main(sys.argv[1:])
