"""Measures contestants in turns: each has its own process, and waits while another computes."""

import contextlib
import functools
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from scops_jax.errors import UserError

_TURN_SECONDS = 0.5  # a turn's calls take about this long; a slower call is made once
_MOST_CALLS = 200


class Timing(NamedTuple):
  """Seconds per call, one number per round."""

  seconds: tuple[float, ...]

  @property
  def median(self) -> float:
    """The median round."""
    return statistics.median(self.seconds)

  def __str__(self) -> str:
    """Milliseconds: the median, and in brackets the shortest and the longest."""
    middle, low, high = (1e3 * s for s in (self.median, min(self.seconds), max(self.seconds)))
    return f"{rounded(middle)} ({rounded(low)}–{rounded(high)})"

  def minus(self, other: "Timing") -> "Timing":
    """Returns the difference, round by round."""
    return Timing(tuple(a - b for a, b in zip(self.seconds, other.seconds, strict=True)))

  def speedup(self, baseline: "Timing") -> float:
    """Returns how many times as fast as the baseline this is: the median of the rounds' ratios."""
    return statistics.median(b / a for a, b in zip(self.seconds, baseline.seconds, strict=True))


def rounded(value: float) -> str:
  """Returns the value with three significant digits, or all digits before the decimal point."""
  return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


class Worker:
  """A contestant's process, which runs `experiments.benchmarks.worker`."""

  def __init__(self, contestant: str, folder: pathlib.Path) -> None:
    """Starts it."""
    self.contestant = contestant
    command = [sys.executable, "-m", "experiments.benchmarks.worker", contestant, str(folder)]
    self._process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    )

  def ask(self, do: str, *arguments: Any) -> Any:
    """Sends a request and waits for the reply.

    Raises:
      UserError: the process has ended; standard error says why.
    """
    reply = ""
    with contextlib.suppress(BrokenPipeError):
      print(json.dumps([do, *arguments]), file=self._process.stdin, flush=True)
      reply = self._process.stdout.readline()
    if not reply:
      raise UserError(f"the process of {self.contestant} ended with code {self._process.wait()}")
    return json.loads(reply)

  def close(self) -> None:
    """Ends the process."""
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    self._process.wait()


def environment() -> dict[str, str]:
  """Returns the environment of all contestants.

  It sets huge pages, as `make demo` does, and lets JAX take GPU memory only as needed, so that several fit.
  """
  defaults = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  return {**defaults, **os.environ}


@contextlib.contextmanager
def open_workers(contestants: Sequence[str], folder: pathlib.Path) -> Iterator[dict[str, Worker]]:
  """Starts a process for each contestant, and ends them all on leaving."""
  workers: dict[str, Worker] = {}
  try:
    for contestant in contestants:
      workers[contestant] = Worker(contestant, folder)
    yield workers
  finally:
    for worker in workers.values():
      worker.close()


def measure(workers: Mapping[str, Worker], piece: str, *, rounds: int) -> dict[str, Timing]:
  """Times one piece for all contestants, in turns."""
  turns = {name: functools.partial(worker.ask, "time", piece) for name, worker in workers.items()}
  return in_turn(turns, rounds)


def in_turn(turns: Mapping[str, Callable[[int], float]], rounds: int) -> dict[str, Timing]:
  """Times contestants in rounds; each has one turn per round, after two calls to warm up.

  Args:
    turns: functions that make the given number of calls and return the mean seconds per call.
    rounds: the number of rounds.
  """
  calls = {}
  for name, turn in turns.items():
    turn(1)
    calls[name] = calls_per_turn(turn(1))
  seconds: dict[str, list[float]] = {name: [] for name in turns}
  for _ in range(rounds):
    for name, turn in turns.items():
      seconds[name].append(turn(calls[name]))
  return {name: Timing(tuple(values)) for name, values in seconds.items()}


def calls_per_turn(estimate: float) -> int:
  """Returns the number of calls in a turn, if one takes `estimate` seconds."""
  return min(max(math.ceil(_TURN_SECONDS / max(estimate, 1e-9)), 1), _MOST_CALLS)
