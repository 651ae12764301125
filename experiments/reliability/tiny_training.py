"""Trains tiny networks on six images in seconds: the run that is killed and damaged.

python -m experiments.reliability.tiny_training ROOT WORKDIR

ROOT holds the images, the prepared data set and the compiled programs; it is filled at the first call.
"""

import pathlib
import sys

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from scops_jax.config import default_config
from scops_jax.runs import setup
from scops_jax.train import train_and_evaluate
from tests import tiny
from tests.faults.conftest import SETTINGS

NETWORKS = {
  "num_parts": tiny.NUM_PARTS,
  "image_size": 16,
  "reference_image_size": 16,
  "segmenter_weights": "random",
  "reference_weights": "random",
  "data.name": "image_folder",
  "optimizer.learning_rate": 1e-3,
}


def tiny_config(root: pathlib.Path) -> ConfigDict:
  """Returns the run's config; draws the images at the first call and lets JAX keep compiled programs."""
  jax.config.update("jax_compilation_cache_dir", str(root / "compiled"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  setup.create_networks = lambda config: tiny.networks()
  images = root / "own" / "images"
  if not (root / "own" / "test.txt").exists():
    images.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for index in range(6):
      Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(images / f"{index}.png")
    (root / "own" / "test.txt").write_text("4.png\n5.png\n", encoding="utf-8")
  config = default_config()
  places = {"data.dir": str(root / "own"), "data.cache_dir": str(root / "cache")}
  config.update_from_flattened_dict(NETWORKS | SETTINGS | places)
  return config


def main(arguments: list[str]) -> None:
  """Trains, or goes on with training."""
  root, workdir = map(pathlib.Path, arguments)
  train_and_evaluate(tiny_config(root), workdir)


if __name__ == "__main__":
  main(sys.argv[1:])
