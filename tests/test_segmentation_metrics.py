"""Segmentation measures: hand-computed tables, scikit-learn as the oracle, invariances and bad input."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from scops_jax.evaluation import segmentation_metrics as metrics

TABLE = np.array([[50, 2, 0], [3, 20, 5], [1, 0, 30], [0, 4, 1]])


def random_pair(seed=0, shape=(3, 13, 7), num_labels=5, num_classes=4):
  rng = np.random.default_rng(seed)
  truth = rng.integers(0, num_classes, shape)
  labels = np.where(rng.random(shape) < 0.6, (truth + 1) % num_labels, rng.integers(0, num_labels, shape))
  return labels, truth


def test_contingency_counts_pairs():
  labels = np.array([[0, 1, 1], [2, 2, 2]])
  truth = np.array([[0, 1, 0], [1, 1, 0]])
  table = metrics.contingency(labels, truth, num_labels=4, num_classes=2)
  np.testing.assert_array_equal(table, [[1, 0], [1, 1], [1, 2], [0, 0]])
  assert table.dtype == np.int64
  boolean = metrics.contingency(labels, truth > 0, num_labels=4, num_classes=2)
  np.testing.assert_array_equal(boolean, table)


def test_tables_of_batches_add_up():
  labels, truth = random_pair()
  sizes = {"num_labels": 5, "num_classes": 4}
  parts = sum(metrics.contingency(labels[i], truth[i], **sizes) for i in range(3))
  np.testing.assert_array_equal(parts, metrics.contingency(labels, truth, **sizes))


def test_counts_do_not_overflow_small_label_types():
  labels = np.full((1, 20, 20), 200, np.uint8)
  table = metrics.contingency(labels, labels, num_labels=201, num_classes=201)
  assert table[200, 200] == table.sum() == 400


def test_foreground_iou_by_hand():
  # Both foreground: 20 + 5 + 0 + 30 + 4 + 1 = 60; either: 116 - 50 = 66.
  assert metrics.foreground_iou(TABLE) == pytest.approx(60 / 66)


def test_foreground_iou_pools_pixels_over_images():
  labels = np.array([[[1, 1, 0, 0]], [[2, 0, 0, 0]]])
  truth = np.array([[[1, 1, 1, 1]], [[1, 0, 0, 0]]])
  table = metrics.contingency(labels, truth, num_labels=3, num_classes=2)
  assert metrics.foreground_iou(table) == pytest.approx(3 / 5)  # the images' own are 1/2 and 1


@pytest.mark.parametrize("seed", range(5))
def test_information_and_rand_index_match_scikit_learn(seed):
  labels, truth = random_pair(seed)
  table = metrics.contingency(labels, truth, num_labels=6, num_classes=4)
  expected = normalized_mutual_info_score(truth.ravel(), labels.ravel())
  assert metrics.normalized_mutual_information(table) == pytest.approx(expected, rel=1e-10)
  assert metrics.adjusted_rand_index(table) == pytest.approx(
    adjusted_rand_score(truth.ravel(), labels.ravel()), rel=1e-10
  )


@pytest.mark.parametrize(
  ("table", "nmi", "ari"),
  [
    (np.diag([7, 2, 5]), 1, 1),
    (np.array([[0, 4], [9, 0]]), 1, 1),  # the same groups under other names
    (np.array([[6, 6], [6, 6]]), 0, -1 / 22),
    (np.array([[8, 3], [0, 0]]), 0, 0),  # every pixel in one part
    (np.array([[8]]), 1, 1),
    (np.array([[1]]), 1, 1),
    (np.eye(4, dtype=int), 1, 1),
  ],
)
def test_limits(table, nmi, ari):
  assert metrics.normalized_mutual_information(table) == pytest.approx(nmi, abs=1e-12)
  assert metrics.adjusted_rand_index(table) == pytest.approx(ari, abs=1e-12)


def test_rand_index_by_hand():
  # Pairs together in both: C(2) + C(2) = 2; rows of 3: C(3) + C(3) = 6; columns the same; all: C(6) = 15.
  # E = 6 · 6 / 15 = 2.4; (2 - 2.4) / (6 - 2.4) = -1/9.
  assert metrics.adjusted_rand_index(np.array([[2, 1], [1, 2]])) == pytest.approx(-1 / 9)


def test_measures_do_not_depend_on_the_names_of_parts():
  shuffled = TABLE[[0, 3, 1, 2]]
  for measure in (
    metrics.foreground_iou,
    metrics.normalized_mutual_information,
    metrics.adjusted_rand_index,
  ):
    assert measure(shuffled) == pytest.approx(measure(TABLE), rel=1e-12)


def test_large_counts_keep_their_precision():
  table = TABLE.astype(np.int64) * 10**8
  assert metrics.normalized_mutual_information(table) == pytest.approx(
    metrics.normalized_mutual_information(TABLE), rel=1e-12
  )
  assert 0 < metrics.adjusted_rand_index(table) <= 1


def test_part_area_fractions_average_images_with_foreground():
  counts = np.array([[1, 2, 1, 0], [2, 0, 0, 2], [4, 0, 0, 0]])
  np.testing.assert_allclose(metrics.part_area_fractions(counts), [1 / 3, 1 / 6, 1 / 2])
  np.testing.assert_array_equal(metrics.part_area_fractions(counts[2:]), [0, 0, 0])


@pytest.mark.parametrize(
  ("labels", "truth", "error", "message"),
  [
    (np.zeros((2, 3)), np.zeros((2, 3), int), TypeError, "labels must be integers"),
    (np.zeros((2, 3), int), np.zeros((2, 3)), TypeError, "truth must be integers"),
    (np.zeros((2, 3), int), np.zeros((3, 2), int), ValueError, "one shape"),
    (np.full((2, 3), 4), np.zeros((2, 3), int), ValueError, r"labels must be in 0 .. 3, got 4"),
    (np.zeros((2, 3), int), np.full((2, 3), -1), ValueError, r"truth must be in 0 .. 1, got -1"),
  ],
)
def test_bad_labels_raise(labels, truth, error, message):
  with pytest.raises(error, match=message):
    metrics.contingency(labels, truth, num_labels=4, num_classes=2)


@pytest.mark.parametrize(
  "measure",
  [
    metrics.foreground_iou,
    metrics.normalized_mutual_information,
    metrics.adjusted_rand_index,
    metrics.part_area_fractions,
  ],
)
@pytest.mark.parametrize("table", [np.zeros((2, 2), int), np.ones(3, int), np.array([[1, -1], [2, 2]])])
def test_bad_tables_raise(measure, table):
  with pytest.raises(ValueError, match="table of pixel counts"):
    measure(table)


def test_no_foreground_at_all_raises():
  with pytest.raises(ValueError, match="no pixel is foreground"):
    metrics.foreground_iou(np.array([[9, 0], [0, 0]]))


def test_mean_foreground_iou_weighs_images_alike_and_leaves_empty_ones_out():
  tables = np.array([[[5, 3], [1, 4]], [[0, 0], [0, 2]], [[9, 0], [0, 0]]])
  assert metrics.mean_foreground_iou(tables) == pytest.approx((4 / 8 + 1) / 2)
  with pytest.raises(ValueError, match="no pixel is foreground"):
    metrics.mean_foreground_iou(tables[2:])


def keypoints(seed, count=23, height=13, width=7, num_parts=4, num_landmarks=5):
  """Returns probs, points near each part's place and visible, with hidden landmarks and some outside."""
  rng = np.random.default_rng(seed)
  logits = 3 * rng.normal(size=(1, height, width, num_parts + 1)) + rng.normal(
    size=(count, height, width, num_parts + 1)
  )
  probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
  places = rng.uniform(0, (width - 1, height - 1), (num_landmarks, 2))
  points = places + rng.normal(size=(count, num_landmarks, 2))
  return probs.astype(np.float32), points, rng.random((count, num_landmarks)) < 0.7


def sampled(probs, points, visible):
  """Returns classes, labels and foreground labels of the counted landmarks, one after the other."""
  rows = []
  height, width, _ = probs.shape[1:]
  for image, landmark in np.argwhere(visible):
    x, y = (int(np.floor(v + 0.5)) for v in points[image, landmark])
    if 0 <= x < width and 0 <= y < height:
      pixel = probs[image, y, x]
      rows.append((landmark, pixel.argmax(), pixel[1:].argmax()))
  return np.array(rows).T


@pytest.mark.parametrize("seed", range(5))
def test_keypoint_measures_match_scikit_learn(seed):
  probs, points, visible = keypoints(seed)
  classes, labels, parts = sampled(probs, points, visible)
  assert len(classes) < visible.sum() < visible.size  # some are outside, some hidden
  expected = [
    score(classes, found)
    for found in (labels, parts)
    for score in (normalized_mutual_info_score, adjusted_rand_score)
  ]
  hidden = np.where(visible[..., None], points, np.nan)
  found = metrics.keypoint_measures(probs, hidden, visible)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  assert found._fields == ("keypoint_nmi", "keypoint_ari", "keypoint_fg_nmi", "keypoint_fg_ari")


def test_keypoint_tables_of_batches_add_up():
  probs, points, visible = keypoints(0)
  pair = []
  for labels in (probs.argmax(-1), probs[..., 1:].argmax(-1) + 1):
    batches = [slice(0, 10), slice(10, 23)]
    pair.append(sum(metrics.keypoint_table(labels[b], points[b], visible[b], num_labels=5) for b in batches))
  assert metrics.keypoint_scores(*pair) == metrics.keypoint_measures(probs, points, visible)


def test_keypoint_table_by_hand():
  labels = np.array([[[0, 1, 2], [3, 4, 5]]])  # 2 × 3 pixels
  points = np.array([[[1.4, 0.0], [1.5, 0.0], [-0.5, 0.5], [2.0, 1.5], [-0.6, 0.0]]])
  table = metrics.keypoint_table(labels, points, np.ones((1, 5), bool), num_labels=6)
  # The last two lie outside: row 2 of two, and column -1.
  assert [tuple(pair) for pair in np.argwhere(table)] == [(1, 0), (2, 1), (3, 2)]


@pytest.mark.parametrize(
  ("change", "error", "message"),
  [
    ({"probs": np.zeros((3, 4, 5))}, ValueError, r"\[N, H, W, K\+1\] with K >= 1"),
    ({"probs": np.zeros((3, 4, 5, 1))}, ValueError, r"\[N, H, W, K\+1\] with K >= 1"),
    ({"points": np.zeros((3, 2, 3))}, ValueError, r"points \[B, L, 2\]"),
    ({"points": np.zeros((3, 1, 2))}, ValueError, r"points \[B, L, 2\]"),
    ({"probs": np.zeros((2, 4, 5, 3))}, ValueError, "2 maps, but points and visible of 3"),
    ({"visible": np.ones((3, 2))}, TypeError, "visible must be bool"),
    ({"visible": np.zeros((3, 2), bool)}, ValueError, "not all 0"),
  ],
)
def test_bad_keypoints_raise(change, error, message):
  arguments = {
    "probs": np.zeros((3, 4, 5, 3)),
    "points": np.zeros((3, 2, 2)),
    "visible": np.ones((3, 2), bool),
  }
  with pytest.raises(error, match=message):
    metrics.keypoint_measures(**arguments | change)
