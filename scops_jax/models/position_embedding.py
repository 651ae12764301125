"""Where a vision transformer's patches are: learned embeddings resized to other grids, and rotary ones.

All of it depends on sizes alone, so it is computed with NumPy and enters the programs as constants.
"""

import functools
import math

import numpy as np
from numpy.typing import NDArray

_ROPE_BASE = 100.0
# The cubic kernel's parameter (Keys, 1981) as PyTorch has it, without and with antialiasing.
_SHARPNESS, _ANTIALIAS_SHARPNESS = -0.75, -0.5


@functools.lru_cache(maxsize=64)
def bicubic_matrix(size: int, new_size: int, *, offset: float = 0.0, antialias: bool = False) -> NDArray:
  """Returns bicubic interpolation of an axis as a matrix, as PyTorch computes it without aligned corners.

  Output cell o is centred on input position (o + 1/2) s - 1/2, s = size / (new_size + offset).

  Args:
    size: input cells.
    new_size: output cells.
    offset: added to the number of output cells in the scale s alone; 0.1 in DINOv2 without registers, once
      meant against rounding errors and part of the published features since. Not with antialiasing.
    antialias: whether the kernel is widened by s when s > 1, and cut off and normalised at the borders; else
      it has four taps, and cells beyond the border repeat the outermost one.

  Returns:
    float64 [new_size, size]; its rows add up to 1.
  """
  scale = size / (new_size + offset)
  positions = (np.arange(new_size) + 0.5) * scale - 0.5
  matrix = np.zeros((new_size, size))
  if antialias:
    width = max(scale, 1.0)
    cells = np.arange(size)
    for row, position in zip(matrix, positions, strict=True):
      inside = np.abs(cells - position) < 2 * width
      row[inside] = _cubic((cells[inside] - position) / width, _ANTIALIAS_SHARPNESS)
      row /= row.sum()
  else:
    for row, position in zip(matrix, positions, strict=True):
      for cell in math.floor(position) + np.arange(-1, 3):
        row[min(max(cell, 0), size - 1)] += _cubic(np.float64(cell - position), _SHARPNESS)
  matrix.flags.writeable = False
  return matrix


def _cubic(x: NDArray | np.float64, a: float) -> NDArray:
  """The interpolating cubic kernel: (a+2)|x|³ - (a+3)|x|² + 1 up to 1, a(|x|³ - 5|x|² + 8|x| - 4) up to 2."""
  x = np.abs(x)
  inner = ((a + 2) * x - (a + 3)) * x**2 + 1
  outer = a * (((x - 5) * x + 8) * x - 4)
  return np.where(x <= 1, inner, np.where(x < 2, outer, 0.0))


@functools.lru_cache(maxsize=16)
def rotary_tables(height: int, width: int, channels: int) -> tuple[NDArray, NDArray]:
  """Returns cos and sin of the angles that axial rotary embeddings (RoPE) turn a head's channels by.

  Patch centres have coordinates in [-1, 1], (i + 1/2) / height · 2 - 1 and the same along the width. With
  f_j = 100^(-4j / channels), j < channels / 4, the angles of a patch are 2π y f_j, then 2π x f_j, and both
  once more for the second half of the channels. The authors' files hold 1 / f_j rounded to bfloat16; Hugging
  Face's transformers compute it in float32, as here.

  Args:
    height: patches.
    width: patches.
    channels: of a head; a multiple of 4.

  Returns:
    Two arrays, float32 [height · width, channels].
  """
  frequencies = _ROPE_BASE ** -(np.arange(channels // 4) * 4 / channels)
  y, x = ((np.arange(n) + 0.5) / n * 2 - 1 for n in (height, width))
  centers = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2)
  angles = (2 * np.pi * centers[:, :, None] * frequencies).reshape(len(centers), -1)
  angles = np.tile(angles, 2)
  return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
