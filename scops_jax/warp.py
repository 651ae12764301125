"""Spatial transforms: random control points, the thin-plate grid through them, and bilinear warping.

A transform maps output (target) points to input (source) points in the [-1, 1] frame of `geometry`. It is
given by the source points of a 5 × 5 lattice of target points.
"""

import functools
from typing import TYPE_CHECKING

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scops_jax.geometry import HIGHEST, accumulation_dtype, axis_coordinates, check_array, resize_bilinear
from scops_jax.kernels.platforms import target

if TYPE_CHECKING:
  from ml_collections import ConfigDict

NUM_CONTROL_POINTS = 25


def control_lattice() -> jax.Array:
  """Returns the target control points [25, 2]: point 5i + j is (v[i], v[j]), v = (-1, -0.5, 0, 0.5, 1)."""
  return jnp.asarray(_lattice())


def _lattice() -> np.ndarray:
  x, y = np.meshgrid(axis_coordinates(5), axis_coordinates(5), indexing="ij")
  return np.stack([x, y], axis=-1).reshape(NUM_CONTROL_POINTS, 2)


def sample_spatial_transform(key: chex.PRNGKey, batch_size: int, spatial: "ConfigDict") -> jax.Array:
  """Draws one spatial transform T_s per image (paper, section 3.2, and the release's ranges).

  Every control point is jittered. In mode "similarity" or "projective" the whole lattice is then moved; in
  mode "thin_plate" it stays. Last, it may be mirrored. Scales are drawn from [1 / scale_high, 1 / scale_low],
  since the transform maps target to source.

  Args:
    key: a PRNG key.
    batch_size: B.
    spatial: `config.spatial`.

  Returns:
    Source control points [B, 25, 2], float32, for `thin_plate_grid`.

  Raises:
    ValueError: `spatial.mode` is unknown.

  Differs from the release: the mirror is drawn for each image, not once a batch.
  """
  jitter_key, angle_key, tilt_key, scale_key, shift_key, mirror_key = jax.random.split(key, 6)

  def symmetric(draw_key: chex.PRNGKey, shape: tuple[int, ...], limit: float) -> jax.Array:
    return jax.random.uniform(draw_key, shape, jnp.float32, -limit, limit)

  jitter = symmetric(jitter_key, (batch_size, NUM_CONTROL_POINTS, 2), spatial.control_jitter)
  points = control_lattice().astype(jnp.float32) + jitter
  angle = symmetric(angle_key, (batch_size,), np.deg2rad(spatial.rotation_degrees))
  low, high = 1.0 / spatial.scale_high, 1.0 / spatial.scale_low
  scale = jax.random.uniform(scale_key, (batch_size,), jnp.float32, low, high)
  if spatial.mode == "similarity":
    shift = symmetric(shift_key, (batch_size, 2), spatial.translation)
    points = similarity_transform(points, angle=angle, scale=scale, shift=shift)
  elif spatial.mode == "projective":
    tilt = symmetric(tilt_key, (batch_size, 2), np.deg2rad(spatial.tilt_degrees))
    points = projective_transform(points, angle=angle, tilt=tilt, scale=scale)
  elif spatial.mode != "thin_plate":
    raise ValueError(
      f'spatial.mode must be "similarity", "projective" or "thin_plate", got {spatial.mode!r}.'
    )
  return mirror_points(points, jax.random.bernoulli(mirror_key, spatial.mirror_probability, (batch_size,)))


def similarity_transform(
  points: chex.Array, *, angle: chex.Array, scale: chex.Array, shift: chex.Array
) -> jax.Array:
  """Rotates, scales, then shifts points: p' = s R(a) p + t (the release's affine mode).

  Args:
    points: [B, N, 2].
    angle: a [B], radians, from x towards y.
    scale: s [B].
    shift: t [B, 2], half-image units.

  Returns:
    [B, N, 2].
  """
  check_array("points", points, "[B, N, 2]", (None, None, 2))
  cos, sin = scale * jnp.cos(angle), scale * jnp.sin(angle)
  matrix = jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2)
  return jnp.einsum("bij,bnj->bni", matrix, points, precision=HIGHEST) + shift[:, None]


def projective_transform(
  points: chex.Array, *, angle: chex.Array, tilt: chex.Array, scale: chex.Array
) -> jax.Array:
  """Turns the image plane in space and projects it back: p' = Rx Ry Rz(s) (x, y, 1)ᵀ, over its third entry.

  Args:
    points: [B, N, 2].
    angle: [B], radians, about z, in the image plane.
    tilt: [B, 2], radians, about x and about y.
    scale: s [B], multiplies the rotation about z.

  Returns:
    [B, N, 2].
  """
  check_array("points", points, "[B, N, 2]", (None, None, 2))
  in_plane = similarity_transform(points, angle=angle, scale=scale, shift=jnp.zeros_like(tilt))
  x, y = in_plane[..., 0], in_plane[..., 1]
  cos_x, cos_y = jnp.cos(tilt[:, :1]), jnp.cos(tilt[:, 1:])
  sin_x, sin_y = jnp.sin(tilt[:, :1]), jnp.sin(tilt[:, 1:])
  x, z = cos_y * x + sin_y, cos_y - sin_y * x
  y, z = cos_x * y - sin_x * z, sin_x * y + cos_x * z
  return jnp.stack([x / z, y / z], axis=-1)


def mirror_points(points: chex.Array, flags: chex.Array) -> jax.Array:
  """Negates x of the source points [B, N, 2] of the images whose flag [B] is set."""
  check_array("points", points, "[B, N, 2]", (None, None, 2))
  sign = jnp.where(flags, -1.0, 1.0).astype(points.dtype)
  return jnp.asarray(points).at[..., 0].multiply(sign[:, None])


@functools.lru_cache(maxsize=16)
def _thin_plate_matrix(height: int, width: int) -> np.ndarray:
  """Returns the constant matrix M [H·W, 25], float64, of thin-plate grids M @ source control points.

  The spline [U(‖q - P‖), 1, q] w has weights w = L⁻¹ [source; 0], L = [[U, 1, P], [1ᵀ, 0, 0], [Pᵀ, 0, 0]] and
  U(r) = r² ln r over the lattice P.
  """
  lattice = _lattice()

  def basis(points: np.ndarray) -> np.ndarray:
    squared = ((points[:, None] - lattice) ** 2).sum(-1)
    kernel = 0.5 * squared * np.log(np.where(squared > 0, squared, 1.0))
    return np.concatenate([kernel, np.ones((len(points), 1)), points], axis=1)

  system = np.zeros((NUM_CONTROL_POINTS + 3, NUM_CONTROL_POINTS + 3))
  system[:NUM_CONTROL_POINTS] = basis(lattice)
  system[NUM_CONTROL_POINTS:, :NUM_CONTROL_POINTS] = system[:NUM_CONTROL_POINTS, NUM_CONTROL_POINTS:].T
  x, y = np.meshgrid(axis_coordinates(width), axis_coordinates(height))
  pixels = np.stack([x, y], axis=-1).reshape(-1, 2)
  matrix = (basis(pixels) @ np.linalg.inv(system))[:, :NUM_CONTROL_POINTS]
  matrix.flags.writeable = False
  return matrix


def thin_plate_grid(source_points: chex.Array, height: int, width: int) -> jax.Array:
  """Returns the smoothest map that sends each lattice point to its source point, at every output pixel.

  The thin-plate spline of Bookstein (1989) through the control points. The inverse of its linear system and
  its kernel at the pixels are constants, so a grid is one [H·W, 25] × [25, 2] product.

  Args:
    source_points: [B, 25, 2], (x, y), to which the points of `control_lattice` are mapped.
    height: H of the output, pixels, at least 1.
    width: W of the output, pixels, at least 1.

  Returns:
    [B, H, W, 2], source coordinates (x, y) of each output pixel, at least float32.

  Raises:
    TypeError, ValueError: `source_points` is not floating point [B, 25, 2], or a size is below 1.
  """
  check_array("source_points", source_points, "[B, 25, 2]", (None, NUM_CONTROL_POINTS, 2))
  if height < 1 or width < 1:
    raise ValueError(f"height and width must be at least 1, got {height} and {width}.")
  dtype = accumulation_dtype(source_points)
  matrix = jnp.asarray(_thin_plate_matrix(height, width), dtype).reshape(height, width, NUM_CONTROL_POINTS)
  return jnp.einsum("hwn,bnd->bhwd", matrix, source_points.astype(dtype), precision=HIGHEST)


def warp(images: chex.Array, grid: chex.Array, *, padding: str = "zeros") -> jax.Array:
  """Samples images at the points of a grid, bilinearly, with aligned corners.

  Args:
    images: [B, H, W, C], images or maps.
    grid: [B, h, w, 2], (x, y) in the images' [-1, 1] frame; a point outside reads the padding.
    padding: "zeros" surrounds the images with zeros, into which the outermost pixel fades over one pixel's
      distance; "border" repeats the outermost pixels.

  Returns:
    [B, h, w, C] of the images' dtype; the gradient flows to the images and to the grid.

  Raises:
    TypeError, ValueError: a dtype is not floating point, the shapes do not fit, or `padding` is unknown.
  """
  check_array("images", images, "[B, H, W, C]", (None, None, None, None))
  check_array("grid", grid, "[B, h, w, 2] with the images' B", (images.shape[0], None, None, 2))
  modes = {"zeros": "constant", "border": "edge"}
  if padding not in modes:
    raise ValueError(f'padding must be "zeros" or "border", got {padding!r}.')
  _, height, width, _ = images.shape
  if target() == "tpu":
    return _warp_by_products(images, grid, height, width, padding=padding)
  # One row or column of padding on each side is enough: points farther out are moved onto it.
  padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=modes[padding])
  grid = grid.astype(accumulation_dtype(grid))
  x = jnp.clip((grid[..., 0] + 1.0) * (0.5 * (width - 1)) + 1.0, 0.0, width + 1.0)
  y = jnp.clip((grid[..., 1] + 1.0) * (0.5 * (height - 1)) + 1.0, 0.0, height + 1.0)
  left = jnp.minimum(jnp.floor(jax.lax.stop_gradient(x)), width)
  top = jnp.minimum(jnp.floor(jax.lax.stop_gradient(y)), height)
  right_weight, bottom_weight = (x - left)[..., None], (y - top)[..., None]
  corner = top.astype(jnp.int32) * (width + 2) + left.astype(jnp.int32)

  def row(corner: jax.Array) -> jax.Array:
    # Both pixels of a row lie side by side in memory: they are read, and in the gradient written, together.
    first, second = jnp.split(_windows(padded, corner), 2, axis=-1)
    return first * (1.0 - right_weight) + second * right_weight

  above, below = row(corner), row(corner + width + 2)
  return (above * (1.0 - bottom_weight) + below * bottom_weight).astype(images.dtype)


def warp_enlarged(maps: chex.Array, grid: chex.Array, *, height: int, width: int) -> jax.Array:
  """Equals warp(resize_bilinear(maps, height, width), grid), for maps that lack such an enlarged version.

  Args:
    maps: [B, h, w, C].
    grid: as in `warp`.
    height: H of the enlarged maps, pixels.
    width: W of the enlarged maps, pixels.

  Returns:
    As `warp`, padded with zeros.

  Raises:
    TypeError, ValueError: as `warp` and `resize_bilinear`.
  """
  if target() != "tpu":
    return warp(resize_bilinear(maps, height, width), grid)
  check_array("maps", maps, "[B, h, w, C]", (None, None, None, None))
  check_array("grid", grid, "[B, h, w, 2] with the maps' B", (maps.shape[0], None, None, 2))
  return _warp_by_products(maps, grid, height, width, padding="zeros")


def _warp_by_products(
  maps: jax.Array, grid: jax.Array, height: int, width: int, *, padding: str
) -> jax.Array:
  """Warps maps after enlarging them, as products with each point's shares in rows and columns.

  A sample is Σ_y Σ_x a_y b_x v_yx, because both samplings are bilinear. A TPU has no other fast way: it
  gathers one point after another.
  """
  points = grid.astype(accumulation_dtype(grid)).reshape(grid.shape[0], -1, 2)
  rows = _shares(points[..., 1], maps.shape[1], height, padding=padding)
  columns = _shares(points[..., 0], maps.shape[2], width, padding=padding)
  partial = jnp.einsum("bhwc,bhp->bwcp", maps, rows.astype(maps.dtype), precision=HIGHEST)
  sampled = jnp.sum(partial * columns[:, :, None], axis=1).astype(maps.dtype)
  return jnp.moveaxis(sampled, 1, -1).reshape(*grid.shape[:3], -1)


def _shares(coordinates: jax.Array, cells: int, size: int, *, padding: str) -> jax.Array:
  """Returns how much each cell of an axis counts for points on it, after the axis is resized.

  Args:
    coordinates: [B, P] in [-1, 1], with aligned corners.
    cells: n, before the axis is resized.
    size: pixels, after it.
    padding: as in `warp`.

  Returns:
    [B, n, P].
  """
  low, high = (-1.0, float(size)) if padding == "zeros" else (0.0, size - 1.0)
  positions = jnp.clip((coordinates + 1.0) * (0.5 * (size - 1)), low, high)[:, None]
  before = jnp.floor(jax.lax.stop_gradient(positions))
  numbers = jnp.arange(cells, dtype=positions.dtype)[:, None]

  def at(pixels: jax.Array) -> jax.Array:
    share = jnp.maximum(1.0 - jnp.abs(pixels * ((cells - 1) / max(size - 1, 1)) - numbers), 0.0)
    return jnp.where((pixels >= 0) & (pixels < size), share, 0.0)

  return at(before) + (positions - before) * (at(before + 1) - at(before))


def _windows(images: jax.Array, pixels: jax.Array) -> jax.Array:
  """Returns the values of pixels and of their right neighbours [B, h, w, 2C].

  Args:
    images: [B, H, W, C].
    pixels: [B, h, w], indices y W + x, less than H W - 1.
  """
  channels = images.shape[-1]
  layout = jax.lax.GatherDimensionNumbers(offset_dims=(2,), collapsed_slice_dims=(), start_index_map=(0,))

  def read(values: jax.Array, starts: jax.Array) -> jax.Array:
    size = (2 * channels,)
    return jax.lax.gather(values, starts[..., None], layout, size, mode="promise_in_bounds")

  return jax.vmap(read)(images.reshape(images.shape[0], -1), pixels * channels)
