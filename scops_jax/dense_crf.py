"""Fully connected CRF that sharpens part maps along an image's edges (Krähenbühl & Koltun, NeurIPS 2011).

Mean-field inference with a smoothness and an appearance kernel and Potts compatibility:

  Q_i(l) ∝ p_i(l) exp( w_s Σ_j k̃_s(i, j) Q_j(l) + w_a Σ_j k̃_a(i, j) Q_j(l) ),
  k_s = exp(-|x_i - x_j|² / 2σ_s²),   k_a = exp(-|x_i - x_j|² / 2σ_a² - |I_i - I_j|² / 2σ_c²),

each normalised symmetrically, k̃ = D^-½ k D^-½ with D = diag(Σ_j k(i, j)); the sums include j = i, as in the
authors' implementation. The smoothness kernel is a truncated separable convolution. The appearance kernel is
the product of a spatial and a colour part, both of low rank:

* the spatial part sums over tiles of at most 0.4 σ_a and interpolates bilinearly between their corners, with
  the least-squares fit to the Gaussian in between;
* the colour part is a Nyström approximation from `num_colors` of the image's own colours, picked by randomly
  pivoted Cholesky (Chen, Epperly, Tropp & Webber, arXiv 2207.06503). Then every k_a(i, i) is raised to 1: a
  pixel whose colour is not represented keeps its unary and the smoothness term.

Splatting to and slicing from the (corner, colour) nodes are then batched matrix products of fixed shapes,
which are fast on CPUs and accelerators; the paper's permutohedral lattice needs a hash table. No maintained
library installs as a wheel: pydensecrf and its forks compile C++, the others need PyTorch.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scops_jax.geometry import HIGHEST, accumulation_dtype, check_part_maps, interpolation_weights
from scops_jax.kernels.platforms import target

# The spatial standard deviations are pixels of an image whose longer side is this, as in PASCAL VOC.
REFERENCE_SIZE = 500
_MIN_PROBABILITY = 1e-5  # smaller ones are raised to it, as in pydensecrf's unary_from_softmax
_TRUNCATION = 4.0  # standard deviations; pixels farther away weigh less than e^-8
_TILE = 0.4  # largest side of a tile, standard deviations
_NUM_CANDIDATES = 1024  # about the most pixels from which representative colours are picked
_MIN_RESIDUAL = 1e-2  # a colour that is represented better than this is not picked
_CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # of a tile, (row, column)

Filter = Callable[[chex.Array], jax.Array]  # [B, C, H, W] → the same


@functools.partial(
  jax.jit,
  static_argnames=(
    "num_iterations",
    "smoothness_weight",
    "smoothness_sigma",
    "appearance_weight",
    "appearance_sigma",
    "color_sigma",
    "num_colors",
  ),
)
def dense_crf(
  probs: chex.Array,
  images: chex.Array,
  *,
  num_iterations: int = 5,
  smoothness_weight: float = 3.0,
  smoothness_sigma: float = 3.0,
  appearance_weight: float = 10.0,
  appearance_sigma: float = 80.0,
  color_sigma: float = 13.0,
  num_colors: int = 64,
) -> jax.Array:
  """Returns the mean-field marginals of the fully connected CRF with unaries -log p (module docstring).

  The defaults are those of the example in pydensecrf's README. Spatial standard deviations are in pixels of
  an image whose longer side is 500, as in PASCAL VOC, and scale with the image: at 128 × 128 the defaults are
  0.77 and 20.5 pixels.

  Args:
    probs: [B, H, W, K+1], probabilities, background at channel 0; floored at 1e-5.
    images: [B, H, W, 3], RGB, 0..255, floating point or uint8.
    num_iterations: mean-field updates, at least 1.
    smoothness_weight: w_s, not negative.
    smoothness_sigma: σ_s, pixels at the reference size.
    appearance_weight: w_a, not negative.
    appearance_sigma: σ_a, pixels at the reference size.
    color_sigma: σ_c, grey levels.
    num_colors: colours of the Nyström approximation; more are slower and more exact.

  Returns:
    [B, H, W, K+1] of probs' dtype, normalised.

  Raises:
    TypeError, ValueError: an array's dtype or shape differs, or an option is out of range.
  """
  check_part_maps("probs", probs)
  is_image = images.dtype == jnp.uint8 or jnp.issubdtype(images.dtype, jnp.floating)
  if images.shape != (*probs.shape[:3], 3) or not is_image:
    raise ValueError(
      f"images must be uint8 or floating-point [B, H, W, 3] with the B, H, W of probs {probs.shape}, "
      f"got {images.dtype} {images.shape}."
    )
  if min(num_iterations, num_colors) < 1:
    raise ValueError(f"num_iterations={num_iterations} and num_colors={num_colors} must be at least 1.")
  if min(smoothness_weight, appearance_weight) < 0:
    raise ValueError(f"the weights {smoothness_weight} and {appearance_weight} must not be negative.")
  if min(smoothness_sigma, appearance_sigma, color_sigma) <= 0:
    raise ValueError(
      f"the standard deviations {smoothness_sigma}, {appearance_sigma} and {color_sigma} must be positive."
    )
  dtype = accumulation_dtype(probs)
  scale = max(probs.shape[1:3]) / REFERENCE_SIZE

  def infer(unary: chex.Array, colors: chex.Array) -> jax.Array:
    smooth = _normalized(functools.partial(_blur, sigma=smoothness_sigma * scale), unary)
    kernel = _appearance_kernel(colors, sigma=appearance_sigma * scale, num_colors=num_colors)
    appearance = _normalized(kernel, unary)

    def update(_: int, marginals: chex.Array) -> jax.Array:
      messages = smoothness_weight * smooth(marginals) + appearance_weight * appearance(marginals)
      return jax.nn.softmax(unary + messages, axis=1)

    return jax.lax.fori_loop(0, num_iterations, update, jax.nn.softmax(unary, axis=1))

  # Channels first, because a CPU vectorises over the last axis.
  unary = jnp.moveaxis(jnp.log(jnp.maximum(probs.astype(dtype), _MIN_PROBABILITY)), -1, 1)
  colors = jnp.moveaxis(images.astype(dtype) / color_sigma, -1, 1)
  # A few images at a time stay in a CPU's cache, many fill an accelerator; their number divides the batch.
  most = 4 if target() == "cpu" else 32
  chunk = next(size for size in range(most, 0, -1) if len(probs) % size == 0)
  chunks = [x.reshape(-1, chunk, *x.shape[1:]) for x in (unary, colors)]
  marginals = jax.lax.map(lambda arrays: infer(*arrays), chunks).reshape(unary.shape)
  return jnp.moveaxis(marginals, 1, -1).astype(probs.dtype)


def _normalized(kernel: Filter, like: chex.Array) -> Filter:
  """Returns D^-½ k D^-½ as a function, where D is the response of `kernel` to ones; `like` [B, C, H, W]."""
  # k(i, i) = 1, so an exact D is never smaller.
  scale = jax.lax.rsqrt(jnp.maximum(kernel(jnp.ones_like(like[:, :1])), 1.0))
  return lambda values: scale * kernel(scale * values)


def _blur(values: chex.Array, *, sigma: float) -> jax.Array:
  """Sums exp(-d² / 2σ²) times the neighbours of [B, C, H, W], d in pixels up to 4 σ along each axis."""
  for axis in (2, 3):
    size = values.shape[axis]
    radius = min(math.ceil(_TRUNCATION * sigma), size - 1)
    padded = jnp.pad(values, [(radius, radius) if i == axis else (0, 0) for i in range(values.ndim)])
    # Shifted sums: a grouped convolution is many times slower on CPU.
    values = sum(
      math.exp(-0.5 * (offset / sigma) ** 2)
      * jax.lax.slice_in_dim(padded, radius + offset, radius + offset + size, axis=axis)
      for offset in range(-radius, radius + 1)
    )
  return values


class _Axis(NamedTuple):
  """The Gaussian of one image axis, A Γ Mᵀ: M sums over tiles, A interpolates between their corners."""

  tiles: int
  side: int  # pixels of a tile; the last one may lie partly outside the image
  corner_weights: np.ndarray  # A of one tile: [2 corners, side]
  kernel: np.ndarray  # Γ [tiles + 1, tiles]
  diagonal: np.ndarray  # [size] of A Γ Mᵀ, about 1


@functools.lru_cache(maxsize=64)
def _tiled_axis(size: int, sigma: float) -> _Axis:
  """Returns the tiles of an axis of `size` pixels, with Γ = A⁺ G M⁺ᵀ, closest to the Gaussian G."""
  side = max(1, min(size, math.floor(_TILE * sigma)))
  tiles = math.ceil(size / side)
  pixels = np.arange(size)
  positions = (pixels + 0.5) / side  # tile t spans t .. t + 1
  interpolation = interpolation_weights(positions, tiles + 1)
  membership = (np.floor(positions)[:, None] == np.arange(tiles)).astype(np.float64)
  gaussian = np.exp(-0.5 * ((pixels[:, None] - pixels) / sigma) ** 2)
  # A corner with hardly any pixels would otherwise get a huge coefficient.
  kernel = np.linalg.pinv(interpolation, rcond=1e-2) @ gaussian @ np.linalg.pinv(membership).T
  diagonal = np.einsum("pi,ij,pj->p", interpolation, kernel, membership)
  offsets = (np.arange(side) + 0.5) / side
  return _Axis(tiles, side, np.stack([1.0 - offsets, offsets]), kernel, diagonal)


def _appearance_kernel(colors: chex.Array, *, sigma: float, num_colors: int) -> Filter:
  """Returns k_a as a function, for colours [B, 3, H, W] in units of σ_c."""
  batch, _, height, width = colors.shape
  rows, columns = _tiled_axis(height, sigma), _tiled_axis(width, sigma)
  dtype = colors.dtype
  # Written to memory, or XLA would reorder again for each of the num_colors.
  tiled = jax.lax.optimization_barrier(jnp.swapaxes(_to_tiles(colors, rows, columns), -1, -2))
  stride = math.ceil(math.sqrt(height * width / _NUM_CANDIDATES))
  candidates = colors[:, :, ::stride, ::stride].reshape(batch, 3, -1)
  basis = _color_basis(tiled.reshape(batch, -1, 3), jnp.swapaxes(candidates, 1, 2), num_colors)
  # In both orders, so that no product below has to transpose it.
  pixels_first = basis.reshape(*tiled.shape[:-1], -1)
  colors_first = jnp.swapaxes(pixels_first, -1, -2)
  squares = _from_tiles(jnp.sum(pixels_first**2, axis=-1)[:, :, :, None], rows, columns)
  diagonal = jnp.asarray(np.outer(rows.diagonal, columns.diagonal), dtype)
  residual = jnp.maximum(0.0, 1.0 - diagonal * squares)
  # [four corners, pixels of a tile], the corners in the order of _CORNERS.
  weights = np.einsum("ay,bx->abyx", rows.corner_weights, columns.corner_weights)
  weights = jnp.asarray(weights.reshape(len(_CORNERS), -1), dtype)
  # Repeated along the axes they do not depend on: with these as batch axes the products transpose nothing.
  row_kernel = jnp.broadcast_to(jnp.asarray(rows.kernel, dtype), (batch, *rows.kernel.shape))
  column_kernel = jnp.broadcast_to(
    jnp.asarray(columns.kernel, dtype), (batch, rows.tiles + 1, *columns.kernel.shape)
  )

  def apply(values: chex.Array) -> jax.Array:
    # y, x: tiles; Y, X: their corners; p: pixels of a tile; c: channels of `values`; m: colours.
    tiled = _to_tiles(values, rows, columns)
    nodes = jnp.einsum("byxcp,byxpm->byxcm", tiled, pixels_first, precision=HIGHEST)
    nodes = jnp.einsum("bYy,byxcm->bYxcm", row_kernel, nodes, precision=HIGHEST)
    nodes = jnp.einsum("bYXx,bYxcm->bYXcm", column_kernel, nodes, precision=HIGHEST)
    corners = jnp.concatenate(
      [nodes[:, row : row + rows.tiles, column : column + columns.tiles] for row, column in _CORNERS], axis=3
    )
    sliced = jnp.einsum("byxcm,byxmp->byxcp", corners, colors_first, precision=HIGHEST)
    parts = jnp.split(sliced, len(_CORNERS), axis=3)
    # Added one by one: a reduction over the corners is many times slower on CPU.
    interpolated = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    return _from_tiles(interpolated, rows, columns) + residual * values

  return apply


def _to_tiles(x: chex.Array, rows: _Axis, columns: _Axis) -> jax.Array:
  """[B, C, H, W] → [B, tile rows, tile columns, C, pixels of a tile], zeros outside the image."""
  batch, channels, height, width = x.shape
  x = jnp.pad(
    x, [(0, 0), (0, 0), (0, rows.tiles * rows.side - height), (0, columns.tiles * columns.side - width)]
  )
  x = x.reshape(batch, channels, rows.tiles, rows.side, columns.tiles, columns.side)
  return x.transpose(0, 2, 4, 1, 3, 5).reshape(batch, rows.tiles, columns.tiles, channels, -1)


def _from_tiles(x: chex.Array, rows: _Axis, columns: _Axis) -> jax.Array:
  """Undoes `_to_tiles`."""
  batch, channels = x.shape[0], x.shape[3]
  x = x.reshape(batch, rows.tiles, columns.tiles, channels, rows.side, columns.side).transpose(
    0, 3, 1, 4, 2, 5
  )
  x = x.reshape(batch, channels, rows.tiles * rows.side, columns.tiles * columns.side)
  return x[:, :, : len(rows.diagonal), : len(columns.diagonal)]


def _color_kernel(colors: chex.Array, others: chex.Array) -> jax.Array:
  """Returns exp(-|I_i - I_j|² / 2), [..., i, j] of colours [..., i, 3] and [..., j, 3]."""
  # The expanded square would lose digits to cancellation in float32.
  squared = sum((colors[..., :, None, i] - others[..., None, :, i]) ** 2 for i in range(3))
  return jnp.exp(-0.5 * squared)


def _color_basis(colors: chex.Array, candidates: chex.Array, num_colors: int) -> jax.Array:
  """Returns φ [B, N, num_colors] with exp(-|I_i - I_j|² / 2) ≈ φ_i · φ_j, for colours [B, N, 3]."""
  picked, factor, used = jax.vmap(functools.partial(_pick_colors, count=num_colors))(candidates)
  identity = jnp.broadcast_to(jnp.eye(num_colors, dtype=colors.dtype), factor.shape)
  whitening = jax.lax.linalg.triangular_solve(factor, identity, left_side=True, lower=True)
  whitening = jnp.where(used[:, :, None], whitening, 0.0)
  return jnp.einsum("bnj,bmj->bnm", _color_kernel(colors, picked), whitening, precision=HIGHEST)


def _pick_colors(colors: chex.Array, *, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Picks representative colours by randomly pivoted Cholesky: each with the probability of its residual.

  Args:
    colors: [N, 3], in standard deviations.
    count: M.

  Returns:
    The colours [M, 3], the lower Cholesky factor [M, M] of their kernel, and which of them are in use [M].
    Colours are picked until every candidate is represented; the factor's rows after that have diagonal 1.
  """
  size, dtype = len(colors), colors.dtype
  # The same draws for every image, so that its result does not depend on the batch.
  noise = jax.random.gumbel(jax.random.key(0), (count, size), dtype)

  def pick(m: int, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    factor, residual, pivots = state
    score = jnp.where(residual > _MIN_RESIDUAL, jnp.log(residual) + noise[m], -jnp.inf)
    pivot = jnp.argmax(score)
    column = _color_kernel(colors, colors[pivot][None])[:, 0]
    column -= jnp.einsum("nm,m->n", factor, factor[pivot], precision=HIGHEST)
    column = jnp.where(residual[pivot] > _MIN_RESIDUAL, column * jax.lax.rsqrt(residual[pivot]), 0.0)
    residual = jnp.maximum(0.0, residual - column**2).at[pivot].set(0.0)
    return factor.at[:, m].set(column), residual, pivots.at[m].set(pivot)

  start = (jnp.zeros((size, count), dtype), jnp.ones(size, dtype), jnp.zeros(count, jnp.int32))
  factor, _, pivots = jax.lax.fori_loop(0, count, pick, start)
  factor = jnp.tril(factor[pivots])
  used = jnp.diagonal(factor) > 0
  return colors[pivots], factor + jnp.diag(jnp.where(used, 0.0, 1.0).astype(dtype)), used
