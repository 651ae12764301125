"""What a run is trained on: kept with its checkpoints, so that it goes on with nothing else."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from scops_jax.data.collection import Collection
from scops_jax.errors import UserError
from scops_jax.runs.feature_cache import tree_digest

_CHANGED = {
  "images": (
    "other images or masks than those of the collection now: restore them (or data.cache_dir's data set)"
  ),
  "reference": "other weights of the reference than reference_weights has now: restore them",
}


class Inputs(NamedTuple):
  """A digest is None where it is not known."""

  num_images: int
  images: str | None  # of the training images and their saliency
  reference: str | None  # of the reference's weights


def run_inputs(collection: Collection, reference_variables: Any, config: ConfigDict) -> Inputs:
  """Returns what a start of a run has."""
  # Random weights are drawn on the device, and devices may round differently.
  drawn = config.reference_weights == "random"
  return Inputs(
    num_images=len(collection.train),
    images=collection.train_digest,
    reference=None if drawn else tree_digest(reference_variables),
  )


def check_inputs(position: Mapping[str, Any], inputs: Inputs, workdir: pathlib.Path) -> Inputs:
  """Returns the inputs, with the digests of the checkpoint's position where they have none.

  Raises:
    UserError: the run would go on with other images or another reference than it began with.
  """
  before, now = position["num_images"], inputs.num_images
  if before != now:
    raise UserError(
      f"workdir={workdir} was trained on {before} images, and the collection now has {now}: restore it, or "
      "give another workdir"
    )
  known = inputs._asdict()
  for name, what in _CHANGED.items():
    saved = position.get(name)
    if known[name] is None:
      known[name] = saved
    elif saved not in (None, known[name]):
      raise UserError(f"workdir={workdir} was trained with {what}, or give another workdir")
  return Inputs(**known)
