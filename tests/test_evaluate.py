"""The evaluation driver: padding dropped, ground truth missing, the baseline's file."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from scops_jax.config import default_config
from scops_jax.errors import UserError
from scops_jax.evaluation.evaluate import Dff, evaluate, fit_dff

SIDE, NUM_PARTS = 8, 2


def config(**overrides):
  result = default_config()
  values = {"num_parts": NUM_PARTS, "nmf.num_images": 6, "nmf.num_iterations": 5}
  result.update_from_flattened_dict(values | overrides)
  return result


def batches(count, batch_size=4, num_landmarks=2, seed=0):
  """Batches with the last one padded by garbage that must not count."""
  rng = np.random.default_rng(seed)
  for start in range(0, count, batch_size):
    valid = np.arange(start, start + batch_size) < count
    parts = np.zeros((batch_size, SIDE, SIDE), np.uint8)
    parts[valid, 2:6, 2:4] = 1
    parts[valid, 2:6, 4:6] = 2
    yield {
      "image": rng.integers(0, 256, (batch_size, SIDE, SIDE, 3), np.uint8),
      "saliency": np.where(parts > 0, 255, 0).astype(np.uint8),
      "landmarks": rng.uniform(-1, 1, (batch_size, num_landmarks, 2)).astype(np.float32),
      "visible": np.ones((batch_size, num_landmarks), bool),
      "box": np.tile(np.float32((-0.5, -0.25, 0.5, 0.25)), (batch_size, 1)),
      "parts": np.where(valid[:, None, None], parts, 7).astype(np.uint8),
      "valid": valid,
    }


def splits(count, **options):
  return {"regression": batches(count, **options), "test": batches(count, seed=1, **options)}


def predict(batch):
  images = batch["image"]
  labels = np.zeros(images.shape[:3], np.uint8)
  labels[:, 2:6, 2:4] = 2
  labels[:, 2:6, 4:7] = 1  # a column too wide
  rng = np.random.default_rng(len(images))
  # Where the background is likeliest, part 1 is the next.
  return {
    "labels": labels,
    "likeliest_parts": np.maximum(labels, 1),
    "centers": rng.uniform(-1, 1, (len(images), NUM_PARTS, 2)).astype(np.float32),
  }


def dff(count):
  rng = np.random.default_rng(1)
  centers = rng.uniform(-1, 1, (count, NUM_PARTS, 2))
  return Dff(np.ones((NUM_PARTS, 3)), centers, centers)


def test_every_image_counts_once_and_the_padding_not_at_all():
  results, figure, gallery = evaluate(predict, **splits(10), dff=dff(10), num_classes=3, config=config())
  assert (results["num_train"], results["num_test"]) == (10, 10)
  # By hand: truth 16 pixels, prediction 20 that contain them.
  assert results["foreground_iou"] == pytest.approx(16 / 20)
  assert results["part_area_fractions"] == pytest.approx([12 / 20, 8 / 20])
  # On the true foreground the labels are the classes, renamed.
  assert results["nmi"] == pytest.approx(1.0)
  assert results["ari"] == pytest.approx(1.0)
  assert results["foreground_iou_mean"] == pytest.approx(16 / 20)
  # With the background's pixels the column that is too wide counts.
  assert 0 < results["ari_with_background"] < 1
  assert 0 < results["nmi_with_background"] < 1
  assert np.mean(results["landmark_errors_test"]) == pytest.approx(results["landmark_error_test"])
  assert len(figure["images"]) == len(figure["labels"]) == len(figure["predicted"]) == 10
  assert gallery.num_test == len(gallery.images) == len(gallery.predicted) == 10
  assert gallery.errors.mean() == pytest.approx(results["landmark_error_test"])
  np.testing.assert_array_equal(gallery.num_present, [10, 10])


def test_without_ground_truth_the_saliency_is_the_foreground_and_the_rest_is_null():
  results, figure, gallery = evaluate(
    predict, **splits(10, num_landmarks=0), dff=dff(10), num_classes=0, config=config()
  )
  assert results["foreground_iou"] == pytest.approx(16 / 20)
  known = {"foreground_iou", "foreground_iou_mean", "part_area_fractions", "num_train", "num_test"}
  known |= {"warp_center_error", "warp_label_agreement", "warp_part_agreement"}
  known |= {"clip_center_jitter", "clip_label_flicker"}
  assert {key for key, value in results.items() if value is not None} == known
  assert figure.keys() == {"images", "labels", "centers"}
  assert gallery.landmarks is gallery.predicted is None
  np.testing.assert_allclose(gallery.errors, 1 - 16 / 20)


def test_the_image_edge_as_normaliser():
  options = {"dff": dff(10), "num_classes": 3}
  by_eyes, *_ = evaluate(predict, **splits(10), config=config(), **options)
  by_edge, *_ = evaluate(
    predict, **splits(10), config=config(**{"data.landmark_normalizer": "image"}), **options
  )
  # Points are in [-1, 1]: no distance of two exceeds the edge by more than √2.
  assert by_edge["landmark_error_test"] < by_eyes["landmark_error_test"]
  assert by_edge["mean_shape_error_test"] < 2**0.5


def test_the_longer_edge_of_the_box_as_normaliser():
  options = {"dff": dff(10), "num_classes": 3}
  by_image, by_box = (
    evaluate(predict, **splits(10), config=config(**{"data.landmark_normalizer": unit}), **options)[0]
    for unit in ("image", "box")
  )
  # Every box is 1 × 0.5, the image 2 × 2.
  for key in ("landmark_error_train", "landmark_error_test", "mean_shape_error_test", "dff_error_test"):
    assert by_box[key] == pytest.approx(2 * by_image[key])
  # Whatever the config's unit, the published ones are there.
  for results in (by_image, by_box):
    assert results["landmark_error_test_eyes"] is None
    assert results["landmark_error_test_image"] == pytest.approx(by_image["landmark_error_test"])
    assert results["landmark_error_test_box_edge"] == pytest.approx(by_box["landmark_error_test"])
  edge, sides = (by_box[f"landmark_error_test_box_{unit}"] for unit in ("edge", "sides"))
  assert edge < sides < 2 * edge  # the height is half as long


def test_a_box_that_is_the_whole_image_is_none():
  whole = np.tile(np.float32((-1.01, -1, 1, 1.01)), (4, 1))
  chosen = {name: [batch | {"box": whole} for batch in split] for name, split in splits(10).items()}
  results, *_ = evaluate(predict, **chosen, dff=dff(10), num_classes=3, config=config())
  for key in ("landmark_error_test_box_edge", "landmark_error_test_box_sides", "keypoint_box_nmi"):
    assert results[key] is None
  assert results["landmark_error_test_eyes"] == pytest.approx(results["landmark_error_test"])


def hiding(landmark, num_landmarks=3):
  """The splits of `splits`, where a landmark can't be seen in the images of the regression."""
  found = {name: list(split) for name, split in splits(10, num_landmarks=num_landmarks).items()}
  for batch in found["regression"]:
    batch["visible"][:, landmark] = False
  return found


def test_a_landmark_that_no_image_of_the_regression_shows_does_not_count():
  options = {"dff": dff(10), "num_classes": 3, "config": config()}
  with_it, figure, _ = evaluate(predict, **hiding(2), **options)
  assert np.isnan(figure["predicted"][:, 2]).all()
  assert np.isfinite(figure["predicted"][:, :2]).all()

  first_two = {
    name: [
      batch | {"landmarks": batch["landmarks"][:, :2], "visible": batch["visible"][:, :2]} for batch in split
    ]
    for name, split in splits(10, num_landmarks=3).items()
  }
  without_it, *_ = evaluate(predict, **first_two, **options)
  assert with_it["landmark_errors_test"] == [*without_it["landmark_errors_test"], None]
  # At landmarks the labels are scored without the regression.
  regressed = [key for key in with_it if "keypoint" not in key and key != "landmark_errors_test"]
  assert [with_it[key] for key in regressed] == [without_it[key] for key in regressed]


def test_landmarks_are_scored_at_their_pixels():
  # On the 8 pixels of [-1, 1] column c is at 2 c / 7 - 1: part 2 at columns 2 and 3, part 1 from 4 to 6.
  places = np.array([[2.0, 3.0], [5.0, 4.0], [0.0, 0.0]]) / 7 * 2 - 1
  chosen = {
    name: [batch | {"landmarks": np.tile(np.float32(places), (4, 1, 1))} for batch in split]
    for name, split in splits(10, num_landmarks=3).items()
  }
  results, *_ = evaluate(predict, **chosen, dff=dff(10), num_classes=3, config=config())
  assert results["keypoint_nmi"] == pytest.approx(1)
  assert results["keypoint_ari"] == pytest.approx(1)
  # Without the background the third landmark is part 1, as the second: 10 landmarks each of labels 2, 1, 1.
  classes, parts = np.repeat([0, 1, 2], 10), np.repeat([2, 1, 1], 10)
  assert results["keypoint_fg_nmi"] == pytest.approx(normalized_mutual_info_score(classes, parts))
  assert results["keypoint_fg_ari"] == pytest.approx(adjusted_rand_score(classes, parts))
  # The third landmark is outside of the box, whose x is -0.5 .. 0.5 and y -0.25 .. 0.25: 3 and 4 are inside.
  assert results["keypoint_box_nmi"] == pytest.approx(1)
  # Of part 1's 12 pixels 8 are of class 2 and 4 of the background.
  assert results["part_purity"] == pytest.approx([2 / 3, 1])


def test_hidden_eyes_need_another_normaliser():
  options = {"dff": dff(10), "num_classes": 3}
  refused = r"data\.landmark_normalizer=inter_ocular needs training and test images"
  with pytest.raises(UserError, match=refused):
    evaluate(predict, **hiding(0), config=config(), **options)
  profiles = {**splits(10, num_landmarks=3), "test": hiding(0)["regression"]}
  with pytest.raises(UserError, match=refused):
    evaluate(predict, **profiles, config=config(), **options)
  results, *_ = evaluate(
    predict, **hiding(0), config=config(**{"data.landmark_normalizer": "box"}), **options
  )
  assert results["landmark_error_test"] > 0


def test_no_visible_landmark_at_all_is_no_ground_truth():
  results, *_ = evaluate(predict, **hiding(slice(None)), dff=dff(10), num_classes=3, config=config())
  assert results["landmark_error_test"] is None


def test_dff_centres_cover_both_splits_and_survive_the_file(tmp_path):
  def features(batch):
    return batch["image"][:, ::2, ::2].astype(np.float32) / 255

  fitted = fit_dff(features, train=batches(10), **splits(10), config=config())
  assert fitted.train_centers.shape == fitted.test_centers.shape == (10, NUM_PARTS, 2)
  assert fitted.part_basis.shape == (NUM_PARTS, 3)
  fitted.save(tmp_path / "dff.npz")
  for before, after in zip(fitted, Dff.load(tmp_path / "dff.npz"), strict=True):
    np.testing.assert_array_equal(before, after)
  bases = [fitted.part_basis]
  for initializer in ("clusters", "kmeans"):
    changed = config(**{"basis.initializer": initializer})
    clustered = fit_dff(features, train=batches(10), **splits(10), config=changed)
    assert clustered.part_basis.shape == (NUM_PARTS, 3)
    assert not any(np.array_equal(clustered.part_basis, basis) for basis in bases)
    bases.append(clustered.part_basis)


def test_labels_after_the_crf_are_scored_on_the_test_split_alone():
  calls = []

  def predict_refined(batch):
    calls.append(len(batch["image"]))
    labels = predict(batch)["labels"]
    refined = np.where(np.arange(SIDE) == 6, 0, labels).astype(np.uint8)  # without the column too many
    return predict(batch) | {"crf_labels": refined}

  options = {"dff": dff(10), "num_classes": 3, "config": config()}
  results = evaluate(predict, **splits(10), predict_refined=predict_refined, **options).results
  assert results["foreground_iou"] == pytest.approx(16 / 20)
  assert results["foreground_iou_crf"] == pytest.approx(1.0)
  assert len(calls) == 3  # the batches of one split
  assert evaluate(predict, **splits(10), **options).results["foreground_iou_crf"] is None
