"""Parts without SCOPS's training, on the same images and features: what `evaluate` compares it with.

A baseline labels an image from the frozen reference's features V and the saliency map, and every measure of
`evaluate` applies to it. All but the mean shape see the saliency of the test images, as DFF does in the
papers: the foreground is where it is at least one half. SCOPS sees the images alone.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from sklearn.cluster import KMeans

from scops_jax import geometry
from scops_jax.evaluation import factorization
from scops_jax.train_step import stream_key

Batch = Mapping[str, Any]
Features = Callable[[Batch], np.ndarray]  # a batch → V [B, h, w, C] float32, ≥ 0, without the saliency

NAMES = ("mean_shape", "saliency_moments", "dff", "kmeans", "kmeans_place", "linear_probe")
_ON_OBJECT = 0.3  # least saliency of a cell whose features are clustered
_PLACE_SHARE = 0.5  # of the clusters' mean squared error that the mean squared distance counts
_FAR = 9.0  # times that share, what a distance counts at most
_PLACE_ROUNDS = 10
_HEAT = 0.2  # deviation of a landmark's heat map, half-image units
_RIDGE = 1e-3  # of the features' mean energy, the probe's penalty
_TINY = 1e-6


class Baseline(NamedTuple):
  """A way to find parts."""

  num_parts: int
  label: Callable[[chex.Array, chex.Array], dict[str, chex.Array]]  # V, saliency [B, H, W] in 0..1 → maps

  def predictor(self, features: Features) -> Callable[[Batch], dict[str, np.ndarray]]:
    """Returns the function that `evaluate.evaluate` takes."""
    label = jax.jit(self.label)

    def predict(batch: Batch) -> dict[str, np.ndarray]:
      return jax.device_get(label(features(batch), batch["saliency"].astype(np.float32) / 255))

    return predict


def fit_baselines(
  features: Features, *, train: Iterable[Batch], regression: Iterable[Batch], config: ConfigDict
) -> dict[str, Baseline]:
  """Fits all baselines.

  - mean_shape: each pixel belongs to the nearest mean landmark of the training images, inside their mean
    saliency. It does not look at the image.
  - saliency_moments: five points of the saliency map, its centre and one deviation along either side of its
    two principal axes; each pixel belongs to the nearest, in units of the deviations.
  - dff: deep feature factorization (Collins et al., ECCV 2018), as in `factorization`.
  - kmeans: K clusters of the object's features (Lloyd's algorithm from k-means++).
  - kmeans_place: the same clusters, where the squared distance of a cell from its part's own centre in the
    image, over the object's area, counts beside that of the features: what the concentration loss does.
  - linear_probe: supervised, an upper bound: a ridge regression from V at a cell to a Gaussian heat map of
    each landmark; its centres are the means of the squared maps.

  mean_shape and linear_probe have a part for each landmark and are left out where there is none;
  saliency_moments has five parts, the others K.

  Args:
    features: the reference's.
    train: batches of the training images; the first config.nmf.num_images are factorised and clustered.
    regression: batches of the images that landmarks are regressed on, with "landmarks" and "visible".
    config: the run's.

  Returns:
    The baselines by name.
  """
  maps, saliency = _first(features, train, config.nmf.num_images)
  weight = np.asarray(_weights(saliency, maps.shape[1:3]))
  basis = factorization.fit_dff(
    stream_key(config.seed, "nmf"),
    weight[..., None] * maps,
    num_parts=config.num_parts,
    num_iterations=config.nmf.num_iterations,
  )
  # At least as many cells as clusters, if masks are very soft or small.
  threshold = min(_ON_OBJECT, np.sort(weight, axis=None)[-config.num_parts])
  on_object = weight >= threshold
  rows = maps[on_object]
  means = KMeans(config.num_parts, n_init=1, random_state=config.seed).fit(rows).cluster_centers_
  means = jnp.asarray(means, jnp.float32)
  found = {
    "saliency_moments": Baseline(5, _label_by_moments),
    "dff": Baseline(config.num_parts, functools.partial(_label_by_factors, basis)),
    "kmeans": Baseline(config.num_parts, functools.partial(_label_by_clusters, means)),
    "kmeans_place": Baseline(
      config.num_parts,
      functools.partial(_label_by_places, means, _place_scale(means, maps, weight, on_object)),
    ),
  }
  supervised = _Supervised()
  for batch in regression:
    supervised.add(features(batch), batch)
  return found | supervised.baselines()


def _first(features: Features, train: Iterable[Batch], count: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the features and the saliency, 0..1, of the first images."""
  maps: list[np.ndarray] = []
  saliency: list[np.ndarray] = []
  for batch in train:
    if sum(map(len, maps)) >= count:
      break
    maps.append(np.asarray(features(batch))[batch["valid"]])
    saliency.append(batch["saliency"][batch["valid"]].astype(np.float32) / 255)
  return np.concatenate(maps)[:count], np.concatenate(saliency)[:count]


def _weights(saliency: chex.Array, size: tuple[int, int]) -> chex.Array:
  """Returns the saliency at the features' cells `[B, h, w]`."""
  return geometry.resize_bilinear(jnp.asarray(saliency)[..., None], *size)[..., 0]


def _maps(scores: chex.Array, saliency: chex.Array, centers: chex.Array | None = None) -> dict[str, Any]:
  """Labels pixels by the highest of the scores `[B, h, w, K]`; centres are those of the labels' pixels.

  A part without a pixel counts as in the object's middle.
  """
  height, width = saliency.shape[1:]
  likeliest = jnp.argmax(geometry.resize_bilinear(scores, height, width), axis=-1)
  return _labelled(likeliest, saliency, scores.shape[-1], centers)


def _labelled(
  likeliest: chex.Array, saliency: chex.Array, num_parts: int, centers: chex.Array | None
) -> dict[str, chex.Array]:
  foreground = saliency >= 0.5
  if centers is None:
    parts = jax.nn.one_hot(likeliest, num_parts) * foreground[..., None]
    grid = geometry.coordinate_grid(*saliency.shape[1:])
    moments = jnp.einsum("bhwk,hwc->bkc", parts, grid, precision=geometry.HIGHEST)
    mass = parts.sum(axis=(1, 2))
    middle = moments.sum(axis=1) / jnp.maximum(mass.sum(axis=1), 1.0)[:, None]
    centers = (moments + _TINY * middle[:, None]) / (mass + _TINY)[..., None]
  likeliest = likeliest.astype(jnp.uint8) + 1
  return {
    "labels": jnp.where(foreground, likeliest, 0).astype(jnp.uint8),
    "likeliest_parts": likeliest,
    "centers": centers,
  }


def _label_by_moments(features: chex.Array, saliency: chex.Array) -> dict[str, chex.Array]:
  del features
  grid = geometry.coordinate_grid(*saliency.shape[1:])
  share = saliency / jnp.maximum(saliency.sum(axis=(1, 2), keepdims=True), _TINY)
  middle = jnp.einsum("bhw,hwc->bc", share, grid, precision=geometry.HIGHEST)
  offsets = grid - middle[:, None, None]
  covariance = jnp.einsum("bhw,bhwc,bhwd->bcd", share, offsets, offsets, precision=geometry.HIGHEST)
  variances, axes = jnp.linalg.eigh(covariance)  # axes[b, :, i] belongs to variances[b, i]
  # The axis nearer to x first, pointing right; then the other, pointing down: no sign jumps between images.
  upright = jnp.abs(axes[:, 0, 0]) >= jnp.abs(axes[:, 0, 1])
  axes = jnp.where(upright[:, None, None], axes, axes[:, :, ::-1])
  deviations = jnp.sqrt(jnp.maximum(jnp.where(upright[:, None], variances, variances[:, ::-1]), _TINY))
  axes = axes * jnp.where(jnp.diagonal(axes, axis1=1, axis2=2) < 0, -1.0, 1.0)[:, None]
  points = jnp.asarray([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]], jnp.float32)
  whitened = jnp.einsum("bhwc,bci->bhwi", offsets, axes, precision=geometry.HIGHEST)
  whitened = whitened / deviations[:, None, None]
  likeliest = jnp.argmin(jnp.square(whitened[..., None, :] - points).sum(axis=-1), axis=-1)
  centers = middle[:, None] + jnp.einsum(
    "ki,bi,bci->bkc", points, deviations, axes, precision=geometry.HIGHEST
  )
  return _labelled(likeliest, saliency, len(points), centers)


def _label_by_factors(basis: chex.Array, features: chex.Array, saliency: chex.Array) -> dict[str, chex.Array]:
  size = saliency.shape[1:]
  weighted = _weights(saliency, features.shape[1:3])[..., None] * features
  maps = factorization.dff_maps(basis, weighted, height=size[0], width=size[1])
  return _maps(maps, saliency, factorization.map_centers(maps))


def _closeness(means: chex.Array, features: chex.Array) -> chex.Array:
  """Returns -‖v - m_k‖² `[B, h, w, K]`."""
  cross = jnp.einsum("bhwc,kc->bhwk", features, means, precision=geometry.HIGHEST)
  return 2 * cross - jnp.square(means).sum(axis=1) - jnp.square(features).sum(axis=-1, keepdims=True)


def _label_by_clusters(
  means: chex.Array, features: chex.Array, saliency: chex.Array
) -> dict[str, chex.Array]:
  return _maps(_closeness(means, features), saliency)


def _spread(scores: chex.Array, weight: chex.Array) -> tuple[chex.Array, chex.Array]:
  """Returns the likeliest parts' weights, and cells' squared distances to each part's centre over the area.

  Both are `[B, h, w, K]`; the centre of a part is that of the cells where it is likeliest.
  """
  grid = geometry.coordinate_grid(*scores.shape[1:3])
  parts = jax.nn.one_hot(jnp.argmax(scores, axis=-1), scores.shape[-1]) * weight[..., None]
  mass = parts.sum(axis=(1, 2)) + _TINY
  centers = jnp.einsum("bhwk,hwc->bkc", parts, grid, precision=geometry.HIGHEST) / mass[..., None]
  distances = jnp.square(grid[None, :, :, None] - centers[:, None, None]).sum(axis=-1)
  return parts, distances / (weight.mean(axis=(1, 2))[:, None, None, None] + _TINY)


def _place_scale(
  means: chex.Array, maps: np.ndarray, weight: np.ndarray, on_object: np.ndarray
) -> tuple[float, float]:
  """Returns what a unit of squared distance counts and what a distance counts at most."""
  scores = _closeness(means, jnp.asarray(maps))
  error = -float(scores.max(axis=-1)[on_object].mean())
  parts, distances = _spread(scores, jnp.asarray(weight))
  share = _PLACE_SHARE * error
  distance = float((parts * distances).sum() / (parts.sum() + _TINY))
  return share / (distance + _TINY), _FAR * share


def _label_by_places(
  means: chex.Array, scale: tuple[float, float], features: chex.Array, saliency: chex.Array
) -> dict[str, chex.Array]:
  scores, weight = _closeness(means, features), _weights(saliency, features.shape[1:3])

  def pull(_: int, current: chex.Array) -> chex.Array:
    return scores - jnp.minimum(scale[0] * _spread(current, weight)[1], scale[1])

  return _maps(jax.lax.fori_loop(0, _PLACE_ROUNDS, pull, scores), saliency)


class _Supervised:
  """Sums over the annotated training images: the ridge regression's, and mean positions."""

  def __init__(self) -> None:
    self._sums: Any = None

  def add(self, features: np.ndarray, batch: Batch) -> None:
    """Adds a batch's images that are not padding."""
    if not batch["landmarks"].shape[1]:
      return
    landmarks, visible = batch["landmarks"], batch["visible"] & batch["valid"][:, None]
    saliency = batch["saliency"] * (batch["valid"][:, None, None] / np.float32(255))
    sums = _supervised_sums(features, saliency, landmarks, visible, batch["valid"])
    self._sums = sums if self._sums is None else jax.tree.map(jnp.add, self._sums, sums)

  def baselines(self) -> dict[str, Baseline]:
    """Returns mean_shape and linear_probe; none where no landmark is visible."""
    if self._sums is None or not self._sums[3].any():
      return {}
    gram, target, points, shown, saliency, count = jax.device_get(self._sums)
    penalty = _RIDGE * np.trace(gram[:-1, :-1]) / (len(gram) - 1)
    matrix = np.linalg.solve(gram.astype(np.float64) + penalty * np.eye(len(gram)), target)
    mean = points / np.maximum(shown, 1)[:, None]
    # A landmark that is never shown is nowhere near.
    mean = np.where(shown[:, None] > 0, mean, 1e3)
    shape = functools.partial(_label_by_mean_shape, jnp.asarray(mean), jnp.asarray(saliency / count))
    probe = functools.partial(_label_by_probe, jnp.asarray(matrix, jnp.float32))
    return {"mean_shape": Baseline(len(mean), shape), "linear_probe": Baseline(len(mean), probe)}


@jax.jit
def _supervised_sums(
  features: chex.Array, saliency: chex.Array, landmarks: chex.Array, visible: chex.Array, valid: chex.Array
) -> tuple[chex.Array, ...]:
  """Returns XᵀX, XᵀY, sums of landmarks and of their visibility, of the saliency, and the images' number."""
  grid = geometry.coordinate_grid(*features.shape[1:3]).astype(jnp.float32)
  squared = jnp.square(grid[None, :, :, None] - landmarks[:, None, None]).sum(axis=-1)
  heat = jnp.exp(-squared / (2 * _HEAT**2)) * visible[:, None, None]
  inputs = jnp.pad(features, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=1.0)
  inputs = (inputs * valid[:, None, None, None]).reshape(-1, inputs.shape[-1])
  return (
    jnp.matmul(inputs.T, inputs, precision=geometry.HIGHEST),
    jnp.matmul(inputs.T, heat.reshape(-1, heat.shape[-1]), precision=geometry.HIGHEST),
    jnp.where(visible[..., None], landmarks, 0).sum(axis=0),
    visible.sum(axis=0),
    saliency.sum(axis=0),
    valid.sum(),
  )


def _label_by_mean_shape(
  mean: chex.Array, outline: chex.Array, features: chex.Array, saliency: chex.Array
) -> dict[str, chex.Array]:
  grid = geometry.coordinate_grid(*saliency.shape[1:])
  likeliest = jnp.argmin(jnp.square(grid[:, :, None] - mean).sum(axis=-1), axis=-1)
  count = features.shape[0]
  return _labelled(
    jnp.broadcast_to(likeliest, saliency.shape),
    jnp.broadcast_to(outline, saliency.shape),
    len(mean),
    jnp.broadcast_to(mean, (count, *mean.shape)),
  )


def _label_by_probe(matrix: chex.Array, features: chex.Array, saliency: chex.Array) -> dict[str, chex.Array]:
  heat = jnp.maximum(jnp.matmul(features, matrix[:-1], precision=geometry.HIGHEST) + matrix[-1], 0)
  weighted = jnp.square(heat) * _weights(saliency, features.shape[1:3])[..., None]
  return _maps(heat, saliency, factorization.map_centers(weighted))
