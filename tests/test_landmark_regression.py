"""Landmark regression: goldens, hand-computed cases, an oracle, invariances and bad input."""

import pathlib

import numpy as np
import pytest

from scops_jax.evaluation.landmark_regression import mean_shape_error, regress_landmarks

GOLDEN = np.load(pathlib.Path(__file__).parent / "golden" / "landmark_regression.npz")
NAMES = ("train_pred", "train_gt", "test_pred", "test_gt")


def faces(seed=0, train=40, test=15, parts=4, landmarks=5):
  """Returns part centres that tell the landmarks up to noise."""
  rng = np.random.default_rng(seed)
  matrix = rng.normal(size=(2 * parts, 2 * landmarks))
  split = {}
  for name, count in (("train", train), ("test", test)):
    pred = rng.uniform(-1, 1, (count, parts, 2))
    gt = pred.reshape(count, -1) @ matrix * 10 + 50 + rng.normal(size=(count, 2 * landmarks))
    split[f"{name}_pred"], split[f"{name}_gt"] = pred, gt.reshape(count, landmarks, 2)
  return split


def oracle(train_pred, train_gt, test_pred, test_gt):
  """The regression of all coordinates at once by the pseudo-inverse."""
  x, y, test_x, test_y = (a.reshape(len(a), -1) for a in (train_pred, train_gt, test_pred, test_gt))
  standard = ((x - x.mean(0)) / x.std(0), (y - y.mean(0)) / y.std(0))
  matrix = np.linalg.pinv(standard[0], rcond=1e-10) @ standard[1]
  errors = []
  for values, target in ((x, y), (test_x, test_y)):
    fitted = ((values - x.mean(0)) / x.std(0) @ matrix * y.std(0) + y.mean(0)).reshape(len(values), -1, 2)
    target = target.reshape(fitted.shape)
    eyes = np.linalg.norm(target[:, 0] - target[:, 1], axis=-1)
    errors.append((np.linalg.norm(fitted - target, axis=-1).mean(1) / eyes).mean())
  return errors


def test_matches_the_release():
  result = regress_landmarks(*(GOLDEN[f"main_{name}"] for name in NAMES))
  np.testing.assert_allclose(result.train, GOLDEN["main_train_err"], rtol=1e-12)
  np.testing.assert_allclose(result.test, GOLDEN["main_test_err"], rtol=1e-12)
  assert (result.num_train, result.num_test, result.left_out_train, result.left_out_test) == (60, 25, 0, 0)


def test_coincident_eyes_are_left_out_where_the_release_scores_0():
  result = regress_landmarks(*(GOLDEN[f"edge_{name}"] for name in NAMES))
  assert (result.num_train, result.num_test, result.left_out_train, result.left_out_test) == (59, 24, 1, 1)
  np.testing.assert_allclose(result.train * 59 / 60, GOLDEN["edge_train_err"], rtol=1e-12)
  np.testing.assert_allclose(result.test * 24 / 25, GOLDEN["edge_test_err"], rtol=1e-12)


def test_matches_the_oracle():
  data = faces()
  result = regress_landmarks(**data)
  np.testing.assert_allclose([result.train, result.test], oracle(**data), rtol=1e-10)


def test_hand_computed_error():
  # The part centre repeats the landmarks' common shift, so the fit is exact but for the test image's shift of
  # the second landmark by (3, 4) pixels: distances 0 and 5, eyes 10 apart before and hypot(13, 4) after.
  shift = np.array([[0.0, 0], [1, 0], [0, 2], [3, 1]])
  shape = np.array([[0.0, 0], [10, 0]])
  train_gt = shift[:, None] + shape
  test_gt = np.array([[[5.0, 5], [18, 9]]])
  result = regress_landmarks(shift[:, None], train_gt, np.array([[[5.0, 5]]]), test_gt)
  assert result.train < 1e-12
  np.testing.assert_allclose(result.test, 2.5 / np.hypot(13, 4))
  np.testing.assert_allclose(result.test_landmarks, [[[5, 5], [15, 5]]])


def test_normalizer_replaces_the_eye_distance():
  data = faces()
  lengths = (np.full(40, 7.0), np.where(np.arange(15) < 3, 0.0, 7.0))
  result = regress_landmarks(**data, normalizer=lengths)
  distances = np.linalg.norm(result.test_landmarks - data["test_gt"], axis=-1)
  np.testing.assert_allclose(result.test, distances[3:].mean() / 7)
  assert (result.num_test, result.left_out_test) == (12, 3)
  np.testing.assert_allclose(result.test_errors, np.where(lengths[1] > 0, distances.mean(axis=1) / 7, np.nan))


def test_a_landmark_that_no_training_image_shows_does_not_count():
  data = faces()
  visible = (np.arange(5) < np.full((40, 1), 4), np.ones((15, 5), bool))
  result = regress_landmarks(**data, visible=visible)
  without = {name: data[name][:, :4] for name in ("train_gt", "test_gt")}
  expected = regress_landmarks(**{**data, **without})
  assert result == expected
  np.testing.assert_array_equal(result.test_landmarks[:, :4], expected.test_landmarks)
  assert np.isnan(result.test_landmarks[:, 4]).all()
  assert np.isnan(result.test_landmark_errors).tolist() == [False] * 4 + [True]


def test_errors_of_each_landmark():
  data = faces()
  visible = (np.ones((40, 5), bool), np.ones((15, 5), bool))
  visible[1][:, 4] = False
  visible[1][:5, 3] = False
  lengths = (np.ones(40), np.where(np.arange(15) == 9, 0.0, np.arange(15) + 1.0))  # one image is not scored
  result = regress_landmarks(**data, visible=visible, normalizer=lengths)
  with np.errstate(divide="ignore"):
    distances = np.linalg.norm(result.test_landmarks - data["test_gt"], axis=-1) / lengths[1][:, None]
  scored = np.arange(15) != 9
  expected = [distances[scored, i].mean() for i in range(3)]
  expected += [distances[scored & (np.arange(15) >= 5), 3].mean(), np.nan]
  np.testing.assert_allclose(result.test_landmark_errors, expected)


def test_all_visible_is_the_default():
  data = faces()
  visible = (np.ones((40, 5), bool), np.ones((15, 5), bool))
  assert regress_landmarks(**data, visible=visible) == regress_landmarks(**data)


def test_hidden_landmarks_are_not_read():
  data = faces()
  visible = (np.ones((40, 5), bool), np.ones((15, 5), bool))
  visible[0][::3, 2] = False  # landmark 2 in a third of the training images
  visible[1][0, 3] = False
  visible[1][1, 0] = False  # an eye: without a normaliser of its own the image can't be scored
  visible[1][2] = False  # nothing is visible
  result = regress_landmarks(**data, visible=visible)
  assert (result.num_train, result.left_out_train) == (40, 0)
  assert (result.num_test, result.left_out_test) == (13, 2)
  hidden = {"train_gt": np.where(visible[0][..., None], data["train_gt"], np.nan)}
  hidden["test_gt"] = np.where(visible[1][..., None], data["test_gt"], np.nan)
  assert regress_landmarks(**{**data, **hidden}, visible=visible) == result

  rows = visible[0][:, 2]
  alone = regress_landmarks(
    data["train_pred"][rows], data["train_gt"][rows], data["test_pred"], data["test_gt"]
  ).test_landmarks
  np.testing.assert_allclose(result.test_landmarks[:, 2], alone[:, 2], rtol=1e-10)
  scored = np.delete(np.arange(15), [1, 2])
  distances = np.linalg.norm(result.test_landmarks - data["test_gt"], axis=-1)[scored]
  eyes = np.linalg.norm(data["test_gt"][:, 0] - data["test_gt"][:, 1], axis=-1)[scored]
  expected = (distances * visible[1][scored]).sum(1) / visible[1][scored].sum(1) / eyes
  np.testing.assert_allclose(result.test, expected.mean())


def test_permuting_parts_and_changing_their_frame_change_nothing():
  data = faces()
  result = regress_landmarks(**data)
  order = [2, 0, 3, 1]
  moved = {name: data[name][:, order] * [64, 48] + [10, 20] for name in ("train_pred", "test_pred")}
  changed = regress_landmarks(**{**data, **moved})
  np.testing.assert_allclose([changed.train, changed.test], [result.train, result.test], rtol=1e-10)


def test_scaling_the_landmarks_changes_nothing():
  data = faces()
  result = regress_landmarks(**data)
  scaled = regress_landmarks(**{**data, "train_gt": data["train_gt"] * 3, "test_gt": data["test_gt"] * 3})
  np.testing.assert_allclose(scaled.test, result.test, rtol=1e-10)


def test_fewer_images_than_unknowns_has_the_minimum_norm():
  data = faces(train=3)
  result = regress_landmarks(**data)
  np.testing.assert_allclose([result.train, result.test], oracle(**data), rtol=1e-8, atol=1e-12)


def test_mean_shape():
  data = faces()
  result = mean_shape_error(data["train_gt"], data["test_gt"])
  mean = data["train_gt"].mean(0)
  np.testing.assert_allclose(result.test_landmarks, np.broadcast_to(mean, (15, 5, 2)))
  eyes = np.linalg.norm(data["test_gt"][:, 0] - data["test_gt"][:, 1], axis=-1)
  expected = (np.linalg.norm(data["test_gt"] - mean, axis=-1).mean(1) / eyes).mean()
  np.testing.assert_allclose(result.test, expected)
  assert result.test > regress_landmarks(**data).test


def test_a_constant_coordinate_is_ignored_despite_rounding():
  data = faces()
  result = regress_landmarks(**data)
  for name in ("train_pred", "test_pred"):
    data[name] = np.concatenate([data[name], np.full((len(data[name]), 1, 2), 0.1)], axis=1)
  np.testing.assert_allclose(regress_landmarks(**data).test, result.test, rtol=1e-10)


def broken(name, value):
  data = faces()
  data[name] = data[name].copy()
  data[name][3, 0, 0] = value
  return data


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_raise(name, value):
  with pytest.raises(ValueError, match=f"{name} has a value that is not finite in 1 images, first 3"):
    regress_landmarks(**broken(name, value))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"train_pred": np.zeros((39, 4, 2))}, "39 images but train_gt has 40"),
    ({"test_pred": np.zeros((15, 3, 2))}, "same numbers of part centres"),
    ({"train_gt": np.zeros((40, 4, 2)), "test_gt": np.zeros((15, 5, 2))}, "same numbers of part centres"),
    ({"train_pred": np.zeros((40, 8))}, r"train_pred must be \[N, points, 2\]"),
    ({"test_pred": np.zeros((0, 4, 2)), "test_gt": np.zeros((0, 5, 2))}, "at least one image"),
    ({"normalizer": (np.ones(40), np.ones(14))}, "normalizer of test must be 15"),
    ({"normalizer": (-np.ones(40), np.ones(15))}, "normalizer of train"),
    ({"normalizer": (np.ones(40), np.zeros(15))}, "no test image has both a positive normaliser"),
    ({"visible": (np.ones((40, 5)), np.ones((15, 5), bool))}, "visible of train must be bool"),
    ({"visible": (np.ones((40, 4), bool), np.ones((15, 5), bool))}, "visible of train must be bool"),
    ({"visible": (np.zeros((40, 5), bool), np.ones((15, 5), bool))}, "no train image has both"),
  ],
)
def test_bad_input_raises(change, message):
  with pytest.raises(ValueError, match=message):
    regress_landmarks(**{**faces(), **change})


def test_one_landmark_needs_a_normalizer():
  data = faces(landmarks=1)
  with pytest.raises(ValueError, match="give normalizer="):
    regress_landmarks(**data)
  assert regress_landmarks(**data, normalizer=(np.ones(40), np.ones(15))).num_test == 15
