"""Sizes of a run that follow from its collection: the config keys that are 0.

The rules start from what 1 000 images, nine in ten of them to train on, were found to need
(experiments/own_images), and give less or more of it for fewer or more images.
"""

import io
import json
import math
import pathlib
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from scops_jax.config import FROM_COLLECTION
from scops_jax.data.collection import Collection, ExampleSource

_SAMPLE = 200  # images whose size is looked at
_FEW = 100  # training images below which there are 6 parts
_STEPS, _IMAGES, _FEWEST_STEPS = 1000, 900, 300
_LARGEST, _SMALLEST, _STRIDE = 128, 64, 16  # of image_size, pixels


def choose_sizes(
  config: ConfigDict, workdir: str | pathlib.Path | None, open_collection: Callable[[], Collection]
) -> tuple[ConfigDict, Collection | None]:
  """Fills in the sizes that are 0: as a run in `workdir` has them, else by the collection.

  Args:
    config: the run's; it is not changed.
    workdir: the run's directory, which need not exist; None: there is none.
    open_collection: called only if a size is to be chosen by the collection.

  Returns:
    The config without zeros, locked, and the collection if it has been opened.
  """
  missing = [key for key in FROM_COLLECTION if not config[key]]
  if not missing:
    return config, None
  chosen = _saved_sizes(workdir, missing) if workdir is not None else {}
  collection = None
  if len(chosen) < len(missing):
    collection = open_collection()
    edges = _shorter_edges(collection.train)
    chosen = suitable_sizes(config, num_images=len(collection.train), edge=float(np.median(edges)))
  resolved = config.copy_and_resolve_references()
  resolved.update({key: chosen[key] for key in missing})
  if collection is not None:
    print("chosen for this collection: " + ", ".join(f"{key}={resolved[key]}" for key in missing))
  return resolved.lock(), collection


def suitable_sizes(config: ConfigDict, *, num_images: int, edge: float) -> dict[str, int]:
  """Returns a value for each key of FROM_COLLECTION; where the config has one, the others go with that.

  num_parts: 6 below 100 images, else 8. num_steps: 1 000 √(images / 900), at least 300.
  eval_every: half the steps. image_size: 128, or for smaller images the multiple of 16 below their shorter
  edge, at least 64. reference_image_size: three times that and one more, so that cells of a stride lie on the
  align-corners lattice.

  Args:
    config: the run's.
    num_images: to train on.
    edge: the median of their shorter edges, pixels.
  """
  parts = 6 if num_images < _FEW else 8
  steps = max(_FEWEST_STEPS, round(_STEPS * math.sqrt(num_images / _IMAGES) / 50) * 50)
  size = int(min(max(edge // _STRIDE * _STRIDE, _SMALLEST), _LARGEST))
  return {
    "num_parts": parts,
    "num_steps": steps,
    "eval_every": -(-(config.num_steps or steps) // 2),
    "image_size": size,
    "reference_image_size": 3 * (config.image_size or size) + 1,
  }


def _saved_sizes(workdir: str | pathlib.Path, keys: list[str]) -> dict[str, int]:
  """Returns these keys of the run in `workdir`; none if there is no run that can be read."""
  try:
    saved = json.loads((pathlib.Path(workdir) / "config.json").read_text(encoding="utf-8"))
    return {key: int(saved[key]) for key in keys}
  except (OSError, ValueError, KeyError, TypeError):
    return {}  # who opens the directory says so


def _shorter_edges(source: ExampleSource) -> list[int]:
  indices = np.unique(np.linspace(0, len(source) - 1, _SAMPLE).astype(int))
  return [min(Image.open(io.BytesIO(source.encoded_image(i)[1])).size) for i in indices]
