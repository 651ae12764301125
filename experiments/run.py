"""Runs a suite of experiments, one JSON a run, and makes its tables and figures from them.

python -m experiments.run toy_faces                     all runs that have no JSON yet; then tables
python -m experiments.run toy_faces --list              what there is to do
python -m experiments.run toy_faces --only 'default*'   some, by patterns of their names
python -m experiments.run toy_faces --setting=small     a cheaper setting (experiments/suites.py)
python -m experiments.run toy_faces --tables            tables and figures only, from the JSONs alone
python -m experiments.run paper --data_root=DIR --config.segmenter_weights=… --config.reference_weights=…

--config.KEY=VALUE, and --steps, change every run and are recorded. JSONs lie in
experiments/SUITE/results/SETTING/, work directories in runs/SUITE/SETTING/. An interrupted run goes on where
its last checkpoint is. The tables go into experiments/SUITE/README.md, between its two comments of the
setting's name, and the figure beside it.
"""

import argparse
import datetime
import fnmatch
import functools
import json
import os
import pathlib
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from experiments import baselines, result_tables
from experiments.suites import SETTINGS, Overrides, Run, suite
from scops_jax.evaluation.baselines import NAMES
from scops_jax.storage.files import replacing

ROOT = pathlib.Path(__file__).parent.parent

Train = Callable[[list[str]], None]


def train_in_process_of_its_own(flags: list[str]) -> None:
  """Trains with the flags of `python -m scops_jax.main`.

  SIGTERM and Ctrl-C end the training as they end a run: after its step, which is saved.

  Raises:
    SystemExit: the training ended with an error or by a signal, with its code.
  """
  process = subprocess.Popen([sys.executable, "-m", "scops_jax.main", *flags], cwd=ROOT)
  before = {
    # A terminal gives Ctrl-C to both processes, so this one only waits.
    signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
    signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: process.terminate()),
  }
  try:
    code = process.wait()
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  if code:
    raise SystemExit(code)


def perform(
  run: Run,
  *,
  results: pathlib.Path,
  workdir: pathlib.Path,
  overrides: Overrides,
  train: Train = train_in_process_of_its_own,
) -> None:
  """Trains and measures a run unless its JSON is there, and writes the JSON; then its baselines' JSONs.

  Args:
    run: of a suite.
    results: folder of the JSONs.
    workdir: of the training.
    overrides: of the setting and the command line; they win over the run's own.
    train: what trains, given the flags of scops_jax.main.

  Raises:
    SystemExit: the JSON is of other settings.
  """
  changes = {**run.overrides, **overrides, "seed": run.seed}
  flags = [f"--config={run.config}", f"--workdir={workdir}"]
  flags += [f"--config.{key}={_flag(value)}" for key, value in changes.items()]
  command = shlex.join(["python", "-m", "scops_jax.main", *flags])
  record = {
    "run": run.name,
    "variant": run.variant,
    "method": "scops",
    "seed": run.seed,
    "config": run.config,
    "overrides": json.loads(json.dumps(changes)),
    "command": command,
  }
  path = results / f"{run.name}.json"
  if not _is_done(path, record):
    began, started = time.monotonic(), datetime.datetime.now(datetime.UTC)
    train(flags)
    found = json.loads((workdir / "evaluation.json").read_text(encoding="utf-8"))
    _write(path, record, found, started, minutes=(time.monotonic() - began) / 60)
  if run.baselines:
    _measure_baselines(run, record, results=results, workdir=workdir)


def _measure_baselines(
  run: Run, record: dict[str, Any], *, results: pathlib.Path, workdir: pathlib.Path
) -> None:
  paths = {name: results / f"{name}_of_{run.name}.json" for name in NAMES}
  missing = [name for name, path in paths.items() if not _is_done(path, record)]
  if not missing or not workdir.exists():
    return
  started = datetime.datetime.now(datetime.UTC)
  # Without landmarks there is no supervised baseline; its JSON says so.
  measured = dict.fromkeys(missing, (None, 0.0))
  measured |= {name: found for name, *found in baselines.measure(workdir, missing)}
  for name, (found, minutes) in measured.items():
    _write(paths[name], {**record, "method": name}, found, started, minutes=minutes)


def _is_done(path: pathlib.Path, record: dict[str, Any]) -> bool:
  if not path.exists():
    return False
  before = json.loads(path.read_text(encoding="utf-8"))
  differing = [key for key in ("config", "overrides") if before[key] != record[key]]
  if differing:
    raise SystemExit(f"{path} was made with other {' and '.join(differing)}: delete it to run again")
  return True


def _write(
  path: pathlib.Path,
  record: dict[str, Any],
  results: dict[str, Any] | None,
  started: datetime.datetime,
  *,
  minutes: float,
) -> None:
  about = {
    "started": started.isoformat(timespec="seconds"),
    "minutes": round(minutes, 2),
    "load": round(os.getloadavg()[0], 1),  # processes that shared the cores at the end
    "machine": _machine(),
    "commit": _commit(),
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  with replacing(path) as temporary:
    text = json.dumps({**record, **about, "results": results}, indent=1)
    temporary.write_text(text + "\n", encoding="utf-8")


@functools.cache
def _machine() -> str:
  # JAX is asked in a process of its own: here it would keep most of a GPU's memory from the runs.
  found = subprocess.run(
    [sys.executable, "-c", "import jax; print(jax.devices()[0].device_kind)"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  device = found.stdout.strip()
  cores = f"{platform.machine()}, {os.cpu_count()} cores"
  return cores if device in ("", "cpu") else f"{cores}, {device}"


def _commit() -> str:
  found = subprocess.run(
    ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
  )
  return found.stdout.strip()


def _flag(value: Any) -> str:
  """Writes a value as scops_jax.main's flags take it."""
  return repr(value) if isinstance(value, tuple) else str(value)


def _value(text: str) -> Any:
  try:
    return json.loads(text)
  except json.JSONDecodeError:
    return text


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Overrides]:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("suite", choices=SETTINGS)
  parser.add_argument("--only", nargs="*", default=["*"], help="patterns of the runs' names")
  parser.add_argument("--setting", default="full", help="of the suite")
  parser.add_argument("--steps", type=int, help="num_steps of every run")
  parser.add_argument("--data_root", type=pathlib.Path, default="data", help="folder of the collections")
  parser.add_argument("--runs", type=pathlib.Path, default="runs", help="folder of the work directories")
  parser.add_argument("--results", type=pathlib.Path, default=ROOT / "experiments", help="of the JSONs")
  parser.add_argument("--list", action="store_true", help="names the runs and says which are done")
  parser.add_argument("--tables", action="store_true", help="makes tables and figures only")
  known, others = parser.parse_known_args(arguments)
  if known.setting not in SETTINGS[known.suite]:
    parser.error(f"--setting={known.setting} is not one of {', '.join(SETTINGS[known.suite])}")
  overrides = dict(SETTINGS[known.suite][known.setting])
  for item in others:
    key, separator, value = item.removeprefix("--config.").partition("=")
    if not (item.startswith("--config.") and separator):
      parser.error(f"unknown argument {item}")
    overrides[key] = _value(value)
  if known.steps is not None:
    overrides["num_steps"] = known.steps
  return known, overrides


def main(arguments: Sequence[str] | None = None, *, train: Train = train_in_process_of_its_own) -> None:
  """Runs what is missing, and writes tables and figures after each run."""
  options, overrides = _parse(arguments)
  folder = options.results / options.suite
  results = folder / "results" / options.setting
  chosen = [
    run
    for run in suite(options.suite, options.data_root)
    if any(fnmatch.fnmatch(run.name, pattern) for pattern in options.only)
  ]
  if options.list:
    for run in chosen:
      done = (results / f"{run.name}.json").exists()
      print(f"{'done   ' if done else 'missing'} {run.name}")
    return
  for run in [] if options.tables else chosen:
    print(f"{run.name} of {options.suite}", flush=True)
    workdir = options.runs / options.suite / options.setting / run.name
    perform(run, results=results, workdir=workdir, overrides=overrides, train=train)
    result_tables.write(folder, options.setting)
  result_tables.write(folder, options.setting)


if __name__ == "__main__":
  main()
