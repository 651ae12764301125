"""Compares the training speed of two or more checkouts of this project.

git worktree add ../first f901e06
python -m experiments.benchmarks.versions . ../first

Each checkout has a training run, and the runs take turns: one trains while the others are stopped. Changes in
the machine's speed thus affect all of them, which they would not if one run followed another. All use this
Python and its packages. Linux and macOS.
"""

import argparse
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from experiments.benchmarks.contest import rounded
from scops_jax.errors import UserError

_NEVER = 1_000_000  # steps
_WARM_STEPS = 10


class Run:
  """A checkout's training run, which is stopped except inside `warm_up` and `images_per_second`."""

  def __init__(
    self, checkout: pathlib.Path, config: str, workdir: pathlib.Path, *, cache: pathlib.Path
  ) -> None:
    """Starts it."""
    self._metrics, self._log = workdir / "metrics.jsonl", workdir.with_suffix(".log")
    never = [f"--config.{key}={_NEVER}" for key in ("num_steps", "eval_every", "checkpoint_every")]
    places = [f"--workdir={workdir}", f"--config.data.cache_dir={cache}"]
    command = [sys.executable, "-m", "scops_jax.main", f"--config={config}", *places, *never]
    with self._log.open("w") as log:
      self._process = subprocess.Popen(
        [*command, "--config.log_every=1"],
        cwd=checkout,  # Python finds its packages there first
        stdout=log,
        stderr=subprocess.STDOUT,
      )

  def warm_up(self) -> None:
    """Lets the run do its first steps, then stops it.

    Raises:
      UserError: it ended.
    """
    self._wait_for(_WARM_STEPS)
    self._process.send_signal(signal.SIGSTOP)

  def images_per_second(self, seconds: float, batch_size: int) -> float:
    """Lets the run train for about `seconds`, measured from the end of a step to the end of a step."""
    self._process.send_signal(signal.SIGCONT)
    began_at = self._wait_for(self._steps() + 1)
    began = time.perf_counter()
    time.sleep(seconds)
    steps = self._wait_for(self._steps() + 1) - began_at
    elapsed = time.perf_counter() - began
    self._process.send_signal(signal.SIGSTOP)
    return steps * batch_size / elapsed

  def end(self) -> None:
    """Ends it."""
    self._process.kill()
    self._process.wait()

  def _steps(self) -> int:
    """Returns the number of lines in metrics.jsonl, one per step."""
    return self._metrics.read_bytes().count(b"\n") if self._metrics.exists() else 0

  def _wait_for(self, steps: int) -> int:
    while (done := self._steps()) < steps:
      if self._process.poll() is not None:
        raise UserError(f"{self._process.args} ended: {self._log.read_text(errors='replace')[-2000:]}")
      time.sleep(0.002)
    return done


def table(names: Sequence[str], speeds: Sequence[Sequence[float]]) -> str:
  """Returns a Markdown table: median, least and most of images/s, and of the first checkout's ratio to each.

  Args:
    names: the checkouts.
    speeds: images/s, one row per round, one column per checkout.
  """
  lines = ["| checkout | images/s | the first over it |", "|---|---:|---:|"]
  for n, name in enumerate(names):
    cells = []
    for values in ([row[n] for row in speeds], [row[0] / row[n] for row in speeds]):
      middle, *ends = map(rounded, (statistics.median(values), min(values), max(values)))
      cells.append(f"{middle} ({ends[0]}–{ends[1]})")
    lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
  return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument(
    "checkouts", nargs="+", type=pathlib.Path, help="folders; each has scops_jax/ and configs/"
  )
  parser.add_argument(
    "--config", default="configs/toy_faces.py", help="path in each checkout; configs/toy_faces.py"
  )
  parser.add_argument("--batch_size", type=int, default=8, help="of that config; 8")
  parser.add_argument("--rounds", type=int, default=7, help="turns of each; 7")
  parser.add_argument("--seconds", type=float, default=7.0, help="of a turn; 7")
  options = parser.parse_args(arguments)
  runs: list[Run] = []
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    try:
      for n, checkout in enumerate(options.checkouts):
        cache = folder / f"cache{n}"  # one each: prepared data and features depend on the version
        runs.append(Run(checkout.resolve(), options.config, folder / f"run{n}", cache=cache))
        runs[-1].warm_up()
      speeds = [
        [run.images_per_second(options.seconds, options.batch_size) for run in runs]
        for _ in range(options.rounds)
      ]
    except UserError as error:
      sys.exit(f"error: {error}")
    finally:
      for run in runs:
        run.end()
  print(table([str(checkout) for checkout in options.checkouts], speeds))


if __name__ == "__main__":
  main()
