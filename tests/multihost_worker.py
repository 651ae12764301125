"""A host of a run with tiny networks: what test_multihost.py starts several of.

python -m tests.multihost_worker COORDINATOR PROCESS_ID CACHE DIES_AT PARALLELISM=WORKDIR …
"""

import os
import pathlib
import signal
import sys
import time
from typing import Any

from scops_jax import models, train
from scops_jax.runs import hosts
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


def train_run(workdir: pathlib.Path, *, parallelism: str, cache: pathlib.Path) -> dict[str, Any]:
  """Trains and evaluates; the tables of networks hold the tiny ones."""
  settings = {"parallelism": parallelism, "data.cache_dir": str(cache)}
  return train.train_and_evaluate(tiny.config(**_SETTINGS, **settings), workdir)


def _die_at(step: int, checkpoint: pathlib.Path) -> None:
  """Makes this host die in the given step of training, once the checkpoint is complete."""

  class Dying(train.StepMetrics):
    def add(self, at: int, metrics: Any) -> None:
      if at == step:
        while not checkpoint.exists():
          time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
      super().add(at, metrics)

  train.StepMetrics = Dying


def main(coordinator: str, process_id: str, cache: str, dies_at: str, *runs: str) -> None:
  segmenters, references = networks()
  models._SEGMENTERS.update(segmenters)
  models._REFERENCES.update(references)
  hosts.join(coordinator_address=coordinator, num_processes=2, process_id=int(process_id))
  for run in runs:
    parallelism, _, workdir = run.partition("=")
    if dies_at != "never":
      _die_at(int(dies_at), pathlib.Path(workdir) / "checkpoints" / "3")
    train_run(pathlib.Path(workdir), parallelism=parallelism, cache=pathlib.Path(cache))


if __name__ == "__main__":
  main(*sys.argv[1:])
