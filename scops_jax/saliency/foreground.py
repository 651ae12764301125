"""Separates the objects of a collection from their backgrounds, without labels, on features and colours.

A background touches much of an image's border, an object little of it (boundary connectivity: Zhu, Liang,
Wei & Sun, CVPR 2014). For the colours of one image that holds only roughly; what they say is learned and
mended by all images together:

1. Each image's colours are clustered. A cluster of area A with L pixels on the border starts as foreground
   with probability exp(-(L / √A)² / 2).
2. A logistic regression from the reference's features to that probability, over all images, finds what the
   objects have in common (PCA first). How often a place of the image is foreground in it adds a weak prior.
3. In each image the colour clusters' share of foreground is added, and a guided filter (He, Sun & Tang, ECCV
   2010) brings the sum to the image's edges: the evidence, in log-odds.
4. The evidence is shifted so that its zero contours, over all images, lie on edges of the images. That slows
   the share of foreground's drift. Then again from 2, ten times in all.

Nothing here knows what the objects are; what stands beside them in every image is taken for a part of them.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import expit, logit

# Images are read at SIDE pixels a side; all but the last filtering happens at half of it.
SIDE = 128
_COARSE = SIDE // 2

# More are worse where the background resembles the object's own border: the maps of toy_faces reach IoU 0.90
# after 14 rounds and fall to 0.82 after 24. Drawn quadrupeds and birds hardly change after five.
_ITERATIONS = 10
_DIRECTIONS = 128  # principal ones of the features
_RIDGE = 1e-3  # of the regression, for features whose first principal deviation is 1
_PLACE_WEIGHT, _COLOR_WEIGHT = 0.5, 1.0  # of their log-odds, against the features'
_SHARPNESS = 1.5  # of the probabilities from which the next round learns
_CLUSTERS = 32  # colours of an image
_COLOR_SCALE, _PLACE_SCALE = 3.0, 0.5  # of the clustering: colours and places in [0, 1]
_RADIUS = 4  # of the guided filter, coarse pixels
_FLATNESS = 1e-3  # its epsilon: variance of colours in [0, 1] below which it averages

MapImages = Callable[..., Iterable[Any]]


class ForegroundModel(NamedTuple):
  """What the images of a collection have in common."""

  mean: NDArray[np.float32]  # [C] of the features
  directions: NDArray[np.float32]  # [C, D]
  weights: NDArray[np.float32]  # [D + 1], the last is the bias
  place: NDArray[np.float32]  # [_COARSE, _COARSE] log-odds
  threshold: float  # evidence above it is foreground


class _Colors(NamedTuple):
  """An image's colours at both resolutions, in [0, 1], and the cluster of each pixel."""

  coarse: NDArray[np.float32]  # [_COARSE, _COARSE, 3]
  coarse_clusters: NDArray[np.intp]  # [_COARSE, _COARSE]
  fine: NDArray[np.float32]  # [SIDE, SIDE, 3]
  fine_clusters: NDArray[np.intp]  # [SIDE, SIDE]


def fit_foreground(
  images: NDArray[np.uint8], features: NDArray[np.floating], *, map_images: MapImages = map
) -> ForegroundModel:
  """Learns from a sample of a collection.

  Args:
    images: `[N, SIDE, SIDE, 3]` RGB.
    features: `[N, g, g, C]` of them, g ≥ 2, cells on the align-corners lattice.
    map_images: `map`, or an executor's, over which images are spread.

  Returns:
    The model for all images of the collection.
  """
  count, cells = features.shape[:2]
  rows = features.reshape(count * cells * cells, -1).astype(np.float32)
  mean, directions = _principal_directions(rows)
  samples: NDArray[np.float32] = np.matmul(rows - mean, directions, dtype=np.float32)
  colors = list(map_images(_analyze_colors, images))
  gradients = np.stack([_gradient(image.coarse) for image in colors])
  foreground = np.stack([_border_prior(image.coarse_clusters) for image in colors])
  weights = np.zeros(samples.shape[1] + 1, np.float32)
  for _ in range(_ITERATIONS):
    weights = _regress(samples, _at_cells(foreground, cells).ravel(), weights)
    scores = (samples @ weights[:-1] + weights[-1]).reshape(count, cells, cells)
    scores = _enlarge(scores, _COARSE)
    place = _place_prior(scores)
    evidence = np.stack(list(map_images(_refine_coarse, scores + _PLACE_WEIGHT * place, colors)))
    threshold = _best_threshold(evidence, gradients)
    foreground = expit(_SHARPNESS * (evidence - threshold))
  return ForegroundModel(mean, directions, weights, place, threshold)


def foreground_maps(
  model: ForegroundModel,
  images: NDArray[np.uint8],
  features: NDArray[np.floating],
  *,
  map_images: MapImages = map,
) -> NDArray[np.float32]:
  """Returns the probability of foreground `[N, SIDE, SIDE]` of any images of the collection.

  Args:
    model: of `fit_foreground`.
    images: `[N, SIDE, SIDE, 3]` RGB.
    features: `[N, g, g, C]`, as those it was fitted to.
    map_images: `map`, or an executor's, over which images are spread.
  """
  samples = (features.astype(np.float32) - model.mean) @ model.directions
  scores = _enlarge(samples @ model.weights[:-1] + model.weights[-1], _COARSE)
  scores = scores + _PLACE_WEIGHT * model.place

  def one(image: NDArray[np.uint8], scores: NDArray[np.float32]) -> NDArray[np.float32]:
    evidence = _refine(scores, _analyze_colors(image))
    return expit(_SHARPNESS * (evidence - model.threshold))

  return np.stack(list(map_images(one, images, scores)))


def _principal_directions(
  samples: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
  """Returns the mean [C] and directions [C, D], scaled so that the first component's deviation is 1."""
  mean = samples.mean(axis=0)
  centred = samples - mean
  values, vectors = np.linalg.eigh(centred.T @ centred / len(samples))
  largest = vectors[:, ::-1][:, :_DIRECTIONS]
  return mean, (largest / np.sqrt(max(values[-1], 1e-12))).astype(np.float32)


def _regress(
  samples: NDArray[np.float32], targets: NDArray[np.float32], weights: NDArray[np.float32]
) -> NDArray[np.float32]:
  """Logistic regression to probabilities by a few of Newton's steps, from the last round's weights."""
  inputs = np.concatenate([samples, np.ones((len(samples), 1), np.float32)], axis=1)
  ridge = np.full(inputs.shape[1], _RIDGE * len(inputs))
  ridge[-1] = 0.0
  for _ in range(4):
    predicted = expit(inputs @ weights)
    curvature = predicted * (1 - predicted) + 1e-4
    hessian = (inputs * curvature[:, None]).T @ inputs + np.diag(ridge)
    gradient = inputs.T @ (targets - predicted) - ridge * weights
    weights = (weights + np.linalg.solve(hessian, gradient)).astype(np.float32)
  return weights


def _analyze_colors(image: NDArray[np.uint8]) -> _Colors:
  fine: NDArray[np.float32] = np.divide(image, 255, dtype=np.float32)
  coarse = fine.reshape(_COARSE, 2, _COARSE, 2, 3).mean(axis=(1, 3), dtype=np.float32)
  points = _color_points(coarse)
  centers = _cluster(points)
  nearest = _nearest(points, centers).reshape(_COARSE, _COARSE)
  return _Colors(coarse, nearest, fine, _nearest(_color_points(fine), centers).reshape(SIDE, SIDE))


def _color_points(image: NDArray[np.float32]) -> NDArray[np.float32]:
  """Returns [H·W, 5]: colours and places."""
  height, width = image.shape[:2]
  rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j].astype(np.float32)
  places = np.stack([columns, rows], axis=-1)
  return np.concatenate([_COLOR_SCALE * image, _PLACE_SCALE * places], axis=-1).reshape(-1, 5)


def _cluster(points: NDArray[np.float32]) -> NDArray[np.float32]:
  """k-means from centres that are far apart."""
  centers = points[:1]
  distances = np.square(points - centers[0]).sum(axis=1)
  for _ in range(_CLUSTERS - 1):
    farthest = points[np.argmax(distances)]
    centers = np.concatenate([centers, farthest[None]])
    distances = np.minimum(distances, np.square(points - farthest).sum(axis=1))
  for _ in range(8):
    nearest = _nearest(points, centers)
    sizes = np.bincount(nearest, minlength=_CLUSTERS)
    sums = np.stack([np.bincount(nearest, column, minlength=_CLUSTERS) for column in points.T], axis=1)
    centers = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centers).astype(np.float32)
  return centers


def _nearest(points: NDArray[np.float32], centers: NDArray[np.float32]) -> NDArray[np.intp]:
  return np.argmin(np.square(centers).sum(axis=1) - 2 * points @ centers.T, axis=1)


def _border_prior(clusters: NDArray[np.intp]) -> NDArray[np.float32]:
  """Step 1; the border is two pixels wide, so that thin frames of artefacts don't decide."""
  border = np.ones(clusters.shape, np.bool_)
  border[2:-2, 2:-2] = False
  areas = np.bincount(clusters.ravel(), minlength=_CLUSTERS)
  lengths = np.bincount(clusters[border], minlength=_CLUSTERS) / 2
  connectivity = lengths / np.sqrt(np.maximum(areas, 1))
  return np.exp(-np.square(connectivity) / 2).astype(np.float32)[clusters]


def _place_prior(scores: NDArray[np.float32]) -> NDArray[np.float32]:
  """Returns the log-odds [H, W] of foreground at each place over those anywhere."""
  probabilities = expit(scores).mean(axis=0)
  smooth = np.clip(ndimage.gaussian_filter(probabilities, 3.0), 0.05, 0.95)
  return (logit(smooth) - logit(np.clip(probabilities.mean(), 0.05, 0.95))).astype(np.float32)


def _refine_coarse(scores: NDArray[np.float32], colors: _Colors) -> NDArray[np.float32]:
  """Step 3's evidence [_COARSE, _COARSE]."""
  probabilities = expit(_SHARPNESS * scores)
  for _ in range(2):
    share = _color_log_odds(probabilities, colors)[colors.coarse_clusters]
    evidence = _guided_filter(scores + _COLOR_WEIGHT * share, colors.coarse, radius=_RADIUS)
    probabilities = expit(_SHARPNESS * evidence)
  return evidence


def _refine(scores: NDArray[np.float32], colors: _Colors) -> NDArray[np.float32]:
  """The same, [SIDE, SIDE]."""
  probabilities = expit(_SHARPNESS * _refine_coarse(scores, colors))
  share = _color_log_odds(probabilities, colors)[colors.fine_clusters]
  evidence = _enlarge(scores[None], SIDE)[0] + _COLOR_WEIGHT * share
  return _guided_filter(evidence, colors.fine, radius=2 * _RADIUS)


def _color_log_odds(probabilities: NDArray[np.float32], colors: _Colors) -> NDArray[np.float32]:
  """Returns each cluster's log-odds of foreground [_CLUSTERS], drawn to even by one pixel."""
  clusters = colors.coarse_clusters.ravel()
  sums = np.bincount(clusters, probabilities.ravel(), minlength=_CLUSTERS)
  shares = (sums + 0.5) / (np.bincount(clusters, minlength=_CLUSTERS) + 1)
  return logit(np.clip(shares, 0.02, 0.98)).astype(np.float32)


def _guided_filter(
  values: NDArray[np.float32], guide: NDArray[np.float32], *, radius: int
) -> NDArray[np.float32]:
  """Fits values [H, W] by a linear function of the guide's colours [H, W, 3] about each pixel."""

  def mean(array: NDArray[np.float32]) -> NDArray[np.float32]:
    size = (2 * radius + 1, 2 * radius + 1) + (1,) * (array.ndim - 2)
    return ndimage.uniform_filter(array, size, mode="nearest")

  color, value = mean(guide), mean(values)
  covariance = mean(guide * values[..., None]) - color * value[..., None]
  variance = mean(guide[..., :, None] * guide[..., None, :]) - color[..., :, None] * color[..., None, :]
  slope = np.linalg.solve(variance + _FLATNESS * np.eye(3, dtype=np.float32), covariance[..., None])[..., 0]
  offset = value - (slope * color).sum(axis=-1)
  return (mean(slope) * guide).sum(axis=-1) + mean(offset)


def _gradient(image: NDArray[np.float32]) -> NDArray[np.float32]:
  """Returns the colour gradient's size [H, W] over its mean in the image."""
  smooth = ndimage.gaussian_filter(image, (0.7, 0.7, 0))
  slopes = [ndimage.sobel(smooth, axis=axis) for axis in (0, 1)]
  size = np.sqrt(np.square(slopes).sum(axis=(0, -1)))
  return size / max(size.mean(), 1e-6)


def _best_threshold(evidence: NDArray[np.float32], gradients: NDArray[np.float32]) -> float:
  """Returns the threshold whose contours have the largest gradient under them, a mean over images."""
  low, high = np.quantile(evidence[:, ::2, ::2], (0.3, 0.97))
  thresholds = np.linspace(max(low, -6.0), min(high, 6.0), 25)
  fits = []
  for threshold in thresholds:
    inside = evidence > threshold
    contours = inside != ndimage.minimum_filter(inside, (1, 3, 3))
    lengths = contours.sum(axis=(1, 2))
    strengths = (gradients * contours).sum(axis=(1, 2)) / np.maximum(lengths, 1)
    fits.append(strengths.mean())
  return float(thresholds[np.argmax(ndimage.gaussian_filter1d(fits, 1.5, mode="nearest"))])


def _at_cells(maps: NDArray[np.float32], cells: int) -> NDArray[np.float32]:
  """Samples maps [N, S, S], smoothed over a cell, on the align-corners lattice [N, cells, cells]."""
  spacing = (maps.shape[1] - 1) / (cells - 1)
  smooth = ndimage.gaussian_filter(maps, (0, 0.375 * spacing, 0.375 * spacing))
  index = np.linspace(0, maps.shape[1] - 1, cells).round().astype(int)
  return smooth[:, index][:, :, index]


def _enlarge(maps: NDArray[np.float32], side: int) -> NDArray[np.float32]:
  """Align-corners bilinear: [N, s, s] → [N, side, side]."""
  cells = maps.shape[1]
  positions = np.linspace(0, cells - 1, side)
  low = np.minimum(positions.astype(int), cells - 2)
  matrix = np.zeros((side, cells), np.float32)
  matrix[np.arange(side), low] = 1 - (positions - low)
  matrix[np.arange(side), low + 1] = positions - low
  return np.asarray(matrix @ maps @ matrix.T, np.float32)
