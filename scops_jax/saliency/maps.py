"""Saliency maps of a collection that has none, computed from the reference's features and kept as PNGs.

`foreground` has the method; this module reads images, computes features and writes maps, in batches.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray
from PIL import Image

from scops_jax import geometry, models
from scops_jax.data.collection import Collection, ExampleSource
from scops_jax.data.image_files import resize_pixels
from scops_jax.data.saliency_maps import image_digest, is_current, map_path, write_map
from scops_jax.data.workers import num_workers
from scops_jax.errors import UserError
from scops_jax.progress import Bar, phase
from scops_jax.saliency.foreground import SIDE, ForegroundModel, fit_foreground, foreground_maps
from scops_jax.storage.mirror import pull, push
from scops_jax.train_step import Networks

_BATCH = 16  # images
# Around an image the reference sees a reflected margin of this fraction of its side: a network's features are
# different near the border of its input.
_MARGIN = 1 / 8

Features = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # images [B, S, S, 3] → [B, g, g, C]


class _Missing(NamedTuple):
  """An image without a current map."""

  source: ExampleSource
  number: int  # in the source
  path: Path  # of the map
  digest: str  # of the image's file


class _Images(NamedTuple):
  """A batch of images."""

  small: NDArray[np.uint8]  # [B, SIDE, SIDE, 3], for their colours
  features: NDArray[np.float32]  # [B, g, g, C]
  shapes: Sequence[tuple[int, int]]  # the images' own heights and widths


def write_missing_maps(collection: Collection, features: Features, config: ConfigDict) -> int:
  """Writes the maps that are missing or whose image has changed; those that a user edited stay.

  Objects and backgrounds are learned from `config.auto_saliency.num_images` training images, evenly spaced
  and independent of what is missing: a preparation that was interrupted continues with the same model. Memory
  does not grow with the collection.

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
  missing = list(_missing(collection, pull(collection.maps)))
  if not missing:
    return 0
  with ThreadPoolExecutor(num_workers(config.data)) as threads:
    with phase("learning objects and backgrounds for the saliency maps"):
      model = _fit(collection.train, features, threads, config)
    with Bar(len(missing), "saliency maps") as progress:
      for start in range(0, len(missing), _BATCH):
        batch = missing[start : start + _BATCH]
        images = _read([(item.source, item.number) for item in batch], features, threads, config)
        maps = foreground_maps(model, images.small, images.features, map_images=threads.map)
        for item, (height, width), saliency in zip(batch, images.shapes, maps, strict=True):
          resized = Image.fromarray(saliency).resize((width, height), Image.Resampling.BILINEAR)
          try:
            write_map(item.path, np.rint(255 * np.asarray(resized)).astype(np.uint8), item.digest)
          except OSError as error:
            raise UserError(f"the saliency map {item.path} can't be written: {error.strerror}") from error
        progress.update(len(batch))
  push(collection.maps)
  return len(missing)


def reference_grid(
  variables: chex.ArrayTree, images: chex.Array, *, networks: Networks, config: ConfigDict
) -> jax.Array:
  """Returns the reference's features on one grid that covers the image without its margin.

  On this grid the features of each map are divided by their norms, then all maps are concatenated.

  Args:
    variables: of the reference.
    images: `[B, H, W, 3]` RGB 0..255.
    networks: the run's.
    config: the run's.

  Returns:
    `[B, g, g, C]` float32, cells on the align-corners lattice; g is about the number of cells that the first
    map has for an image without a margin.
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
    # From the map's cells to the framed pixels; from the image's own pixels to the cells of the grid.
    to_pixels = geometry.interpolation_matrix(features.shape[1], total)[margin : margin + side]
    rows = jnp.asarray(geometry.interpolation_matrix(side, cells) @ to_pixels, jnp.float32)
    grid = jnp.einsum(
      "ph,bhwc,qw->bpqc", rows, features.astype(jnp.float32), rows, precision=geometry.HIGHEST
    )
    grids.append(grid / jnp.sqrt(jnp.sum(grid**2, axis=-1, keepdims=True) + 1e-6))
  return jnp.concatenate(grids, axis=-1)


def _missing(collection: Collection, folder: Path) -> Iterator[_Missing]:
  sources = [collection.train, collection.test]
  if collection.regression is not collection.train:
    sources.append(collection.regression)
  for source in sources:
    for index in range(len(source)):
      name, image = source.encoded_image(index)
      path, digest = map_path(folder, name), image_digest(image)
      if not is_current(path, digest):
        yield _Missing(source, index, path, digest)


def _fit(source: ExampleSource, features: Features, threads: Executor, config: ConfigDict) -> ForegroundModel:
  count = min(config.auto_saliency.num_images, len(source))
  items = [(source, index) for index in np.linspace(0, len(source) - 1, count).round().astype(int)]
  batches = [
    _read(items[start : start + _BATCH], features, threads, config) for start in range(0, count, _BATCH)
  ]
  return fit_foreground(
    np.concatenate([batch.small for batch in batches]),
    np.concatenate([batch.features for batch in batches]),
    map_images=threads.map,
  )


def _read(
  items: Sequence[tuple[ExampleSource, int]], features: Features, threads: Executor, config: ConfigDict
) -> _Images:
  """Reads at most _BATCH images and computes their features."""

  def read(item: tuple[ExampleSource, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8], tuple[int, int]]:
    source, index = item
    image = source.read(index, ("image",))["image"]
    return resize_pixels(image, config.image_size), resize_pixels(image, SIDE), image.shape[:2]

  large, small, shapes = zip(*threads.map(read, items), strict=True)
  # All batches have one shape: the last one is filled up with its last image.
  filled = np.stack([*large, *[large[-1]] * (_BATCH - len(large))])
  return _Images(np.stack(small), np.asarray(features(filled))[: len(large)], shapes)
