"""Soft part maps of the network's square, resized to an image of any size and labelled.

Pillow resizes the maps, as it has resized the image to the square: both are in the same frame (geometry.py).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_BAND = 1 << 18  # pixels that are labelled at once; bounds the memory that large images take


class PartLabels(NamedTuple):
  """The labels of one image, and statistics of each label."""

  labels: NDArray[np.uint8]  # [H, W], 0 = background
  areas: NDArray[np.int64]  # [K+1], pixels
  mean_probs: NDArray[np.float64]  # [K+1], mean of a label's probability over its pixels; NaN without pixels


def resize_maps(probs: NDArray[np.floating], height: int, width: int) -> NDArray[np.float32]:
  """Returns maps `[h, w, C]` at `[height, width, C]`."""
  return np.stack([_resize(image, (width, height)) for image in _images(probs)], axis=-1)


def label_pixels(probs: NDArray[np.floating], *, height: int, width: int) -> PartLabels:
  """Labels every pixel of an image with the likeliest channel there of the resized maps.

  Args:
    probs: `[h, w, K+1]`, K at most 255.
    height: H, of the image, pixels, at least 1.
    width: W, of the image, pixels, at least 1.

  Returns:
    Labels `[H, W]`, with areas and mean probabilities over these pixels.
  """
  maps = _images(probs)
  labels = np.zeros((height, width), np.uint8)
  areas, sums = np.zeros(len(maps), np.int64), np.zeros(len(maps))
  step = max(1, _BAND // width)
  for top in range(0, height, step):
    band = labels[top : top + step]
    edges = [y * probs.shape[0] / height for y in (top, top + len(band))]  # of the band, in rows of the maps
    likeliest = np.full(band.shape, -np.inf, np.float32)
    for channel, image in enumerate(maps):
      resized = _resize(image, (width, len(band)), box=(0, edges[0], probs.shape[1], edges[1]))
      np.copyto(band, channel, where=resized > likeliest)
      np.maximum(likeliest, resized, out=likeliest)
    areas += np.bincount(band.ravel(), minlength=len(maps))
    sums += np.bincount(band.ravel(), weights=likeliest.ravel(), minlength=len(maps))
  return PartLabels(labels, areas, np.where(areas > 0, sums / np.maximum(areas, 1), np.nan))


def _images(probs: NDArray[np.floating]) -> list[Image.Image]:
  return [Image.fromarray(channel.astype(np.float32)) for channel in np.moveaxis(probs, -1, 0)]


def _resize(
  image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> NDArray[np.float32]:
  return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box))
