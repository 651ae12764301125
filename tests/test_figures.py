"""Pictures of parts: colours, positions, files and bad input."""

import numpy as np
import pytest
from PIL import Image

from scops_jax.report import figures
from scops_jax.report.palette import part_colors


def scene(count=3, height=24, width=40):
  images = np.full((count, height, width, 3), 100, np.uint8)
  labels = np.zeros((count, height, width), np.int32)
  labels[:, 4:12, 5:15] = 1
  labels[:, 14:20, 25:35] = 2
  centers = np.zeros((count, 3, 2), np.float32)
  return images, labels, centers


def test_part_colors_are_far_apart_and_repeat():
  colors = part_colors(16).astype(int)
  distance = np.linalg.norm(colors[:, None] - colors, axis=-1) + 1000 * np.eye(16)
  assert distance.min() > 45
  assert distance[:8, :8].min() > 90
  np.testing.assert_array_equal(part_colors(18)[16:], colors[:2])


def test_overlay_blends_parts_and_keeps_the_background():
  images, labels, _ = scene()
  result = figures.overlay(images, labels)
  assert result.dtype == np.uint8
  np.testing.assert_array_equal(result[labels == 0], images[labels == 0])
  for part, color in enumerate(part_colors(2).astype(float), 1):
    np.testing.assert_array_equal(np.unique(result[labels == part], axis=0), [np.rint(45 + 0.55 * color)])


def test_overlay_does_not_change_its_input():
  images, labels, _ = scene()
  copy = images.copy()
  figures.overlay(images, labels.astype(np.uint8))
  np.testing.assert_array_equal(images, copy)


def read(path):
  return np.asarray(Image.open(path).convert("RGB"))


def find(picture, color):
  """Returns the bounding box (left, top, right, bottom) of a colour's pixels."""
  rows, columns = np.nonzero((picture == color).all(axis=-1))
  return columns.min(), rows.min(), columns.max(), rows.max()


def test_figure_has_a_column_for_every_image_and_wraps(tmp_path):
  images, labels, centers = scene(count=9)
  figures.part_figure(images[:5], labels[:5], centers[:5], tmp_path / "one.png")
  figures.part_figure(images, labels, centers, tmp_path / "two.png")
  one, two = read(tmp_path / "one.png"), read(tmp_path / "two.png")
  assert 5 * 160 < one.shape[1] < 6 * 160
  assert 8 * 160 < two.shape[1] < 9 * 160
  assert two.shape[0] > 1.5 * one.shape[0]


def test_pixel_positions_are_align_corners():
  points = np.array([[[-1.0, -1.0], [1.0, 1.0]], [[0.0, 0.0], [0.5, -0.5]]])
  found = figures.pixel_positions(points, height=5, width=9)
  np.testing.assert_array_equal(found, [[[0, 0], [8, 4]], [[4, 2], [6, 1]]])


def test_figure_puts_centres_where_they_are(tmp_path):
  images, labels, centers = scene(count=1)
  # Pixel (row 18, column 10) of 24 × 40, inside neither part: the disc alone has its colour undiluted.
  centers[0, 0] = (10 / 39 * 2 - 1, 18 / 23 * 2 - 1)
  figures.part_figure(images, labels, centers, tmp_path / "a.png")
  picture = read(tmp_path / "a.png")
  tile = picture[6 + 96 + 6 : 6 + 96 + 6 + 96, 6 : 6 + 160]  # scale 4; the gap is 6 pixels
  left, top, right, bottom = find(tile, part_colors(1)[0])
  assert (left + right) / 2 == pytest.approx(10.5 * 4 - 0.5, abs=1)
  assert (top + bottom) / 2 == pytest.approx(18.5 * 4 - 0.5, abs=1)


def test_figure_leaves_out_centres_of_absent_parts(tmp_path):
  images, labels, centers = scene(count=1)
  figures.part_figure(images, labels, centers, tmp_path / "a.png")
  overlay_row = read(tmp_path / "a.png")[108:204, 6:166]
  assert not (overlay_row == part_colors(3)[2]).all(axis=-1).any()


def test_figure_marks_landmarks_and_skips_hidden_ones(tmp_path):
  images, labels, centers = scene(count=2)
  landmarks = np.full((2, 2, 2), np.nan)
  landmarks[0, 0] = 0
  figures.part_figure(images, labels, centers, tmp_path / "a.png", landmarks=landmarks)
  figures.part_figure(
    images, labels, centers, tmp_path / "b.png", landmarks=landmarks, predicted=np.zeros((2, 2, 2))
  )
  first, both = read(tmp_path / "a.png"), read(tmp_path / "b.png")
  bottom = slice(6 + 2 * 102, 6 + 2 * 102 + 96)
  marked = [(first[bottom, x : x + 160] != 100).any() for x in (6, 172)]
  assert marked == [True, False]
  assert (both[bottom, 172:332] != 100).any()


def test_files_are_replaced_and_nothing_else_is_left(tmp_path):
  images, labels, centers = scene()
  for count in (1, 3):
    figures.part_figure(images[:count], labels[:count], centers[:count], tmp_path / "a.png")
  assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
  assert read(tmp_path / "a.png").shape[1] > 3 * 160


def test_the_same_input_gives_the_same_bytes(tmp_path):
  images, labels, centers = scene()
  for name in ("a.png", "b.png"):
    figures.part_figure(images, labels, centers, tmp_path / name)
  assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
  ("change", "error", "message"),
  [
    ({"images": np.zeros((3, 24, 40, 3))}, TypeError, "uint8"),
    ({"labels": np.zeros((3, 24, 40))}, TypeError, "integers"),
    ({"labels": np.zeros((3, 40, 24), int)}, ValueError, r"labels \[B, H, W\]"),
    ({"images": np.zeros((3, 24, 40), np.uint8)}, ValueError, r"\[B, H, W, 3\]"),
    ({"labels": np.full((3, 24, 40), -1)}, ValueError, r"0 .. 255"),
    ({"labels": np.full((3, 24, 40), 4)}, ValueError, r"0 .. 3, as many as centers"),
    ({"centers": np.zeros((2, 3, 2))}, ValueError, r"centers must be \[3, points, 2\]"),
    ({"landmarks": np.zeros((3, 5, 3))}, ValueError, "landmarks must be"),
  ],
)
def test_bad_figures_raise_and_write_nothing(tmp_path, change, error, message):
  arguments = dict(zip(("images", "labels", "centers"), scene(), strict=True)) | change
  with pytest.raises(error, match=message):
    figures.part_figure(**arguments, path=tmp_path / "a.png")
  assert not list(tmp_path.iterdir())
