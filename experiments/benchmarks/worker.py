"""A contestant in a process of its own: it computes when it is asked, and waits otherwise.

python -m experiments.benchmarks.worker CONTESTANT FOLDER reads requests [METHOD, ARGUMENT, …] and writes
replies, as lines of JSON. CONTESTANT is "jax" or "pytorch", with options behind colons, or "input"; FOLDER
holds the workload.
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

# The modules of each framework that have Step and build.
_MODULES = {"jax": ("pieces", "pieces"), "pytorch": ("pytorch_step", "pytorch_pieces")}


class StepContestant:
  """A framework's training step, and its pieces once they are asked for."""

  def __init__(self, name: str, folder: pathlib.Path) -> None:
    """Loads the framework and the workload.

    Raises:
      UserError: there is no such contestant.
    """
    framework, *options = name.split(":")
    if framework not in _MODULES:
      raise UserError(f"contestant {name!r} is not jax or pytorch, with options behind colons")
    step_module, self._module = (_import(module) for module in _MODULES[framework])
    self._step = step_module.Step(folder, options)
    self._pieces = {"step": self._step}

  def losses(self) -> list[dict[str, float]]:
    """Returns the metrics of the first steps, while none has been done yet."""
    steps = [self._step() for _ in range(workload.DRAWN_STEPS)]
    keep_freed_memory()
    return [{name: float(value) for name, value in metrics.items()} for metrics in steps]

  def build_pieces(self) -> list[str]:
    """Makes the step's pieces ready, and returns their names."""
    pieces = self._module.build(self._step)
    self._pieces |= pieces
    return list(pieces)

  def time(self, piece: str, calls: int) -> float:
    """Returns the mean seconds of a call, over a number of them."""
    return mean_seconds(self._pieces[piece], calls)

  def device_memory(self) -> int | None:
    """Returns the peak bytes of device memory so far; None where the device is the CPU."""
    return self._module.device_memory()

  def host_memory(self) -> int:
    """Returns the peak bytes of this process, from its start or from `forget_peak` on."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

  def forget_peak(self) -> bool:
    """Lets the peak of `host_memory` begin anew; returns whether the system can."""
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
    """Returns the mean seconds of a batch, over a number of them; there is one piece."""
    del piece
    self._pipeline.empty_buffer()
    return mean_seconds(self._pipeline, calls)

  def image_bytes(self) -> int:
    """Returns the mean size of an image's file."""
    return self._pipeline.image_bytes


def mean_seconds(function: Callable[[], Any], calls: int) -> float:
  """Returns the mean seconds of a call, over a number of them."""
  began = time.perf_counter()
  for _ in range(calls):
    function()
  return (time.perf_counter() - began) / calls


def _import(module: str) -> Any:
  return importlib.import_module(f"experiments.benchmarks.{module}")


def main(arguments: list[str]) -> None:
  """Answers requests until there are no more."""
  # Whatever the libraries print must not come between the replies.
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
