"""Trains tiny networks on six images in seconds: the run that is killed and damaged.

python -m experiments.reliability.tiny_training ROOT WORKDIR

ROOT holds the images, the prepared data set and the compiled programs; it is filled at the first call.
"""

import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from scops_jax.config import default_config
from scops_jax.runs import setup
from scops_jax.train import train_and_evaluate
from tests import tiny

SETTINGS = {
  "num_parts": tiny.NUM_PARTS,
  "image_size": 16,
  "reference_image_size": 16,
  "segmenter_weights": "random",
  "reference_weights": "random",
  "data.name": "image_folder",
  "data.saliency": "ones",
  "data.cache_reference_features": True,
  "data.num_threads": 1,
  "crf.num_iterations": 0,
  "basis.initializer": "nmf",
  "nmf.num_images": 4,
  "nmf.num_iterations": 2,
  "optimizer.learning_rate": 1e-3,
  "batch_size": 2,
  "eval_batch_size": 2,
  "num_steps": 6,
  "log_every": 1,
  "checkpoint_every": 2,
  "eval_every": 4,
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
  config.update_from_flattened_dict(SETTINGS | places)
  return config


def outcome(workdir: pathlib.Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """Returns the metrics without the timing, and the evaluation: what two equal runs share."""
  lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
  records = [json.loads(line) for line in lines]
  metrics = [{k: v for k, v in record.items() if k != "images_per_second"} for record in records]
  return metrics, json.loads((workdir / "evaluation.json").read_text(encoding="utf-8"))


def main(arguments: list[str]) -> None:
  """Trains, or goes on with training."""
  root, workdir = map(pathlib.Path, arguments)
  train_and_evaluate(tiny_config(root), workdir)


if __name__ == "__main__":
  main(sys.argv[1:])
