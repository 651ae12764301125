"""Kills training at random moments, starts it again, and compares the end with a run left alone.

python -m experiments.reliability.kills --count=1000 --seed=0 --out=kills.json

A process trains (tiny_training.py) and gets SIGKILL after a time drawn from the length of a whole run, which
begins with the preparation of the data set and ends with the last evaluation. The same command follows until
the run is finished. Then another run begins, every second one with its data set deleted.
"""

import argparse
import collections
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np

from tests.faults.conftest import outcome


def start(root: pathlib.Path, workdir: pathlib.Path) -> subprocess.Popen[bytes]:
  """Starts or resumes a training in another process."""
  command = [sys.executable, "-m", "experiments.reliability.tiny_training", str(root), str(workdir)]
  return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def phase(root: pathlib.Path, workdir: pathlib.Path) -> str:
  """Returns what a process that was just killed had been doing, by the files that there are."""
  if not list(root.glob("cache/**/dataset_info.json")):
    return "start or data set"
  if not (workdir / "config.json").exists():
    return "networks or features"
  if not (workdir / "checkpoints").is_dir() or not list((workdir / "checkpoints").iterdir()):
    return "factorisation or first steps"
  if list((workdir / "checkpoints").glob("*tmp*")):
    return "save"
  return "last evaluation" if (workdir / "checkpoints" / "6").exists() else "steps or evaluation"


def main() -> None:
  """Prints a line per finished run and writes the counts."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--count", type=int, default=1000, help="kills")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--out", type=pathlib.Path, required=True, help="a JSON file")
  options = parser.parse_args()
  rng = np.random.default_rng(options.seed)
  kills: collections.Counter[str] = collections.Counter()
  wrong: list[str] = []
  finished, began = 0, time.monotonic()
  with tempfile.TemporaryDirectory() as name:
    root = pathlib.Path(name)
    for _ in range(2):  # the second has the compiled programs, as those that are killed have
      shutil.rmtree(root / "cache", ignore_errors=True)
      shutil.rmtree(root / "alone", ignore_errors=True)
      first = time.monotonic()
      start(root, root / "alone").communicate()
      seconds = time.monotonic() - first
    expected = outcome(root / "alone")
    while sum(kills.values()) < options.count:
      workdir = root / "run"
      shutil.rmtree(workdir, ignore_errors=True)
      if finished % 2:
        shutil.rmtree(root / "cache")
      while True:
        process = start(root, workdir)
        try:
          _, error = process.communicate(timeout=rng.uniform(0.2, 1.2) * seconds)
        except subprocess.TimeoutExpired:
          process.kill()
          process.communicate()
          kills[phase(root, workdir)] += 1
          continue
        break
      finished += 1
      if process.returncode:
        wrong.append(f"run {finished}: exit code {process.returncode}: {error.decode()[-500:]}")
      elif outcome(workdir) != expected:
        wrong.append(f"run {finished}: other results")
      print(f"{sum(kills.values())} kills, {finished} runs, {len(wrong)} wrong", flush=True)
  minutes = (time.monotonic() - began) / 60
  report = {"seed": options.seed, "kills": kills, "runs": finished, "wrong": wrong, "minutes": minutes}
  options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
  sys.exit(bool(wrong))


if __name__ == "__main__":
  main()
