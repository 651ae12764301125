"""3×3 convolution with 16 products for every 2 × 2 outputs, instead of 36 (Lavin and Gray, arXiv 1509.09308).

A tile is 2 × 2 outputs and the 4 × 4 inputs that they read, both spaced by the dilation. With the matrices
below

  out = A ((G kernel Gᵀ) ∘ (B in Bᵀ)) Aᵀ

where ∘ multiplies entry by entry and sums over the input's channels: 16 matrix products over all tiles. The
matrices' entries are 0, ±1 and ±½, so float32 results are as exact as those of the direct sum.

Along an axis with dilation d, group g holds the d tiles whose first outputs are the rows 2 d g + q, q < d,
and whose second outputs lie d rows further. Only tiles of the last group may reach over the end.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_A = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
_B = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])

Grid = list[list[jax.Array]]  # entry (row, column) of each tile: [B, groups, d, groups, d, C]
Size = tuple[int, ...]  # rows and columns of the outputs


def conv_3x3(x: jax.Array, kernel: jax.Array, *, dilation: int) -> jax.Array:
  """Convolves at stride 1 with zero padding that keeps the size.

  Args:
    x: [B, H, W, C], float32 or float64.
    kernel: [3, 3, C, O], x's dtype.
    dilation: distance of the kernel's taps.

  Returns:
    [B, H, W, O], x's dtype.
  """
  return _conv(x, _transform(_G, [[kernel[i, j] for j in range(3)] for i in range(3)]), dilation)


def input_gradient(gradient: jax.Array, kernel: jax.Array, *, dilation: int) -> jax.Array:
  """Returns the gradient of conv_3x3's input, [B, H, W, C], from that of its result, [B, H, W, O]."""
  kernels = _transform(_G, [[kernel[2 - i, 2 - j] for j in range(3)] for i in range(3)])
  return _conv(gradient, [[kernel.T for kernel in row] for row in kernels], dilation)


def kernel_gradient(x: jax.Array, gradient: jax.Array, *, dilation: int) -> jax.Array:
  """Returns the gradient of conv_3x3's kernel, [3, 3, C, O], from that of its result, [B, H, W, O]."""
  size = x.shape[1:3]
  inputs = _transform(_B, _tiles(x, dilation, before=dilation, size=4))
  gradients = _transform(_A.T, _tiles(gradient, dilation, before=0, size=2))
  products = [
    [_rows(inputs[a][b], size).T @ _rows(gradients[a][b], size) for b in range(4)] for a in range(4)
  ]
  return jnp.stack([jnp.stack(row) for row in _transform(_G.T, products)])


def _conv(x: jax.Array, kernels: Grid, dilation: int) -> jax.Array:
  size = x.shape[1:3]
  inputs = _transform(_B, _tiles(x, dilation, before=dilation, size=4))
  products = [[_rows(inputs[a][b], size) @ kernels[a][b] for b in range(4)] for a in range(4)]
  outputs = [[_grouped(rows, size, dilation) for rows in row] for row in _transform(_A, products)]
  whole = jnp.stack([jnp.stack(row, axis=4) for row in outputs], axis=2)  # [B, groups, 2, d, groups, 2, d, O]
  down, across = (2 * _groups(length, dilation) * dilation for length in size)
  return whole.reshape(x.shape[0], down, across, -1)[:, : size[0], : size[1]]


def _tiles(x: jax.Array, dilation: int, *, before: int, size: int) -> Grid:
  """Cuts x, with `before` zeros in front of its rows and columns, into tiles of size × size."""
  groups = [_groups(length, dilation) for length in x.shape[1:3]]
  blocks = [2 * count + size - 2 for count in groups]
  padding = [
    (before, count * dilation - before - length) for count, length in zip(blocks, x.shape[1:3], strict=True)
  ]
  padded = lax.optimization_barrier(jnp.pad(x, ((0, 0), *padding, (0, 0))))
  padded = padded.reshape(-1, blocks[0], dilation, blocks[1], dilation, x.shape[-1])
  last_row, last_column = (2 * count - 1 for count in groups)
  return [
    [padded[:, i : i + last_row : 2, :, j : j + last_column : 2] for j in range(size)] for i in range(size)
  ]


def _groups(length: int, dilation: int) -> int:
  return -(-length // (2 * dilation))


def _count(length: int, dilation: int) -> int:
  """Returns how many tiles begin on an axis."""
  return length // (2 * dilation) * dilation + min(length % (2 * dilation), dilation)


def _rows(tiles: jax.Array, size: Size) -> jax.Array:
  """Returns one entry of every tile that begins in an image of `size`, as rows [tiles, C]."""
  images, down, dilation, across, _, channels = tiles.shape
  image = tiles.reshape(images, down * dilation, across * dilation, channels)
  rows, columns = (_count(length, dilation) for length in size)
  return image[:, :rows, :columns].reshape(-1, channels)


def _grouped(rows: jax.Array, size: Size, dilation: int) -> jax.Array:
  """Undoes `_rows`, with zeros for the tiles that it left out."""
  counts = [_count(length, dilation) for length in size]
  down, across = (_groups(length, dilation) for length in size)
  image = rows.reshape(-1, *counts, rows.shape[-1])
  missing = (0, down * dilation - counts[0]), (0, across * dilation - counts[1])
  return jnp.pad(image, ((0, 0), *missing, (0, 0))).reshape(
    -1, down, dilation, across, dilation, rows.shape[-1]
  )


def _transform(matrix: np.ndarray, grid: Grid) -> Grid:
  """Returns matrix · grid · matrixᵀ."""
  columns = [_combine(matrix, column) for column in zip(*grid, strict=True)]
  return [_combine(matrix, row) for row in zip(*columns, strict=True)]


def _combine(matrix: np.ndarray, arrays: tuple[jax.Array, ...]) -> list[jax.Array]:
  def weighted(row: np.ndarray) -> list[jax.Array]:
    weights = {1: lambda a: a, -1: jnp.negative, 0.5: lambda a: a / 2, -0.5: lambda a: -a / 2}
    return [weights[weight](array) for weight, array in zip(row, arrays, strict=True) if weight]

  return [functools.reduce(jnp.add, weighted(row)) for row in matrix]
