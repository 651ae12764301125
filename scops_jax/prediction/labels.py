"""Labels of an image of any size from soft part maps of the network's size, on the host.

The definition is: resize the maps bilinearly (align-corners) and take the likeliest channel of every pixel.
Where the four cells around a pixel agree on their likeliest channel, so does every mixture of them; only the
pixels at the parts' borders are interpolated. No program is compiled for a size, and the cost is that of
copying labels.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_CHUNK = 1 << 17  # border pixels interpolated at once; bounds the memory of large images


class PartLabels(NamedTuple):
  """One image's labels, and sums over the pixels of each."""

  labels: NDArray[np.uint8]  # [H, W], 0 = background
  areas: NDArray[np.int64]  # [K+1], pixels
  mean_probs: NDArray[np.float64]  # [K+1], mean over its pixels of a label's own map; NaN where there is none


def label_pixels(
  probs: NDArray[np.floating], cells: NDArray[np.uint8] | None = None, *, height: int, width: int
) -> PartLabels:
  """Labels every pixel with the likeliest channel of the maps, resized bilinearly with aligned corners.

  Args:
    probs: `[h, w, K+1]`, h and w at least 2, K at most 255.
    cells: `[h, w]`, the likeliest channel of each cell, where it is known already: finding it takes NumPy a
      third of the time that a small image takes.
    height: H, of the labels; any size.
    width: W.

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
  if cells is None:
    cells = probs.argmax(axis=-1).astype(np.uint8)
  flat_probs = probs.reshape(-1, channels)
  first = np.arange(0, probs.size, channels).reshape(cells.shape)  # entry of each cell in the raveled maps
  peaks = probs.reshape(-1).take(first + cells).astype(np.promote_types(probs.dtype, np.float32), copy=False)
  if probs.shape[:2] == (height, width):
    sums = np.bincount(cells.ravel(), weights=peaks.ravel(), minlength=channels)
    return _part_labels(cells, sums)

  # A square has four neighbouring cells as corners; every pixel lies in one, at fractions of its sides.
  rows, down = _positions(probs.shape[0], height)
  columns, right = _positions(probs.shape[1], width)
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
  """Adds the areas, which Pillow counts without a wider copy of the labels."""
  areas = np.asarray(Image.fromarray(labels).histogram()[: len(sums)], np.int64)
  return PartLabels(labels, areas, np.where(areas > 0, sums / np.maximum(areas, 1), np.nan))


def _positions(size: int, new_size: int) -> tuple[NDArray, NDArray]:
  """Returns for each new pixel of an axis the cell before it and how far towards the next cell it lies."""
  positions = np.arange(new_size) * ((size - 1) / max(new_size - 1, 1))
  cells = np.minimum(positions.astype(np.intp), size - 2)
  return cells, positions - cells


def _interpolate(
  flat_probs: NDArray, corner: NDArray, down: NDArray, right: NDArray, width: int
) -> NDArray[np.floating]:
  """Mixes the four cells of each square; `corner` indexes the first of them in rows of `width` cells."""
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
  """Sums the interpolated peaks of uniform squares' pixels by label, without visiting them.

  The sum is a product over the axes: a square's pixels weigh its corners by the sums of 1 - fraction and of
  fraction along each axis.
  """
  weights = []
  for (cells, fractions), squares in zip(axes, corner.shape, strict=True):
    towards_next = np.bincount(cells, weights=fractions, minlength=squares)
    from_here = np.bincount(cells, minlength=squares) - towards_next
    weights.append((from_here.astype(peaks.dtype), towards_next.astype(peaks.dtype)))
  rows, columns = weights
  down = rows[0][:, None] * peaks[:-1] + rows[1][:, None] * peaks[1:]
  square_sums = columns[0] * down[:, :-1] + columns[1] * down[:, 1:]
  # The other squares' go to a label of their own, which is cut off: faster than to select.
  label = np.where(uniform, corner, channels).ravel()
  return np.bincount(label, weights=square_sums.ravel(), minlength=channels + 1)[:channels]
