"""A host of a run with tiny networks: what test_multihost.py and test_buckets.py start one or two of.

python -m tests.multihost_worker COORDINATOR PROCESS_ID CACHE SIGNAL@STEP PARALLELISM=WORKDIR …

COORDINATOR is "" for a single host. SIGNAL@STEP, such as SIGTERM@2, is what this host gets in the last of the
runs; "" is nothing.
"""

import os
import pathlib
import signal
import sys
import time
from typing import Any

from scops_jax import models, train
from scops_jax.runs import hosts
from scops_jax.runs.checkpoints import latest_step
from tests import tiny

# The last batch of the test split is two images short: the second host's piece is nothing but padding.
_SETTINGS = {
  "num_steps": 7,
  "log_every": 1,
  "checkpoint_every": 3,
  "segmenter": "tiny",
  "segmenter_weights": "random",
  "reference": "tiny",
  "reference_weights": "random",
  "reference_layers": ("conv",),
  "basis.initializer": "nmf",
  "nmf.num_images": 8,
  "nmf.num_iterations": 5,
  "toy_faces.num_train": 16,
  "toy_faces.num_test": 6,
}


def networks() -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns entries for the tables of segmenters and references in scops_jax.models."""

  def normalize(images):
    return images / 127.5 - 1

  segmenter = models._SegmenterEntry(lambda num_parts: tiny.BatchNormSegmenter(), 4, normalize)
  reference = models._ReferenceEntry(tiny.Reference, ("conv",), normalize, ("conv",))
  return {"tiny": segmenter}, {"tiny": reference}


def train_run(workdir: str | pathlib.Path, *, parallelism: str, cache: str | pathlib.Path) -> dict[str, Any]:
  """Trains and evaluates; the tables of networks hold the tiny ones."""
  settings = {"parallelism": parallelism, "data.cache_dir": str(cache)}
  return train.train_and_evaluate(tiny.config(**_SETTINGS, **settings), workdir)


def _signal_at(step: int, number: int, workdir: str) -> None:
  """Makes this host send itself a signal in a step of training; SIGKILL once checkpoint 3 is complete."""

  class Signalled(train.StepMetrics):
    def add(self, at: int, metrics: Any) -> None:
      if at == step:
        while number == signal.SIGKILL and latest_step(workdir) < 3:
          time.sleep(0.05)
        os.kill(os.getpid(), number)
      elif at > step:
        time.sleep(0.5)  # these steps take no time, and hosts agree within a second
      super().add(at, metrics)

  train.StepMetrics = Signalled


def main(coordinator: str, process_id: str, cache: str, signal_at: str, *runs: str) -> None:
  segmenters, references = networks()
  models._SEGMENTERS.update(segmenters)
  models._REFERENCES.update(references)
  if coordinator:
    hosts.join(coordinator_address=coordinator, num_processes=2, process_id=int(process_id))
  for run in runs:
    parallelism, _, workdir = run.partition("=")
    if signal_at and run == runs[-1]:
      name, _, step = signal_at.partition("@")
      _signal_at(int(step), signal.Signals[name], workdir)
    train_run(workdir, parallelism=parallelism, cache=cache)


if __name__ == "__main__":
  main(*sys.argv[1:])
