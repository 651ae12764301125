"""One frame: a shape drawn at a known place of a picture of any size is read, found and labelled there."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from scops_jax import geometry
from scops_jax.data import pipeline
from scops_jax.prediction.files import ImageFile, OutputFiles, load_image, predict_batch, write_image
from scops_jax.prediction.predictor import PartPrediction, Predictor

SQUARE = 128
SIZES = [(1280, 720), (333, 517), (128, 128), (81, 57)]  # width, height


def bright_is_part_1(images):
  """Stands in for a network: the probability of part 1 is a pixel's brightness."""
  part = np.asarray(images)[..., 0] / np.float32(255)
  probs = np.stack([1 - part, part], axis=-1)
  centers = np.asarray(geometry.part_centers(probs, epsilon=0.0))
  return PartPrediction(probs.argmax(-1).astype(np.uint8), probs, centers)


def predict_file(path, out):
  loaded = load_image(ImageFile(path.name, path, path.stem), image_size=SQUARE)
  (predicted,) = predict_batch(bright_is_part_1, [loaded], size=1)
  done = write_image(predicted, out=OutputFiles(out, probabilities=True))
  with Image.open(out / "labels" / f"{path.stem}.png") as labels:
    return done, np.asarray(labels)


def draw(size, box):
  picture = Image.new("RGB", size)
  ImageDraw.Draw(picture).rectangle(box, fill="white")
  return picture


@pytest.mark.parametrize("size", SIZES)
def test_a_part_is_reported_where_it_was_drawn(size, tmp_path):
  height = size[1]
  x0, x1 = 12, 27  # 16 columns about 19.5
  y0, y1 = height // 2, height // 2 + (99 if height > 300 else 9)
  draw(size, (x0, y0, x1, y1)).save(tmp_path / "a.png")
  done, _ = predict_file(tmp_path / "a.png", tmp_path / "out")
  (_, x, y, _, _), *_ = done.rows
  assert (x, y) == (pytest.approx((x0 + x1) / 2, abs=0.5), pytest.approx((y0 + y1) / 2, abs=0.5))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("axis", [0, 1])
def test_an_edge_is_labelled_where_it_was_drawn(size, axis, tmp_path):
  width, height = size
  edge = 200 if min(size) > 200 else 20
  box = (edge, 0, width, height) if axis == 0 else (0, edge, width, height)
  picture = draw(size, box)
  picture.save(tmp_path / "a.png")
  _, labels = predict_file(tmp_path / "a.png", tmp_path / "out")
  profile = labels[height // 2] if axis == 0 else labels[:, width // 2]
  assert int(np.flatnonzero(profile)[0]) == pytest.approx(edge, abs=1)
  assert profile.sum() == pytest.approx(len(profile) - edge, abs=1)


@pytest.mark.parametrize("size", SIZES)
def test_load_predictor_resizes_maps_back_into_place(size, monkeypatch):
  width, height = size
  edge = 200 if min(size) > 200 else 20
  predict = object.__new__(Predictor)
  predict._batch_size, predict._predict, predict.image_size = 1, bright_is_part_1, SQUARE
  found = predict(np.asarray(draw(size, (edge, 0, width, height)))[None])
  assert int(np.flatnonzero(found.labels[0, height // 2])[0]) == pytest.approx(edge, abs=1)
  np.testing.assert_allclose(found.probs.sum(-1), 1, atol=1e-5)
  x, _ = geometry.pixels_from_points(found.centers[0, 0], width=width, height=height, square=SQUARE)
  assert x == pytest.approx((edge + width - 1) / 2, abs=0.5)


@pytest.mark.parametrize("size", SIZES)
def test_landmarks_and_boxes_lie_on_what_was_drawn(size):
  """The brightest place of the square that the network sees is the landmark."""
  width, height = size
  landmark = np.array([[0.7 * width, 0.25 * height]], np.float32)
  columns, rows = np.meshgrid(np.arange(width), np.arange(height))
  spread = 0.05 * min(size)
  squared = (columns - landmark[0, 0]) ** 2 + (rows - landmark[0, 1]) ** 2
  blob = np.rint(255 * np.exp(-squared / (2 * spread**2))).astype(np.uint8)

  class Source(list):
    def read(self, index, fields):
      return {"image": np.stack([blob] * 3, axis=-1), "landmarks": landmark, "box": np.tile(landmark[0], 2)}

  (batch,) = pipeline.evaluation_batches(Source([0]), batch_size=1, image_size=SQUARE, num_threads=0)
  found = bright_is_part_1(batch["image"]).centers[0, 0]
  half_a_pixel_of_the_original = 1 / np.array(size)
  assert (np.abs(found - batch["landmarks"][0, 0]) < half_a_pixel_of_the_original).all()
  np.testing.assert_array_equal(batch["box"][0].reshape(2, 2), batch["landmarks"][0].repeat(2, axis=0))


def test_points_and_pixels_are_inverse_and_the_same_where_nothing_is_resized():
  pixels = np.array([[0.0, 0.0], [19.5, 3.25], [63, 63]])
  points = geometry.points_from_pixels(pixels, width=64, height=64, square=64)
  np.testing.assert_array_equal(points, 2 * pixels / 63 - 1)
  options = {"width": 1280, "height": 71, "square": 64}
  there = geometry.points_from_pixels(pixels, **options)
  np.testing.assert_allclose(geometry.pixels_from_points(there, **options), pixels, atol=1e-12)
  # By hand: x' = (0 + 1/2) 64 / 1280 - 1/2 = -0.475.
  assert there[0, 0] == pytest.approx(2 * -0.475 / 63 - 1)
