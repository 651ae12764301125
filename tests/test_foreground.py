"""Objects and backgrounds of drawn images: discs of one colour, features that tell a little about them."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from scops_jax.saliency import foreground
from scops_jax.saliency.foreground import SIDE, fit_foreground, foreground_maps

CELLS, CHANNELS = 9, 6


@pytest.fixture(scope="module")
def discs():
  """Images of discs anywhere, in other colours each time, features [N, g, g, C] and truth [N, SIDE, SIDE]."""
  rng = np.random.default_rng(0)
  rows, columns = np.mgrid[:SIDE, :SIDE]
  images, features, truth = [], [], []
  directions = rng.uniform(0, 1, (2, CHANNELS))
  for _ in range(10):
    radius, (y, x) = rng.uniform(20, 35), rng.uniform(30, 98, 2)
    inside = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
    back, front = rng.uniform(0, 100, 3), rng.uniform(150, 255, 3)
    image = np.where(inside[..., None], front, back + columns[..., None] / 4)
    images.append(np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8))
    at = np.linspace(0, SIDE - 1, CELLS).round().astype(int)
    cells = inside[np.ix_(at, at)].astype(int)
    features.append(directions[cells] + rng.normal(0, 0.2, (CELLS, CELLS, CHANNELS)))
    truth.append(inside)
  return np.stack(images), np.stack(features).astype(np.float32), np.stack(truth)


def iou(maps, truth):
  return ((maps > 0.5) & truth).sum() / ((maps > 0.5) | truth).sum()


def test_objects_are_found_in_images_it_was_fitted_to_and_in_others(discs):
  images, features, truth = discs
  model = fit_foreground(images[:7], features[:7])
  maps = foreground_maps(model, images, features)
  assert maps.shape == (10, SIDE, SIDE)
  assert maps.dtype == np.float32
  assert 0 <= maps.min() < 0.1 < 0.9 < maps.max() <= 1
  assert iou(maps[:7], truth[:7]) > 0.9
  assert iou(maps[7:], truth[7:]) > 0.9
  with ThreadPoolExecutor(4) as threads:
    other = fit_foreground(images[:7], features[:7], map_images=threads.map)
    np.testing.assert_array_equal(foreground_maps(other, images, features, map_images=threads.map), maps)
  # An image's map does not depend on the images beside it.
  np.testing.assert_allclose(foreground_maps(model, images[4:5], features[4:5]), maps[4:5], atol=1e-5)


def test_blank_images_are_no_error():
  images = np.full((2, SIDE, SIDE, 3), 7, np.uint8)
  features = np.zeros((2, 2, 2, 3), np.float32)
  assert np.isfinite(foreground_maps(fit_foreground(images, features), images, features)).all()


def test_border_prior_is_boundary_connectivity():
  clusters = np.zeros((64, 64), np.intp)
  clusters[10:30, 20:50] = 1  # inside
  clusters[40:, 30:50] = 2  # 24 × 20, stands on the lower border
  prior = foreground._border_prior(clusters)
  assert prior[20, 30] == 1
  length = 2 * 20 / 2
  assert prior[50, 40] == pytest.approx(np.exp(-(length**2) / (24 * 20) / 2))
  length = (64**2 - 60**2 - 2 * 20) / 2
  assert prior[0, 0] == pytest.approx(np.exp(-(length**2) / (64**2 - 20 * 30 - 24 * 20) / 2), rel=1e-5)


def test_color_log_odds_by_hand():
  clusters = np.asarray([[0, 0, 0, 1]])
  colors = foreground._Colors(None, clusters, None, None)
  found = foreground._color_log_odds(np.asarray([[1.0, 1.0, 0.5, 0.0]]), colors)
  assert found[0] == pytest.approx(logit(3.0 / 4))
  assert found[1] == pytest.approx(logit(0.5 / 2))


def test_regression_recovers_a_logistic_law():
  rng = np.random.default_rng(1)
  samples = rng.normal(size=(4000, 2)).astype(np.float32)
  truth = expit(samples @ [1.5, -0.5] + 0.25)
  regression = LogisticRegression(C=1.0)
  foreground._fit_probabilities(regression, samples, truth.astype(np.float32))
  found = [*regression.coef_[0], *regression.intercept_]
  np.testing.assert_allclose(found, [1.5, -0.5, 0.25], atol=0.03)


def test_guided_filter_against_its_definition():
  rng = np.random.default_rng(2)
  guide, values = rng.uniform(size=(9, 11, 3)), rng.normal(size=(9, 11))
  found = foreground._guided_filter(values, guide, radius=1)
  slopes, offsets = np.zeros((9, 11, 3)), np.zeros((9, 11))
  wide_guide, wide = np.pad(guide, ((1, 1), (1, 1), (0, 0)), "edge"), np.pad(values, 1, "edge")
  for i in range(9):
    for j in range(11):
      colors, window = wide_guide[i : i + 3, j : j + 3].reshape(9, 3), wide[i : i + 3, j : j + 3].ravel()
      centred = colors - colors.mean(axis=0)
      variance = centred.T @ centred / 9 + foreground._FLATNESS * np.eye(3)
      slopes[i, j] = np.linalg.solve(variance, centred.T @ window / 9)
      offsets[i, j] = window.mean() - slopes[i, j] @ colors.mean(axis=0)
  mean_slopes = np.pad(slopes, ((1, 1), (1, 1), (0, 0)), "edge")
  mean_offsets = np.pad(offsets, 1, "edge")
  for i, j in ((0, 0), (4, 5), (8, 2)):
    slope = mean_slopes[i : i + 3, j : j + 3].reshape(9, 3).mean(axis=0)
    expected = slope @ guide[i, j] + mean_offsets[i : i + 3, j : j + 3].mean()
    assert found[i, j] == pytest.approx(expected, rel=1e-5)


def test_threshold_lies_where_contours_meet_edges():
  rows, columns = np.mgrid[:64, :64]
  distance = np.hypot(rows - 30, columns - 34)
  image = np.where(distance[..., None] < 15, 1.0, 0.0).astype(np.float32)
  evidence = (5 * (20 - distance) / 20).astype(np.float32)[None]
  found = foreground._best_threshold(evidence, foreground._gradient(image)[None])
  assert found == pytest.approx(5 * (20 - 15) / 20, abs=0.4)


def test_resizing_is_align_corners():
  maps = np.asarray([[[0.0, 2.0], [4.0, 6.0]]], np.float32)
  np.testing.assert_allclose(foreground._resize(maps, 3), [[[0, 1, 2], [2, 3, 4], [4, 5, 6]]])
