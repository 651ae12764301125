"""Non-negative matrix factorisation of features: the DFF baseline and an initial part basis.

Deep feature factorization (Collins, Achanta & Süsstrunk, ECCV 2018) approximates the features of all
positions in all images by X ≈ A W with A, W ≥ 0: row k of W describes part k, column k of A is its map.
"""

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.cluster import kmeans_plusplus

from scops_jax import geometry

# Float32 on every device: an accelerator's default rounds the factors of a product to bfloat16 or TF32.
_product = partial(jnp.matmul, precision=geometry.HIGHEST)

_TINY = 1e-12  # keeps 0 / 0 finite; far below any feature's square
_INNER_UPDATES = 3  # of a factor per product with the features
_PERCENTILE = 99  # of a factor's activations that becomes 1
_ACTIVE = 0.01  # activations below this fraction of a factor's largest count as none
_COMPARED = 8192  # positions on which starts of the clusters are compared
_MAX_ROUNDS = 100  # of Lloyd's algorithm, which ends earlier if no position changes its cluster
BACKGROUND = 0.03  # positions whose feature is shorter than this fraction of the longest are left out


class NMF(NamedTuple):
  """X ≈ activations · basis, all non-negative."""

  basis: chex.Array  # [K, C]
  activations: chex.Array  # [N, K]


def fit_nmf(key: chex.PRNGKey, features: chex.Array, *, num_parts: int, num_iterations: int) -> NMF:
  """Minimises ‖X - A W‖_F² over A, W ≥ 0 by multiplicative updates (Lee & Seung, NIPS 2001).

  A ← A ∘ (X Wᵀ) / (A W Wᵀ), W ← W ∘ (Aᵀ X) / (Aᵀ A W), from A, W = sqrt(mean(X) / K) |N(0, 1)|. The products
  X Wᵀ and Aᵀ X take nearly all the time, so each is used for three updates of its factor (Gillis & Glineur,
  Neural Computation 2012), which reaches the same error in a third of the time.

  Args:
    key: Of the random start.
    features: `[N, C]` float, non-negative; rows of zeros only cost time and change the start.
    num_parts: K.
    num_iterations: Rounds of three updates of A and three of W.

  Returns:
    The factors in float32. Their scales are arbitrary: see `scaled_basis`.

  Raises:
    ValueError: `features` is not of rank 2 or has negative or non-finite values, or a number is below 1.
  """
  _check(features, rank=2)
  if num_parts < 1 or num_iterations < 1:
    raise ValueError(f"num_parts and num_iterations must be at least 1, got {num_parts}, {num_iterations}")
  return _fit(key, features, num_iterations, num_parts=num_parts)


@partial(jax.jit, static_argnames="num_parts")
def _fit(key: chex.PRNGKey, x: chex.Array, num_iterations: chex.Numeric, *, num_parts: int) -> NMF:
  x = x.astype(jnp.float32)
  a_key, w_key = jax.random.split(key)
  scale = jnp.sqrt(x.mean() / num_parts)
  a = scale * jnp.abs(jax.random.normal(a_key, (x.shape[0], num_parts)))
  w = scale * jnp.abs(jax.random.normal(w_key, (num_parts, x.shape[1])))

  def iteration(_: int, factors: tuple[chex.Array, chex.Array]) -> tuple[chex.Array, chex.Array]:
    a, w = factors
    a = _update(a, _product(x, w.T), _product(w, w.T), _INNER_UPDATES)
    w = _update(w.T, _product(a.T, x).T, _product(a.T, a), _INNER_UPDATES).T
    return a, w

  a, w = jax.lax.fori_loop(0, num_iterations, iteration, (a, w))
  return NMF(basis=w, activations=a)


def _update(a: chex.Array, target: chex.Array, gram: chex.Array, times: chex.Numeric) -> chex.Array:
  """Updates a towards the minimum of ‖x - a w‖² over a ≥ 0, given target = x wᵀ and gram = w wᵀ."""
  return jax.lax.fori_loop(0, times, lambda _, a: a * target / (_product(a, gram) + _TINY), a)


@jax.jit
def activations(basis: chex.Array, features: chex.Array, *, num_iterations: chex.Numeric = 100) -> chex.Array:
  """Minimises ‖x - a W‖² over a ≥ 0 for every feature vector x and a fixed basis W, as `fit_nmf` does.

  The problem is convex, so the start does not matter.

  Args:
    basis: `[K, C]` float, non-negative.
    features: `[..., C]` float, non-negative.
    num_iterations: Updates.

  Returns:
    `[..., K]` float32; zeros where a vector is zero.

  Raises:
    ValueError: The numbers of channels differ.
  """
  if basis.ndim != 2 or basis.shape[-1] != features.shape[-1]:
    raise ValueError(f"basis must be [K, {features.shape[-1]}] like the features, got {basis.shape}")
  basis = basis.astype(jnp.float32)
  target = _product(features.astype(jnp.float32), basis.T)
  gram = _product(basis, basis.T)
  return _update(target / (gram.sum(axis=0) + _TINY), target, gram, num_iterations)


def scaled_basis(factors: NMF) -> chex.Array:
  """Returns the basis with each factor's scale such that its activations reach about 1.

  Multiplying W_k and dividing A_k by the same number does not change A W. SCOPS weights its basis by part
  probabilities, whose sum is at most 1. If the basis is too long, small probabilities suffice and the
  background gets the rest; if it is too short, even a probability of 1 can't reproduce the features. What
  becomes 1 is the 99th percentile of a factor's activations above 1 % of its largest: a few outliers do not
  set the scale.

  Args:
    factors: Of `fit_nmf`.

  Returns:
    `[K, C]` float32. A factor that is never active keeps its scale.
  """
  scales = [
    np.percentile(column[column > _ACTIVE * column.max()], _PERCENTILE) if column.any() else 1.0
    for column in np.asarray(factors.activations).T
  ]
  return factors.basis * jnp.asarray(scales, jnp.float32)[:, None]


def fit_dff(key: chex.PRNGKey, features: chex.Array, *, num_parts: int, num_iterations: int) -> chex.Array:
  """Fits the K part descriptors of DFF to feature maps.

  Args:
    key: Of the random start.
    features: `[N, h, w, C]` float, non-negative, already multiplied by the saliency (resized to h × w): the
      D·V that SCOPS sees. Background, positions whose feature is shorter than 3 % of the longest, is left
      out: it has a thousandth of the energy and would take half of the time.
    num_parts: K.
    num_iterations: As for `fit_nmf`.

  Returns:
    `[K, C]` float32, scaled by `scaled_basis`.

  Raises:
    ValueError: As `fit_nmf`, or every feature is 0.
  """
  rows = _foreground(features)
  return scaled_basis(fit_nmf(key, rows, num_parts=num_parts, num_iterations=num_iterations))


def cluster_basis(
  basis: chex.Array, features: chex.Array, *, num_iterations: int = 10, background: float = BACKGROUND
) -> chex.Array:
  """Refines a factorisation so that each position has one part: an initial basis for SCOPS.

  SCOPS explains a feature by R W, where R comes to choose about one part per position. A factor of an NMF
  that is only active together with others would win no position, and its part would die. Lloyd's algorithm
  (k-means) instead minimises ‖x - w_k‖² with one k per position, where the origin is the background. It
  starts from the most active factor of each position.

  Args:
    basis: `[K, C]`, of `fit_dff`.
    features: `[N, h, w, C]`, as for `fit_dff`.
    num_iterations: Assignments; each is followed by new means.
    background: Positions whose feature is shorter than this fraction of the longest are left out. With
      features of one length 0.7 leaves out the rim of the object, where the saliency is soft and D·V is
      short: it would become a cluster of its own.

  Returns:
    `[K, C]` float32, the clusters' means, non-negative. A cluster that loses all positions keeps its mean.

  Raises:
    ValueError: As `fit_dff`, or the numbers of channels differ.
  """
  rows = _foreground(features, background)
  strongest = jnp.argmax(activations(basis, rows), axis=-1)
  return _cluster(jnp.asarray(basis, jnp.float32), rows, strongest, num_iterations)


def kmeans_basis(
  key: chex.PRNGKey,
  features: chex.Array,
  *,
  num_parts: int,
  num_starts: int = 20,
  background: float = BACKGROUND,
) -> chex.Array:
  """Clusters features as `cluster_basis` does, from the best of several starts instead of a factorisation.

  The starts are k-means++'s (Arthur & Vassilvitskii, SODA 2007). That with the smallest error is kept, so
  that runs with other seeds come to much the same parts.

  Args:
    key: Of the starts.
    features: `[N, h, w, C]`, as for `fit_dff`.
    num_parts: K.
    num_starts: They are compared on 8 192 random positions.
    background: As for `cluster_basis`.

  Returns:
    `[K, C]` float32, the clusters' means, non-negative.

  Raises:
    ValueError: As `fit_dff`, or there are fewer than K positions.
  """
  rows = _foreground(features, background).astype(np.float32)
  if len(rows) < num_parts:
    raise ValueError(f"num_parts={num_parts} is more than the {len(rows)} positions of the object")
  random = np.random.RandomState(np.asarray(jax.random.key_data(key)))
  some = rows if len(rows) <= _COMPARED else rows[random.choice(len(rows), _COMPARED, replace=False)]
  starts = (kmeans_plusplus(some, num_parts, random_state=random)[0] for _ in range(num_starts))
  found = [_converge(start, some) for start in starts]
  best = min(found, key=lambda clusters: float(clusters.error))
  return _converge(best.means, rows).means


class _Clusters(NamedTuple):
  means: chex.Array  # [K, C]; a cluster that loses all positions keeps its mean
  labels: chex.Array  # [n], K is the origin
  error: chex.Array  # mean of ‖x - w_k‖² - ‖x‖²
  changed: chex.Array  # whether a label did
  count: chex.Array  # of iterations


@jax.jit
def _converge(means: chex.Array, x: chex.Array) -> _Clusters:
  """Repeats Lloyd's iteration until no label changes."""

  def iterate(last: _Clusters) -> _Clusters:
    labels, error = _assign(last.means, x)
    changed = (labels != last.labels).any()
    return _Clusters(_means(last.means, x, labels), labels, error, changed, last.count + 1)

  none = jnp.full(len(x), -1)
  start = _Clusters(jnp.asarray(means), none, jnp.inf, jnp.asarray(True), jnp.asarray(0))
  return jax.lax.while_loop(lambda last: last.changed & (last.count < _MAX_ROUNDS), iterate, start)


@jax.jit
def _cluster(w: chex.Array, x: chex.Array, labels: chex.Array, num_iterations: chex.Numeric) -> chex.Array:
  x = x.astype(jnp.float32)
  return jax.lax.fori_loop(
    0, num_iterations, lambda _, w: _means(w, x, _assign(w, x)[0]), _means(w, x, labels)
  )


def _assign(w: chex.Array, x: chex.Array) -> tuple[chex.Array, chex.Array]:
  """Returns the nearest row for each position, K for the origin, and the mean of ‖x - w‖² - ‖x‖²."""
  distances = jnp.square(w).sum(axis=1) - 2 * _product(x, w.T)
  distances = jnp.pad(distances, ((0, 0), (0, 1)))
  return jnp.argmin(distances, axis=1), distances.min(axis=1).mean()


def _means(w: chex.Array, x: chex.Array, labels: chex.Array) -> chex.Array:
  # Label K, the background, has no row.
  members = jax.nn.one_hot(labels, w.shape[0], dtype=jnp.float32)
  sizes = members.sum(axis=0)[:, None]
  return jnp.where(sizes > 0, _product(members.T, x) / jnp.maximum(sizes, 1.0), w)


def _foreground(features: chex.Array, background: float = BACKGROUND) -> np.ndarray:
  """Returns the features `[n, C]` that are not background (see `fit_dff`)."""
  _check(features, rank=4)
  rows = np.asarray(features).reshape(-1, features.shape[-1])
  lengths = np.sqrt(np.einsum("nc,nc->n", rows, rows))
  rows = rows[lengths > background * lengths.max()]
  if not len(rows):
    raise ValueError("every feature is 0: nothing to factorise (is the saliency empty?)")
  return rows


@partial(jax.jit, static_argnames=("height", "width"))
def dff_maps(
  basis: chex.Array, features: chex.Array, *, height: int, width: int, num_iterations: chex.Numeric = 100
) -> chex.Array:
  """Returns the part maps of images: their activations, resized to the images' size.

  Args:
    basis: `[K, C]`, of `fit_dff`.
    features: `[B, h, w, C]` as for `fit_dff`.
    height: Of the images, pixels.
    width: Of the images, pixels.
    num_iterations: As for `activations`.

  Returns:
    `[B, height, width, K]` float32, non-negative, bilinear with corners aligned.
  """
  maps = activations(basis, features, num_iterations=num_iterations)
  return geometry.resize_bilinear(maps, height, width)


def map_centers(maps: chex.Array) -> chex.Array:
  """Returns the mean position of every map, weighted by its values: Σ_p p m(p) / Σ_p m(p).

  Args:
    maps: `[B, H, W, K]` float, non-negative.

  Returns:
    `[B, K, 2]` (x, y) in [-1, 1], corners aligned; (0, 0), the image's centre, for a map of zeros.
  """
  if maps.ndim != 4:
    raise ValueError(f"maps must be [B, H, W, K], got shape {maps.shape}")
  grid = geometry.coordinate_grid(*maps.shape[1:3])
  mass = maps.sum(axis=(1, 2))
  moments = jnp.einsum("bhwk,hwc->bkc", maps, grid, precision=geometry.HIGHEST)
  return moments / jnp.where(mass > 0, mass, 1.0)[..., None]


def _check(features: chex.Array, *, rank: int) -> None:
  if features.ndim != rank:
    raise ValueError(f"features must be of rank {rank}, got shape {features.shape}")
  smallest, largest = float(features.min()), float(features.max())
  if not (smallest >= 0 and largest < float("inf")):
    raise ValueError(f"features must be finite and non-negative, got {smallest} .. {largest}")
