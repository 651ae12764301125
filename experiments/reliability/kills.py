"""Kills training, evaluation and prediction at seeded moments, starts them again, and compares the end.

A run is killed up to a dozen times and then left alone until it ends; its metrics, evaluation, checkpoint and
predictions must equal those of a run that nobody killed. Every moment is drawn: a phase among those that the
files say are still to come, and a time after the phase began. Sometimes a file that can be rebuilt is damaged
before the next start, so that kills fall into recovery too.
"""

import collections
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.reliability import children, tiny_training
from experiments.reliability.records import Records
from experiments.reliability.tiny_training import Place, is_done, mark_done
from scops_jax import train
from scops_jax.data import collection
from scops_jax.prediction import files, folder, restore
from scops_jax.prediction import stream as prediction
from scops_jax.runs import checkpoints, feature_cache, metrics

_KILLS_A_RUN = 12
_RUN = {"num_steps": 16, "eval_every": 8}  # eight checkpoints and two evaluations
_DAMAGES = 0.08  # share of kills after which a file is damaged
_LEFTOVERS = ("*.tmp", "*orbax-checkpoint-tmp*", "incomplete.*", "damaged.*")


@dataclass(frozen=True)
class Phase:
  """A function in which processes are killed, or after which, within a time."""

  name: str
  owner: Any
  function: str
  seconds: float = 0.0  # in which the kill may fall, if longer than the function takes
  repeats: bool = False  # whether a start calls it more than once
  ahead: Callable[[Place, pathlib.Path], bool] = lambda place, workdir: True


def _lacks(pattern: str) -> Callable[[Place, pathlib.Path], bool]:
  return lambda place, workdir: not list(place.cache.glob(pattern))


def _has(pattern: str) -> Callable[[Place, pathlib.Path], bool]:
  return lambda place, workdir: bool(list(place.cache.glob(pattern)))


def _has_checkpoint(place: Place, workdir: pathlib.Path) -> bool:
  return bool(tiny_training.checkpoints(workdir))


TRAINING = (
  Phase("data set: writing it", collection, "write", ahead=_lacks("**/digests.txt")),
  Phase("data set: checking it", collection, "find_damage", ahead=_has("**/digests.txt")),
  Phase("features: computing and keeping them", feature_cache, "_write", ahead=_lacks("**/*.digest")),
  Phase("features: their digest", feature_cache, "_digest", 0.01),
  Phase("factorisation", train, "_fit_dff", ahead=lambda *places: not _has_checkpoint(*places)),
  Phase("restoring a checkpoint", train, "restore_state", ahead=_has_checkpoint),
  Phase("training steps", train.StepMetrics, "add", 0.1, repeats=True),
  Phase("line of the metrics", metrics.MetricsLog, "write", 0.005, repeats=True),
  Phase("before a save", checkpoints, "_digests", 0.01, repeats=True),
  Phase("in a save", checkpoints.Checkpoints, "save", 0.2, repeats=True),
  Phase("after a save", checkpoints.Checkpoints, "wait", 0.3, repeats=True),
  Phase("evaluation", train, "_evaluate"),
  Phase("report and evaluation.json", train, "write_report", 0.02),
  Phase("any moment", train, "check_values", 2.0),
)
EVALUATION = (
  Phase("--mode=eval: restoring", train, "restore_variables"),
  Phase("--mode=eval: measuring", train, "_evaluate"),
  Phase("--mode=eval: report and evaluation.json", train, "write_report", 0.02),
)
PREDICTION = (
  Phase("predict: restoring", restore, "restore_variables"),
  Phase("predict: opening the folder", folder.PredictionFolder, "_open", 0.005),
  Phase("predict: labelling", files, "label_pixels", 0.05, repeats=True),
  Phase("predict: journal", folder.PredictionFolder, "add", 0.02, repeats=True),
  Phase("predict: table", folder.PredictionFolder, "write_table", 0.005),
  Phase("predict: any moment", prediction, "PredictionFolder", 0.6),
)


def run(root: pathlib.Path, *, seed: int, count: int, records: Records) -> None:
  """Kills processes `count` times; `records` get an entry for each run, after those of earlier calls."""
  compiled, alone = root / "compiled" / "kills", Place(root / "alone")
  _leave_alone(compiled, alone)
  expected = _results(alone)
  while (done := sum(sum(record["kills"].values()) for record in records.entries)) < count:
    index = len(records.entries)
    rng = np.random.default_rng([seed, index])
    began = time.monotonic()
    place = Place(root / "killed")
    shutil.rmtree(place.root, ignore_errors=True)
    shutil.copytree(alone.own, place.own)
    shutil.copytree(alone.photos, place.photos, copy_function=shutil.copy2)
    killer = _Killer(place, compiled, rng, most=min(_KILLS_A_RUN, count - done))
    wrong = killer.train() or _difference(_results(place), expected)
    records.add(
      {
        "kills": dict(killer.kills),
        "damaged": killer.damaged,
        "starts": killer.starts,
        "wrong": wrong,
        "cpu": round(killer.cpu, 2),
        "seconds": round(time.monotonic() - began, 1),
      }
    )
    if wrong:
      keep = root / "wrong" / str(index)
      shutil.rmtree(keep, ignore_errors=True)
      shutil.copytree(place.root, keep)


def _leave_alone(compiled: pathlib.Path, place: Place) -> None:
  """Makes the run that nobody kills."""
  if is_done(place):
    return
  shutil.rmtree(place.root, ignore_errors=True)
  place.draw_images()
  for command in _commands(place):
    ended = children.run(_set_up(compiled, command), log=place.root / "log")
    if ended.code:
      raise RuntimeError(ended.error)
  mark_done(place)


def _commands(place: Place) -> list[children.Command]:
  workdir, out = place.root / "run", place.root / "out"
  return [
    lambda: tiny_training.train(place, workdir, **_RUN),
    lambda: tiny_training.evaluate(place, workdir, **_RUN),
    lambda: tiny_training.predict(place, workdir, out),
  ]


def _set_up(compiled: pathlib.Path, command: children.Command) -> children.Command:
  def start() -> None:
    tiny_training.set_up(compiled)
    command()

  return start


class _Killer:
  """Kills a run's commands."""

  def __init__(self, place: Place, compiled: pathlib.Path, rng: np.random.Generator, *, most: int) -> None:
    self.kills: collections.Counter[str] = collections.Counter()
    self.damaged: list[str] = []
    self.starts, self.cpu = 0, 0.0
    self._place, self._compiled, self._rng, self._most = place, compiled, rng, most

  def train(self) -> str:
    """Trains, evaluates and predicts; returns what went wrong, or ""."""
    shares = (
      (TRAINING, self._most - self._most // 4),
      (EVALUATION, self._most // 12),
      (PREDICTION, self._most // 6),
    )
    for (phases, most), command in zip(shares, _commands(self._place), strict=True):
      if wrong := self._until_it_ends(command, phases, most):
        return wrong
    return ""

  def _until_it_ends(self, command: children.Command, phases: tuple[Phase, ...], most: int) -> str:
    killed = 0
    while True:
      start, phase = command, None
      if killed < most:
        phase = self._rng.choice([p for p in phases if p.ahead(self._place, self._place.root / "run")])
        delay = self._rng.uniform(0, phase.seconds or _SECONDS)
        call = 1 + int(phase.repeats and self._rng.random() < 0.4)
        start = children.killing(command, phase.owner, phase.function, call=call, delay=delay)
      ended = children.run(_set_up(self._compiled, start), log=self._place.root / "log", seconds=120)
      self.starts += 1
      self.cpu += ended.cpu
      if phase is not None and children.was_killed(ended):
        killed += 1
        self.kills[phase.name] += 1
        if phases is TRAINING and self._rng.random() < _DAMAGES:
          self._damage()
        continue
      if ended.code:
        return f"exit code {ended.code}{' (hung)' if ended.hung else ''}: {ended.error[-1500:]}"
      return ""

  def _damage(self) -> None:
    """Flips a byte of a file that the next start rebuilds."""
    workdir = self._place.root / "run"
    found = [path for path in self._place.cache.rglob("*") if path.is_file() and path.name != "lock"]
    found += [path for name in ("dff.npz", "evaluation.json") if (path := workdir / name).exists()]
    steps = tiny_training.checkpoints(workdir)
    if len(steps) == 2:  # the one before it then serves
      found += [path for path in steps[1].rglob("*") if path.is_file()]
    found = sorted(path for path in found if path.stat().st_size)
    if found:
      path = found[self._rng.integers(len(found))]
      content = bytearray(path.read_bytes())
      content[self._rng.integers(len(content))] ^= 1 << int(self._rng.integers(8))
      path.write_bytes(content)
      self.damaged.append(str(path.relative_to(self._place.root)))


_SECONDS = 0.3  # in which the kill falls, in a function of unknown length


def _results(place: Place) -> dict[str, Any]:
  """Returns all that a finished run consists of."""
  out = place.root / "out"
  return tiny_training.result(place.root / "run") | {
    "images": {path.name: path.read_bytes() for path in sorted(out.rglob("*.[pj][np]g"))},
    "table": (out / "parts.csv").read_text(),
    "leftovers": sorted(str(path.relative_to(place.root)) for path in _leftovers(place.root)),
  }


def _leftovers(root: pathlib.Path) -> Iterator[pathlib.Path]:
  for pattern in _LEFTOVERS:
    yield from root.rglob(pattern)


def _difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
  return ", ".join(name for name in expected if found[name] != expected[name])
