"""The gallery: which images are kept, at what size, and the parts' mean appearance."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from scops_jax.errors import UserError
from scops_jax.report.gallery import Gallery, GalleryBuilder
from tests import pages


def batch(count, height=20, width=30):
  """Image i is of grey level i; part 1 is a rectangle about its centre, part 2 absent."""
  images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, height, width, 3))
  labels = np.zeros((count, height, width), np.uint8)
  labels[:, 8:13, 11:20] = 1
  centers = np.zeros((count, 2, 2))
  centers[:, 0] = (15 / (width - 1) * 2 - 1, 10 / (height - 1) * 2 - 1)
  return images, labels, centers


def build(count, batch_size=7, **options):
  images, labels, centers = batch(count)
  builder = GalleryBuilder(2)
  for i in range(0, count, batch_size):
    rows = slice(i, i + batch_size)
    builder.add(images[rows], labels[rows], centers[rows], foreground=labels[rows] > 0)
  return builder.build(**options)


def decode(file):
  return np.asarray(Image.open(io.BytesIO(file)))


def test_few_images_are_all_kept_in_order():
  errors = np.array([0.3, np.nan, 0.1])
  landmarks = np.arange(3 * 4 * 2).reshape(3, 4, 2)
  gallery = build(3, errors=errors, landmarks=landmarks, predicted=landmarks + 1)
  np.testing.assert_array_equal(gallery.indices, [0, 1, 2])
  np.testing.assert_array_equal(gallery.errors, errors)
  np.testing.assert_array_equal(gallery.predicted, landmarks + 1)
  assert (gallery.num_test, gallery.num_worst, gallery.error_name) == (3, 0, "landmark error")


def test_of_many_images_the_worst_and_an_even_sample_are_kept():
  errors = np.where(np.arange(30) % 10 == 4, 1.0, 0.1)  # 4, 14 and 24 are bad
  errors[[0, 29]] = np.nan
  landmarks = np.arange(30 * 2).reshape(30, 1, 2)
  gallery = build(30, errors=errors, landmarks=landmarks, max_images=12, max_worst=3)
  # By hand: nine evenly over 30, and three more.
  np.testing.assert_array_equal(gallery.indices, [0, 3, 4, 6, 10, 13, 14, 16, 20, 23, 24, 26])
  np.testing.assert_array_equal(gallery.landmarks, landmarks[gallery.indices])
  assert [int(np.rint(decode(file).mean())) for file in gallery.images] == gallery.indices.tolist()
  assert (gallery.num_test, gallery.num_worst) == (30, 3)
  np.testing.assert_array_equal(gallery.test_errors, errors)


def test_the_even_sample_does_not_depend_on_the_errors():
  chosen = [
    build(30, errors=errors, max_images=12, max_worst=3).indices
    for errors in (np.arange(30.0), -np.arange(30.0))
  ]
  assert {0, 3, 6, 10, 13, 16, 20, 23, 26} == set(chosen[0].tolist()) & set(chosen[1].tolist())


def assert_equal(one, other):
  assert vars(one).keys() == vars(other).keys()
  for name, value in vars(one).items():
    np.testing.assert_array_equal(getattr(other, name), value)
    assert type(getattr(other, name)) is type(value)


@pytest.mark.parametrize("annotated", [True, False])
def test_a_saved_gallery_is_loaded_whole(tmp_path, annotated):
  saved = dataclasses.replace(pages.gallery(annotated=annotated), landmark_normalizer="box")
  saved.save(tmp_path / "gallery.npz")
  assert_equal(saved, Gallery.load(tmp_path / "gallery.npz"))
  assert [path.name for path in tmp_path.iterdir()] == ["gallery.npz"]


def test_a_missing_or_damaged_gallery_is_named(tmp_path):
  path = tmp_path / "gallery.npz"
  with pytest.raises(UserError, match="is missing: evaluate"):
    Gallery.load(path)
  pages.gallery().save(path)
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(UserError, match="is damaged"):
    Gallery.load(path)


def test_an_image_without_an_error_is_never_among_the_worst():
  errors = np.full(10, np.nan)
  errors[4] = 0.1
  gallery = build(10, errors=errors, max_images=2, max_worst=2)
  assert (gallery.num_worst, gallery.indices.tolist()) == (1, [0, 4])


def test_without_landmarks_the_foreground_ranks_the_images():
  images, labels, centers = batch(3)
  truth = labels > 0  # 45 pixels
  truth[1, 8:13, 11] = False  # 40 of them
  labels[2] = 0
  truth[2] = False
  builder = GalleryBuilder(2)
  builder.add(images, labels, centers, foreground=truth)
  gallery = builder.build()
  np.testing.assert_allclose(gallery.errors, [0, 1 - 40 / 45, np.nan])
  assert gallery.error_name == "1 − foreground IoU"
  assert gallery.landmarks is gallery.predicted is None


def test_large_images_are_reduced_and_stay_in_proportion():
  images, labels, centers = batch(2, height=300, width=600)
  builder = GalleryBuilder(2)
  builder.add(images, labels, centers, foreground=labels > 0)
  gallery = builder.build()
  assert decode(gallery.images[0]).shape == (128, 256, 3)
  assert gallery.labels.shape == (2, 128, 256)
  assert set(np.unique(gallery.labels)) == {0, 1}


def test_labels_and_masks_are_kept_exactly():
  np.testing.assert_array_equal(build(5).labels, batch(5)[1])
  np.testing.assert_array_equal(build(5).foreground, batch(5)[1] > 0)


def test_mean_appearance_is_the_mean_of_the_parts_own_pixels():
  images, labels, centers = batch(2)
  images = np.where((labels == 1)[..., None], np.array([[[[100]]], [[[200]]]]), np.full(3, 7))
  labels[1, 8:13, 16:20] = 0  # in the second image the part lacks its right half
  builder = GalleryBuilder(2)
  builder.add(images.astype(np.uint8), labels, centers, foreground=labels > 0)
  gallery = builder.build()
  middle, right = gallery.appearance[0, 32, 32], gallery.appearance[0, 32, 32 + 19]
  # 64 samples span half of 20 pixels: 19 samples are 3 pixels.
  np.testing.assert_array_equal(middle, [150, 150, 150, 255])
  np.testing.assert_array_equal(right, [100, 100, 100, 128])
  assert gallery.appearance[0, 0, 32, 3] == 0
  np.testing.assert_array_equal(gallery.appearance[1], 0)
  np.testing.assert_array_equal(gallery.num_present, [2, 0])


@pytest.mark.parametrize("corner", [-1.0, 1.0])
def test_a_part_at_the_border_has_no_pixels_beyond(corner):
  images = np.full((1, 20, 30, 3), 50, np.uint8)
  builder = GalleryBuilder(1)
  labels = np.ones((1, 20, 30), np.uint8)
  builder.add(images, labels, np.full((1, 1, 2), corner), foreground=labels > 0)
  alpha = builder.build().appearance[0, ..., 3]
  outer, inner = (0, -1) if corner < 0 else (-1, 0)
  assert (alpha[outer, outer], alpha[inner, inner]) == (0, 255)
