"""Measures computed saliency maps against a collection's ground-truth parts.

python -m experiments.own_images.auto_saliency --config=configs/toy_faces.py --config.data.saliency=auto
"""

import time

import numpy as np
from absl import flags
from ml_collections import config_flags

from scops_jax import cli
from scops_jax.data.collection import ExampleSource, open_collection, prepare_collection
from scops_jax.runs import setup

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run's configuration, configs/NAME.py.")


def measure(source: ExampleSource) -> np.ndarray:
  """Returns for each image the intersection and the union of map and parts, [N, 2], pixels."""
  counts = []
  for index in range(len(source)):
    example = source.read(index, ("saliency", "parts"))
    found, truth = example["saliency"] >= 128, example["parts"] > 0
    counts.append(((found & truth).sum(), (found | truth).sum()))
  return np.asarray(counts)


def main() -> None:
  """Computes missing maps, then compares all of them with the parts."""
  config = _CONFIG.value
  preparation = prepare_collection(config)
  began = time.perf_counter()
  setup.prepare(config)
  seconds = time.perf_counter() - began
  collection = open_collection(config, preparation)
  for split in ("train", "test"):
    counts = measure(getattr(collection, split))
    each = counts[:, 0] / np.maximum(counts[:, 1], 1)
    pooled = counts[:, 0].sum() / counts[:, 1].sum()
    print(
      f"{split}: {len(counts)} images, IoU {pooled:.3f} pooled, {each.mean():.3f} mean, "
      f"{np.quantile(each, 0.1):.3f} tenth percentile"
    )
  print(f"{seconds:.0f} s for the maps")


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  cli.run(main)
