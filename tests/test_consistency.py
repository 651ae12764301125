"""Consistency without labels: exact where the parts follow the image, by hand where they do not."""

import numpy as np
import pytest

from scops_jax.evaluation.consistency import Consistency, similarity, unwarp_labels, warp_pictures

HEIGHT, WIDTH = 60, 80
NUM_PARTS = 2
CENTERS = np.array([[24.0, 30.0], [54.0, 28.0]])  # (x, y) of two discs


def picture():
  """A black image with a red and a green disc."""
  x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
  image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
  for channel, (column, row) in enumerate(CENTERS):
    image[(x - column) ** 2 + (y - row) ** 2 <= 81, channel] = 200
  return image


def segment(batch):
  """Finds the discs by their colours: as consistent as pixels allow."""
  red, green = batch["image"][..., 0] > 100, batch["image"][..., 1] > 100
  labels = np.where(green, 2, np.where(red, 1, 0))
  x, y = np.meshgrid(np.linspace(-1, 1, WIDTH), np.linspace(-1, 1, HEIGHT))
  centers = [[(x[m == k].mean(), y[m == k].mean()) for k in (1, 2)] for m in labels]
  return {"labels": labels.astype(np.uint8), "centers": np.array(centers)}


def measures(predict, *, count=3, batch_size=4):
  images = np.tile(picture(), (count, 1, 1, 1))
  rows = {"image": images, "saliency": images[..., 0]}
  consistency = Consistency(NUM_PARTS)
  consistency.add(rows | predict(rows))
  return consistency.measures(predict, batch_size=batch_size)


def test_a_warp_and_its_way_back():
  maps = similarity(
    np.array([0.3, 0.0]), np.array([0.8, 1.0]), np.array([[3.0, -2.0], [5.0, 0.0]]), size=(60, 80)
  )
  # By hand: without turning, pixel (10, 7) of the second warped image is pixel (15, 7) of the image.
  image = picture()
  image[7, 15] = 77
  warped = warp_pictures(np.stack([image, image]), maps)
  assert (warped[1, 7, 10] == 77).all()
  # The disc's middle goes where the inverse map says, and shrinks.
  place = np.linalg.inv(maps[0, :, :2]) @ (CENTERS[1] - maps[0, :, 2])
  y, x = np.nonzero(warped[0, ..., 1] > 100)
  np.testing.assert_allclose((x.mean(), y.mean()), place, atol=0.3)
  assert len(x) == pytest.approx(0.8**2 * np.count_nonzero(image[..., 1]), rel=0.1)
  labels = segment({"image": warped})["labels"]
  back = unwarp_labels(labels, maps)
  own = segment({"image": image[None]})["labels"][0]
  assert (back[0] == own).mean() > 0.97
  assert (back[1][:, :5] == -1).all()  # shifted out of the frame


def test_parts_that_follow_the_image_are_consistent():
  found = measures(segment)
  assert found["warp_center_error"] < 0.2
  assert found["clip_center_jitter"] < 0.3
  assert found["warp_label_agreement"] > 0.9
  assert min(found["warp_part_agreement"]) > 0.9
  assert found["clip_label_flicker"] < 0.1


def test_the_number_of_images_a_call_does_not_matter():
  assert measures(segment, batch_size=4) == measures(segment, batch_size=7)


def test_parts_that_stay_where_they_are_move_against_the_image():
  fixed = segment({"image": picture()[None]})

  def stay(batch):
    return {name: np.repeat(value, len(batch["image"]), axis=0) for name, value in fixed.items()}

  found = measures(stay)
  assert found["warp_center_error"] > 3
  assert found["warp_label_agreement"] < 0.7
  # A part without a pixel has no agreement, and there is nothing to compare without any.
  nothing = {"labels": np.zeros((1, HEIGHT, WIDTH), np.uint8), "centers": np.zeros((1, NUM_PARTS, 2))}

  def empty(batch):
    return {name: np.repeat(value, len(batch["image"]), axis=0) for name, value in nothing.items()}

  assert measures(empty) == {
    "warp_center_error": None,
    "warp_label_agreement": None,
    "warp_part_agreement": [None, None],
    "clip_center_jitter": None,
    "clip_label_flicker": None,
  }
