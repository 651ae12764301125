"""The baselines on images whose parts are colours: only what sees the colours finds them."""

import numpy as np
import pytest

from scops_jax.evaluation.baselines import NAMES, fit_baselines
from scops_jax.evaluation.evaluate import Dff, evaluate
from tests import tiny

SIDE, CELLS, PARTS, BATCH = 32, 16, 2, 4


def batches(count, *, num_landmarks=2, seed=0):
  """A red and a green disc side by side, somewhere on black; a landmark in the middle of each."""
  rng = np.random.default_rng(seed)
  x, y = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
  for start in range(0, count, BATCH):
    middles = rng.uniform(12, 19, (BATCH, 2))
    centers = middles[:, None] + np.array([[-5, 0], [5, 0]])
    discs = ((x - centers[..., 0, None, None]) ** 2 + (y - centers[..., 1, None, None]) ** 2) < 20
    image = np.zeros((BATCH, SIDE, SIDE, 3), np.uint8)
    image[..., 0][discs[:, 0]] = 250
    image[..., 1][discs[:, 1]] = 250
    parts = (discs[:, 0] + 2 * discs[:, 1]).astype(np.uint8)
    yield {
      "image": image,
      "saliency": np.where(parts > 0, 255, 0).astype(np.uint8),
      "landmarks": np.float32(centers / (SIDE - 1) * 2 - 1)[:, :num_landmarks],
      "visible": np.ones((BATCH, num_landmarks), bool),
      "box": np.tile(np.float32((-1, -1, 1, 1)), (BATCH, 1)),
      "parts": parts,
      "features": (np.zeros((BATCH, 2, 2, 3)),),  # as kept ones come
      "valid": np.arange(start, start + BATCH) < count,
    }


def features(batch):
  """The mean colour of each cell."""
  return (batch["image"].reshape(BATCH, CELLS, 2, CELLS, 2, 3) / np.float32(255)).mean(axis=(2, 4))


@pytest.fixture(scope="module")
def measured():
  config = tiny.config(num_parts=PARTS)
  fitted = fit_baselines(features, train=batches(22), regression=batches(22), config=config)
  dff = Dff(np.ones((PARTS, 3)), np.zeros((22, PARTS, 2)), np.zeros((10, PARTS, 2)))
  results = {}
  for name, baseline in fitted.items():
    config.num_parts = baseline.num_parts
    results[name] = evaluate(
      baseline.predictor(features),
      regression=batches(22),
      test=batches(10, seed=1),
      dff=dff,
      num_classes=3,
      config=config,
    ).results
  return results


def test_every_baseline_has_every_measure(measured):
  assert set(measured) == set(NAMES)
  unknown = {
    "foreground_iou_crf",
    "landmark_error_test_box_edge",
    "landmark_error_test_box_sides",
    "keypoint_box_nmi",
    "keypoint_box_ari",
  }
  for results in measured.values():
    assert {key for key, value in results.items() if value is None} == unknown


@pytest.mark.parametrize("name", ["dff", "kmeans", "kmeans_place", "linear_probe"])
def test_those_that_see_the_colours_find_the_parts(measured, name):
  results = measured[name]
  assert results["nmi"] > 0.95
  assert results["keypoint_nmi"] == pytest.approx(1)
  assert results["landmark_error_test"] < 0.05
  assert results["warp_center_error"] < 1
  assert min(results["part_purity"]) > 0.9


def test_the_mean_shape_is_that_of_the_evaluation_and_does_not_move(measured):
  results = measured["mean_shape"]
  assert results["landmark_error_test"] == pytest.approx(results["mean_shape_error_test"], rel=1e-6)
  assert results["warp_center_error"] > 1
  assert results["foreground_iou"] < 0.9


def test_moments_are_those_of_the_mask(measured):
  # The object is two discs side by side: the outer points of the wider axis lie in them.
  assert measured["saliency_moments"]["landmark_error_test"] < 0.05
  assert len(measured["saliency_moments"]["part_area_fractions"]) == 5


def test_without_landmarks_there_is_no_supervised_baseline():
  fitted = fit_baselines(
    features,
    train=batches(8),
    regression=batches(8, num_landmarks=0),
    config=tiny.config(num_parts=PARTS),
  )
  assert set(fitted) == set(NAMES) - {"mean_shape", "linear_probe"}
