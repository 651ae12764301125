"""Coordinates in [-1, 1], soft part centres and bilinear resizing, all in one align-corners frame.

-1 is the centre of an axis's first pixel and +1 the centre of its last; points are (x, y), x along the width.

This is the frame of the network's square of S × S pixels, which an original of W × H pixels is resized to.
Resizing, as Pillow does it, keeps the outer edges of the pixels: pixel x of the original lies at x' in the
square, (x + 1/2) / W = (x' + 1/2) / S. `points_from_pixels` and `pixels_from_points` convert between the
original's pixels and points; whatever is read in pixels or reported in pixels goes through them.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

_TOLERANCE = 0.01  # of values and of sums over channels; a bfloat16 is off by at most 0.004
_CHANNELS_LAST = "take jnp.moveaxis(maps, 1, -1)"
HIGHEST = jax.lax.Precision.HIGHEST  # float32 products in float32; GPUs and TPUs would round the factors


def check_array(name: str, array: chex.Array, layout: str, shape: tuple[int | None, ...]) -> None:
  """Raises unless `array` is floating point and has `shape`, in which None stands for any size.

  Raises:
    TypeError: `array` is no array, such as a list or None, or its dtype is not floating point.
    ValueError: the shape differs.
  """
  if not isinstance(array, jax.Array | np.ndarray):
    raise TypeError(f"{name} must be a floating-point array {layout}, got {type(array).__name__}.")
  if not jnp.issubdtype(array.dtype, jnp.floating):
    raise TypeError(f"{name} must be a floating-point array {layout}, got dtype {array.dtype}.")
  if len(array.shape) != len(shape) or any(
    n not in (None, m) for n, m in zip(shape, array.shape, strict=True)
  ):
    sizes = ", ".join("any" if size is None else str(size) for size in shape)
    raise ValueError(f"{name} must be {layout} with sizes ({sizes}), got shape {array.shape}.")


@jax.jit
def _extremes(maps: jax.Array) -> jax.Array:
  """Returns the least and greatest value, and how far sums over axis 3 and over axis 1 are from 1 at most."""
  maps = maps.astype(jnp.float32)
  return jnp.stack([maps.min(), maps.max(), *(jnp.abs(maps.sum(axis=axis) - 1).max() for axis in (3, 1))])


def _known_extremes(maps: chex.Array) -> list[float] | None:
  """Returns `_extremes` of [B, H, W] or [B, H, W, C], None where the values are not known or there are none.

  They are not known under jit, grad and vmap, and where other hosts hold some of them.
  """
  if isinstance(maps, jax.core.Tracer) or not maps.size or not getattr(maps, "is_fully_addressable", True):
    return None
  with jax.ensure_compile_time_eval():  # arrays that a function under jit closes over are known too
    return np.asarray(_extremes(jnp.reshape(maps, (*maps.shape, 1)[:4]))).tolist()


def check_probabilities(name: str, probs: chex.Array) -> None:
  """Raises where part maps [B, H, W, K+1] can't be probabilities with the channels last, if values are known.

  They are where this is not called under jit, grad or vmap; there the check does nothing and costs nothing.
  Values must lie in [0, 1] up to 0.01. They need not sum to 1, but if they do over axis 1 and do not over the
  last axis, the maps are [B, K+1, H, W].

  Raises:
    ValueError: values are NaN or outside [0, 1], as logits are, or the channels are not last.
  """
  if (extremes := _known_extremes(probs)) is None:
    return
  low, high, last, second = extremes
  if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
    raise ValueError(
      f"{name} must be probabilities in [0, 1], got values from {low:.3g} to {high:.3g}: of logits take "
      "jax.nn.softmax first."
    )
  if second <= _TOLERANCE < last:
    raise ValueError(
      f"{name} of shape {probs.shape} sum to 1 over axis 1, so they are [B, K+1, H, W]: {_CHANNELS_LAST}."
    )


def check_logits(name: str, logits: chex.Array) -> None:
  """Raises where part maps [B, H, W, K+1] can't be logits with the channels last, if values are known.

  As with `check_probabilities`, nothing is checked under jit, grad or vmap. Maps without negative values that
  sum to 1 at every pixel, over either axis, are probabilities. Maps are [B, K+1, H, W] if axis 1 is at most
  half as long as each of the last two, which are at least 32: [B, 9, 96, 128].

  Raises:
    ValueError: values are NaN, infinity or those of probabilities, or the channels are not last.
  """
  if (extremes := _known_extremes(logits)) is None:
    return
  low, high, last, second = extremes
  if np.isnan(low) or high == np.inf:
    raise ValueError(f"{name} holds {'NaN' if np.isnan(low) else 'infinity'}.")
  if low >= 0 and min(last, second) <= _TOLERANCE:
    raise ValueError(
      f"{name} must be logits, but has no negative value and sums to 1 at every pixel, as probabilities do: "
      "give what jax.nn.softmax is applied to, or the logarithm of the probabilities plus a small number."
    )
  _, height, *others = logits.shape
  if min(others) >= 32 and 2 * height <= min(others):
    raise ValueError(
      f"{name} of shape {logits.shape} looks like [B, K+1, H, W], not [B, H, W, K+1]: {_CHANNELS_LAST}."
    )


def check_saliency(saliency: chex.Array, shape: tuple[int, ...]) -> None:
  """Raises unless a saliency map has this shape [B, H, W] and lies in [0, 1] up to 0.01, if values are known.

  Raises:
    TypeError: it is no floating-point array.
    ValueError: the shape differs, or values are NaN or outside [0, 1], as those of an image file are.
  """
  check_array("saliency", saliency, "[B, H, W] as the part maps", shape)
  if (extremes := _known_extremes(saliency)) is None:
    return
  low, high, *_ = extremes
  if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
    raise ValueError(
      f"saliency must lie in [0, 1], got values from {low:.3g} to {high:.3g}: divide a map in 0..255 by 255."
    )


def accumulation_dtype(*arrays: chex.Array) -> jnp.dtype:
  """Returns the dtype to compute in: the arrays' common one, but at least float32."""
  return jnp.result_type(jnp.float32, *arrays)


def axis_coordinates(size: int) -> np.ndarray:
  """Returns the coordinates of an axis's pixel centres, float64 [size]; a single pixel lies at 0."""
  return np.linspace(-1.0, 1.0, size) if size > 1 else np.zeros(1)


def coordinate_grid(height: int, width: int) -> jax.Array:
  """Returns the pixel centres' coordinates: (x, y) = (2j / (W - 1) - 1, 2i / (H - 1) - 1) at row i, column j.

  Args:
    height: H, pixels, at least 1.
    width: W, pixels, at least 1.

  Returns:
    [H, W, 2] in [-1, 1]; an axis of one pixel has coordinate 0.

  Raises:
    ValueError: a size is below 1.

  Differs from the release: its coordinates are 2i / N - 1, which is not the frame of its own warps, and are
  transposed when H != W.
  """
  if height < 1 or width < 1:
    raise ValueError(f"height and width must be at least 1, got {height} and {width}.")
  return jnp.stack(jnp.meshgrid(axis_coordinates(width), axis_coordinates(height)), axis=-1)


def points_from_pixels(
  pixels: np.ndarray, *, width: int, height: int, square: int, dtype: np.typing.DTypeLike = np.float64
) -> np.ndarray:
  """Returns where pixels of an original lie in the network's frame: 2 x' / (S - 1) - 1.

  Args:
    pixels: [..., 2] (x, y) in the original; an integer is a pixel's centre, (0, 0) that of the top left one.
    width: W, of the original, pixels.
    height: H, of the original, pixels.
    square: S, side of the network's square, pixels, at least 2.
    dtype: of the result and of the computation.

  Returns:
    [..., 2]. In an original larger than the square the outer pixels' centres lie slightly beyond -1 and 1.
  """
  scale = square / np.asarray([width, height], dtype)
  return 2 * (np.asarray(pixels, dtype) * scale + (scale - 1) / 2) / np.asarray(square - 1, dtype) - 1


def pixels_from_points(points: np.ndarray, *, width: int, height: int, square: int) -> np.ndarray:
  """Returns which pixels of an original points [..., 2] are: the inverse of `points_from_pixels`, float64."""
  scale = square / np.asarray([width, height], np.float64)
  return ((np.asarray(points, np.float64) + 1) / 2 * (square - 1) - (scale - 1) / 2) / scale


def check_part_maps(name: str, maps: chex.Array) -> None:
  """Raises TypeError or ValueError unless `maps` is floating-point [B, H, W, K+1] with K >= 1."""
  check_array(name, maps, "[B, H, W, K+1]", (None, None, None, None))
  if maps.shape[-1] < 2:
    raise ValueError(f"{name} must be [B, H, W, K+1] with K >= 1 parts, got shape {maps.shape}.")


def channels_first(maps: chex.Array) -> jax.Array:
  """Returns maps [B, H, W, C] as [B, C, H, W].

  Losses compute in this layout: a CPU's vectors then hold neighbouring pixels, of which there are more than
  channels. Under jit the transpositions of one function and the next cancel.
  """
  return jnp.moveaxis(maps, -1, 1)


def part_probabilities(logits: chex.Array) -> jax.Array:
  """Returns the softmax over the last axis of part maps [B, H, W, K+1]: probabilities R, of logits' dtype."""
  check_array("logits", logits, "[B, H, W, K+1]", (None, None, None, None))
  check_logits("logits", logits)
  return jnp.moveaxis(jax.nn.softmax(channels_first(logits), axis=1), 1, -1)


def part_marginals(probs: chex.Array, *, epsilon: float) -> tuple[jax.Array, jax.Array]:
  """Sums each part's normalised density over the rows and over the columns.

  r_k = (R_k + epsilon) / Σ_p (R_k(p) + epsilon) for the parts k = 1..K. The sums give all moments of r_k in x
  or in y alone.

  Args:
    probs: [B, H, W, K+1], softmax probabilities, background at channel 0.
    epsilon: added to every pixel.

  Returns:
    Σ_y r [B, K, W] and Σ_x r [B, K, H]; zeros for a part without any mass.

  Raises:
    TypeError, ValueError: `probs` is not a floating-point array of four axes and K >= 1.
  """
  check_part_maps("probs", probs)
  check_probabilities("probs", probs)
  height, width = probs.shape[1:3]
  parts = channels_first(probs)[:, 1:].astype(accumulation_dtype(probs))
  over_rows = parts.sum(axis=2) + height * epsilon
  over_columns = parts.sum(axis=3) + width * epsilon
  mass = over_rows.sum(axis=2, keepdims=True)
  mass = jnp.where(mass > 0, mass, 1.0)
  return over_rows / mass, over_columns / mass


def part_centers(probs: chex.Array, *, epsilon: float = 1e-3) -> jax.Array:
  """Returns the centre of mass of each part, c_k = Σ_p p (R_k(p) + ε) / Σ_p (R_k(p) + ε) (paper, equation 1).

  Args:
    probs: [B, H, W, K+1], softmax probabilities, background at channel 0.
    epsilon: added to every pixel, so that an empty part's gradient is finite; evaluation uses 0.

  Returns:
    [B, K, 2], (x, y) in [-1, 1], at least float32; the image's middle for a part without any mass.

  Raises:
    TypeError, ValueError: `probs` is not a floating-point array of four axes and K >= 1.

  Differs from the release: x_here + 1 = (x_release + 1) W / (W - 1), see `coordinate_grid`.
  """
  over_rows, over_columns = part_marginals(probs, epsilon=epsilon)
  dtype = over_rows.dtype
  x = jnp.asarray(axis_coordinates(over_rows.shape[2]), dtype)
  y = jnp.asarray(axis_coordinates(over_columns.shape[2]), dtype)
  return jnp.stack(
    [jnp.matmul(over_rows, x, precision=HIGHEST), jnp.matmul(over_columns, y, precision=HIGHEST)], axis=-1
  )


def interpolation_positions(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns where the cells of a resized axis lie between the old ones, with aligned corners.

  New cell o lies at o (size - 1) / (new_size - 1), a single new cell at 0.

  Args:
    size: of the old axis, cells, at least 1.
    new_size: of the new axis, at least 1.

  Returns:
    For each new cell the old cell before it, int [new_size], at most size - 2 so that there is a next one
    (0 if size is 1), and its distance from there, float64 [new_size] in [0, 1].
  """
  positions = np.arange(new_size) * ((size - 1) / max(new_size - 1, 1))
  cells = np.clip(positions.astype(np.intp), 0, max(size - 2, 0))
  return cells, positions - cells


def interpolation_weights(positions: np.ndarray, size: int) -> np.ndarray:
  """Returns the matrix [P, size], float64, that interpolates an axis linearly at `positions` [P].

  Positions are in cells, from 0 to size - 1: a row has at most two entries that are not 0.
  """
  return np.maximum(0.0, 1.0 - np.abs(positions[:, None] - np.arange(size)))


@functools.lru_cache(maxsize=64)
def interpolation_matrix(size: int, new_size: int) -> np.ndarray:
  """Returns the resizing of an axis with aligned corners as a matrix, float64 [new_size, size], read-only."""
  cells, fractions = interpolation_positions(size, new_size)
  matrix = interpolation_weights(cells + fractions, size)
  matrix.flags.writeable = False
  return matrix


def resize_bilinear(x: chex.Array, height: int, width: int) -> jax.Array:
  """Resizes images or maps bilinearly with aligned corners: the first and last pixels' centres stay in place.

  Args:
    x: [B, h, w, C].
    height: H, pixels, at least 1.
    width: W, pixels, at least 1.

  Returns:
    [B, H, W, C] of x's dtype.

  Raises:
    TypeError, ValueError: `x` is not a floating-point array of four axes, or a size is below 1.
  """
  check_array("x", x, "[B, h, w, C]", (None, None, None, None))
  if height < 1 or width < 1:
    raise ValueError(f"height and width must be at least 1, got {height} and {width}.")
  dtype = accumulation_dtype(x)
  rows = jnp.asarray(interpolation_matrix(x.shape[1], height), dtype)
  columns = jnp.asarray(interpolation_matrix(x.shape[2], width), dtype)
  resized = jnp.einsum("Hh,Ww,bhwc->bHWc", rows, columns, x.astype(dtype), precision=HIGHEST)
  return resized.astype(x.dtype)
