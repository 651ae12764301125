"""Sizes of a run that follow from its collection and networks: the config keys that are 0 or ().

The rules scale what was found to serve 1 000 images, 900 of them for training (experiments/own_images).
"""

import copy
import io
import math
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from scops_jax import models
from scops_jax.config import FROM_COLLECTION
from scops_jax.data.collection import Collection, ExampleSource
from scops_jax.errors import UserError
from scops_jax.runs import hosts
from scops_jax.runs.workdir import load_config

_SAMPLE = 200  # images whose size is read
_FEW = 100  # with fewer training images there are 6 parts
_STEPS, _IMAGES, _FEWEST_STEPS = 1000, 900, 300
_LARGEST, _SMALLEST, _STRIDE = 128, 64, 16  # of image_size, pixels


def choose_sizes(
  config: ConfigDict, collection: Collection, *, workdir: str | pathlib.Path | None
) -> ConfigDict:
  """Fills in the keys that are 0 or (): from the run in `workdir` if there is one, else by suitable_sizes.

  Args:
    config: the run's; it is not changed.
    collection: opened.
    workdir: the run's directory, which need not exist; None: there is none.

  Returns:
    The complete config, locked.

  Raises:
    UserError: an unknown segmenter or reference.
  """
  missing = [key for key in (*FROM_COLLECTION, "reference_layers") if not config[key]]
  if not missing:
    return config
  chosen = _saved_sizes(workdir) if workdir is not None else None
  resolved = copy.deepcopy(config)  # with its references: loss weights may follow num_parts
  if chosen is None:
    edge = float(np.median(_shorter_edges(collection.train)))
    try:
      chosen = suitable_sizes(config, num_images=len(collection.train), edge=edge)
    except ValueError as error:
      raise UserError(str(error)) from error
    if hosts.is_first():
      print("chosen for this collection: " + ", ".join(f"{key}={chosen[key]}" for key in missing))
  resolved.update({key: chosen[key] for key in missing})
  return resolved.copy_and_resolve_references().lock()


def suitable_sizes(config: ConfigDict, *, num_images: int, edge: float) -> dict[str, Any]:
  """Returns a value for each key that may be 0 or (); those that follow from others use the config's, if set.

  num_parts: 6 below 100 images, else 8. num_steps: 1 000 √(images / 900), at least 300.
  eval_every: half the steps. image_size: 128, or for smaller images the multiple of 16 below their shorter
  edge, at least 64; if the segmenter has patches of another size, multiples of that. reference_image_size:
  three times that plus 1, so that the cells of a stride lie on the align-corners lattice; if the reference
  has patches, the nearest multiple. reference_layers: models.default_layers.

  Args:
    config: the run's.
    num_images: to train on.
    edge: the median of their shorter edges, pixels.

  Raises:
    ValueError: an unknown segmenter or reference.
  """
  parts = 6 if num_images < _FEW else 8
  steps = max(_FEWEST_STEPS, round(_STEPS * math.sqrt(num_images / _IMAGES) / 50) * 50)
  multiple = models.segmenter_multiple(config.segmenter)
  stride = _STRIDE if _STRIDE % multiple == 0 else multiple
  smallest, largest = (bound // stride * stride for bound in (_SMALLEST, _LARGEST))
  size = int(min(max(edge // stride * stride, smallest), largest))
  enlarged = 3 * (config.image_size or size) + 1
  patch = models.reference_multiple(config.reference)
  return {
    "num_parts": parts,
    "num_steps": steps,
    "eval_every": -(-(config.num_steps or steps) // 2),
    "image_size": size,
    "reference_image_size": max(round(enlarged / patch), 1) * patch,
    "reference_layers": models.default_layers(config.reference),
  }


def _saved_sizes(workdir: str | pathlib.Path) -> ConfigDict | None:
  """Returns the config of the run in `workdir`; None if there is none, or none that open_workdir accepts."""
  try:
    return load_config(workdir)
  except UserError:
    return None


def _shorter_edges(source: ExampleSource) -> list[int]:
  indices = np.unique(np.linspace(0, len(source) - 1, _SAMPLE).astype(int))
  return [min(Image.open(io.BytesIO(source.encoded_image(i)[1])).size) for i in indices]
