"""Saliency maps for a collection that has none: computed from the reference's features, kept as PNGs.

`foreground` says how; here images are read, features computed and maps written, in batches.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from scops_jax import geometry, models
from scops_jax.data.collection import Collection, ExampleSource
from scops_jax.data.image_files import resize_pixels
from scops_jax.data.saliency_maps import image_digest, is_current, map_path, write_map
from scops_jax.errors import UserError
from scops_jax.saliency.foreground import SIDE, ForegroundModel, fit_foreground, foreground_maps
from scops_jax.train_step import Networks

_BATCH = 16  # images
# The reference sees an image with a reflected margin of this share of its side: a network's features near the
# border of its input differ from those inside.
_MARGIN = 1 / 8

Features = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # images [B, S, S, 3] → [B, g, g, C]


class _Place(NamedTuple):
  """Where an image of a collection is found."""

  source: ExampleSource
  number: int  # in the source
  name: str
  digest: str  # of its file


class _Picture(NamedTuple):
  """An image as the reference sees it and as its colours are read, and its own size."""

  large: NDArray[np.uint8]
  small: NDArray[np.uint8]
  shape: tuple[int, int]


def write_missing_maps(collection: Collection, features: Features, config: ConfigDict) -> int:
  """Writes the maps that are missing or whose image has changed; those that a user edited stay.

  What objects and backgrounds look like is learned from `config.auto_saliency.num_images` training images,
  spread evenly, so a preparation that was interrupted goes on as it began. Memory does not grow with the
  collection.

  Args:
    collection: opened with data.saliency = "auto".
    features: as `reference_grid` gives them.
    config: the run's.

  Returns:
    The number of maps written.

  Raises:
    UserError: a map can't be read or written.
  """
  if collection.maps is None:
    raise ValueError("expected a collection opened with data.saliency = 'auto'")
  missing = [
    place
    for place in _places(collection)
    if not is_current(map_path(collection.maps, place.name), place.digest)
  ]
  if not missing:
    return 0
  with ThreadPoolExecutor(config.data.num_threads) as threads:
    model = _fit(collection.train, features, threads, config)
    progress = tqdm(total=len(missing), desc="saliency maps", unit="image", disable=None)
    with progress:
      for start in range(0, len(missing), _BATCH):
        places = missing[start : start + _BATCH]
        pictures = _read([(place.source, place.number) for place in places], threads, config)
        small = np.stack([picture.small for picture in pictures])
        maps = foreground_maps(model, small, _features(features, pictures), map_images=threads.map)
        for place, picture, saliency in zip(places, pictures, maps, strict=True):
          path = map_path(collection.maps, place.name)
          height, width = picture.shape
          resized = Image.fromarray(saliency).resize((width, height), Image.Resampling.BILINEAR)
          try:
            write_map(path, np.rint(255 * np.asarray(resized)).astype(np.uint8), place.digest)
          except OSError as error:
            raise UserError(f"the saliency map {path} can't be written: {error.strerror}") from error
        progress.update(len(places))
  return len(missing)


def reference_grid(
  variables: chex.ArrayTree, images: chex.Array, *, networks: Networks, config: ConfigDict
) -> jax.Array:
  """Returns the reference's features on one grid that covers the image.

  Args:
    variables: of the reference.
    images: `[B, H, W, 3]` RGB 0..255.
    networks: the run's.
    config: the run's.

  Returns:
    `[B, g, g, C]`, cells on the align-corners lattice, as many as the first map has of an image without
    a margin, about; each map's features are divided by their norm, then concatenated.
  """
  side = config.reference_image_size
  patch = models.reference_multiple(config.reference)
  margin = round(_MARGIN * side / patch) * patch
  total = side + 2 * margin
  enlarged = geometry.resize_bilinear(images.astype(jnp.float32), side, side)
  framed = jnp.pad(enlarged, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="reflect")
  maps: Any = networks.reference.apply(variables, models.normalize(config.reference, framed))
  cells = max(2, round(maps[0].shape[1] * side / total))
  grids = []
  for features in maps:
    last = features.shape[1] - 1
    positions = np.linspace(margin, margin + side - 1, cells) / (total - 1) * last
    rows = _interpolation(features.shape[1], positions)
    grid = jnp.einsum("ph,bhwc,qw->bpqc", rows, features.astype(jnp.float32), rows)
    grids.append(grid / jnp.sqrt(jnp.sum(grid**2, axis=-1, keepdims=True) + 1e-6))
  return jnp.concatenate(grids, axis=-1)


def _interpolation(length: int, positions: NDArray[np.floating]) -> NDArray[np.float32]:
  """Returns the matrix [P, length] that interpolates linearly at positions between 0 and length - 1."""
  weights = 1 - np.abs(positions[:, None] - np.arange(length))
  return np.maximum(weights, 0).astype(np.float32)


def _places(collection: Collection) -> Iterator[_Place]:
  sources = [collection.train, collection.test]
  if collection.regression is not collection.train:
    sources.append(collection.regression)
  for source in sources:
    for index in range(len(source)):
      name, image = source.encoded_image(index)
      yield _Place(source, index, name, image_digest(image))


def _fit(source: ExampleSource, features: Features, threads: Executor, config: ConfigDict) -> ForegroundModel:
  count = min(config.auto_saliency.num_images, len(source))
  indices = np.linspace(0, len(source) - 1, count).round().astype(int)
  small: list[NDArray[np.uint8]] = []
  grids: list[NDArray[np.float32]] = []
  for start in range(0, count, _BATCH):
    pictures = _read([(source, index) for index in indices[start : start + _BATCH]], threads, config)
    small.extend(picture.small for picture in pictures)
    grids.append(_features(features, pictures))
  return fit_foreground(np.stack(small), np.concatenate(grids), map_images=threads.map)


def _read(
  items: Sequence[tuple[ExampleSource, int]], threads: Executor, config: ConfigDict
) -> list[_Picture]:
  def one(item: tuple[ExampleSource, Any]) -> _Picture:
    source, index = item
    image = source.read(index, ("image",))["image"]
    return _Picture(
      resize_pixels(image, config.image_size), resize_pixels(image, SIDE), (image.shape[0], image.shape[1])
    )

  return list(threads.map(one, items))


def _features(features: Features, pictures: Sequence[_Picture]) -> NDArray[np.float32]:
  """Returns the features of a batch, filled up with its last image so that all batches have one shape."""
  filled = [*pictures, *[pictures[-1]] * (_BATCH - len(pictures))]
  return np.asarray(features(np.stack([picture.large for picture in filled])))[: len(pictures)]
