"""Labels an image of any size from soft part maps at the network's size, with NumPy.

The result is as if the maps were resized bilinearly (aligned corners) and the likeliest channel of every
pixel taken. Where the four cells around a pixel share their likeliest channel, it is the pixel's too, so
only pixels at the borders of parts are interpolated. Nothing is compiled, whatever the image's size.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scops_jax.geometry import interpolation_positions

_CHUNK = 1 << 17  # border pixels interpolated at once; bounds the memory that large images take


class PartLabels(NamedTuple):
  """The labels of one image, and statistics of each label."""

  labels: NDArray[np.uint8]  # [H, W], 0 = background
  areas: NDArray[np.int64]  # [K+1], pixels
  mean_probs: NDArray[np.float64]  # [K+1], mean of a label's probability over its pixels; NaN without pixels


def label_pixels(
  probs: NDArray[np.floating], cells: NDArray[np.uint8], *, height: int, width: int
) -> PartLabels:
  """Labels every pixel with the likeliest channel of the maps, resized bilinearly with aligned corners.

  Args:
    probs: `[h, w, K+1]`, h and w at least 2, K at most 255.
    cells: `[h, w]`, the likeliest channel of each cell, which the network has already found.
    height: H, of the labels, pixels.
    width: W, pixels.

  Returns:
    Labels `[H, W]`, with areas and mean probabilities over these pixels.

  Raises:
    ValueError: `probs` has another shape, or a size is below 1.
  """
  probs = np.asarray(probs)
  if probs.ndim != 3 or min(probs.shape[:2]) < 2 or not 1 <= probs.shape[2] <= 256:
    raise ValueError(f"expected probs [h, w, K+1] with h, w >= 2 and K <= 255, got shape {probs.shape}")
  if height < 1 or width < 1:
    raise ValueError(f"expected a height and width of at least 1, got {height} and {width}")
  channels = probs.shape[2]
  flat_probs = probs.reshape(-1, channels)
  first = np.arange(0, probs.size, channels).reshape(cells.shape)  # index of a cell in the flattened maps
  peaks = probs.reshape(-1).take(first + cells).astype(np.promote_types(probs.dtype, np.float32), copy=False)
  if probs.shape[:2] == (height, width):
    sums = np.bincount(cells.ravel(), weights=peaks.ravel(), minlength=channels)
    return _part_labels(cells, sums)

  # Every pixel lies in a square between four cells, at (down, right), fractions of its side.
  rows, down = interpolation_positions(probs.shape[0], height)
  columns, right = interpolation_positions(probs.shape[1], width)
  corner = cells[:-1, :-1]
  uniform = (corner == cells[1:, :-1]) & (corner == cells[:-1, 1:]) & (corner == cells[1:, 1:])
  labels = corner.take(rows, axis=0).take(columns, axis=1)
  sums = _uniform_sums(corner, uniform, peaks, axes=((rows, down), (columns, right)), channels=channels)

  mixed = np.flatnonzero(~uniform.take(rows, axis=0).take(columns, axis=1))
  for start in range(0, len(mixed), _CHUNK):
    pixels = mixed[start : start + _CHUNK]
    y, x = np.divmod(pixels, width)
    values = _interpolate(
      flat_probs, rows[y] * probs.shape[1] + columns[x], down[y], right[x], probs.shape[1]
    )
    found = values.argmax(axis=-1)
    labels.ravel()[pixels] = found
    sums += np.bincount(found, weights=values[np.arange(len(found)), found], minlength=channels)
  return _part_labels(labels, sums)


def _part_labels(labels: NDArray[np.uint8], sums: NDArray) -> PartLabels:
  """Adds the areas; Pillow counts them without converting the labels to a larger type."""
  areas = np.asarray(Image.fromarray(labels).histogram()[: len(sums)], np.int64)
  return PartLabels(labels, areas, np.where(areas > 0, sums / np.maximum(areas, 1), np.nan))


def _interpolate(
  flat_probs: NDArray, corner: NDArray, down: NDArray, right: NDArray, width: int
) -> NDArray[np.floating]:
  """Interpolates in squares, given by the index of their top left cell in maps `width` cells wide."""
  values = np.zeros((len(corner), flat_probs.shape[1]), flat_probs.dtype)
  for offset, weight in (
    (0, (1 - down) * (1 - right)),
    (1, (1 - down) * right),
    (width, down * (1 - right)),
    (width + 1, down * right),
  ):
    values += weight.astype(flat_probs.dtype)[:, None] * flat_probs.take(corner + offset, axis=0)
  return values


def _uniform_sums(
  corner: NDArray,
  uniform: NDArray,
  peaks: NDArray,
  *,
  axes: tuple[tuple[NDArray, NDArray], tuple[NDArray, NDArray]],
  channels: int,
) -> NDArray:
  """Sums the interpolated peaks over the pixels of uniform squares, by label, without visiting the pixels.

  The sum over a square's pixels is a weighted sum of its four corners, whose weights separate into rows and
  columns: along each axis the sum of 1 - fraction for the first corner and of fraction for the second.
  """
  weights = []
  for (cells, fractions), squares in zip(axes, corner.shape, strict=True):
    towards_next = np.bincount(cells, weights=fractions, minlength=squares)
    from_here = np.bincount(cells, minlength=squares) - towards_next
    weights.append((from_here.astype(peaks.dtype), towards_next.astype(peaks.dtype)))
  rows, columns = weights
  down = rows[0][:, None] * peaks[:-1] + rows[1][:, None] * peaks[1:]
  square_sums = columns[0] * down[:, :-1] + columns[1] * down[:, 1:]
  # Squares that are not uniform get an extra label, which is dropped: faster than selecting the others.
  label = np.where(uniform, corner, channels).ravel()
  return np.bincount(label, weights=square_sums.ravel(), minlength=channels + 1)[:channels]
