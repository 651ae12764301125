"""Stops one training twenty times by SIGTERM or SIGINT and goes on: it ends as one that nobody stopped."""

import pathlib
import shutil
import signal
import time

import numpy as np

from experiments.reliability import children, tiny_training
from experiments.reliability.records import Records
from experiments.reliability.tiny_training import Place
from scops_jax import train

_EVERY = {"checkpoint_every": 20, "eval_every": 40}


def run(root: pathlib.Path, *, seed: int, count: int, records: Records) -> None:
  """Adds one entry: how often the run was stopped, and whether it ended as the other."""
  if records.entries:
    return
  steps = 5 * count
  place = Place(root / "soak")
  shutil.rmtree(place.root, ignore_errors=True)
  place.draw_images()
  began, cpu = time.monotonic(), 0.0

  def start(workdir: pathlib.Path, call: int = 0, number: signal.Signals = signal.SIGTERM) -> children.Ended:
    nonlocal cpu

    def command() -> None:
      tiny_training.set_up(root / "compiled" / "soak")
      tiny_training.train(place, workdir, num_steps=steps, **_EVERY)

    stopped = children.signalled(command, train.StepMetrics, "add", call=call, number=number)
    ended = children.run(stopped if call else command, log=place.root / "log")
    cpu += ended.cpu
    return ended

  alone, resumed = place.root / "alone", place.root / "resumed"
  start(alone)
  rng, codes, wrong = np.random.default_rng(seed), [], ""
  for index in range(count):
    number = (signal.SIGTERM, signal.SIGINT)[index % 2]
    ended = start(resumed, 1 + int(rng.integers(3)), number)
    codes.append(ended.code)
    if ended.code != 128 + number or "Traceback" in ended.error:
      wrong += f"stop {index + 1}: code {ended.code}: {ended.error[-500:]}; "
  last = start(resumed)
  if last.code or tiny_training.result(resumed) != tiny_training.result(alone):
    wrong += f"the end differs (code {last.code})"
  stops = sum(code in (130, 143) for code in codes)
  seconds = time.monotonic() - began
  records.add({"stops": stops, "steps": steps, "wrong": wrong, "cpu": round(cpu), "seconds": round(seconds)})
