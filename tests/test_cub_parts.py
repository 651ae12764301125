"""CUB-200-2011's published layout: categories, the square cut-out, hidden parts, and bad entries."""

import numpy as np
import pytest
from PIL import Image

from scops_jax.config import default_config
from scops_jax.data.collection import open_collection, prepare_collection
from scops_jax.data.source_files import square_around
from scops_jax.errors import UserError
from tests import miniatures
from tests.miniatures import cub_parts


@pytest.fixture
def config(tmp_path):
  config = default_config()
  config.data.name = "cub_parts"
  config.data.dir = str(tmp_path / "cub")
  config.data.cache_dir = str(tmp_path / "cache")
  return config


@pytest.fixture
def folder(tmp_path):
  return tmp_path / "cub"


def names(source):
  return [source[index]["name"].split("/")[1] for index in range(len(source))]


def test_counts_and_bad_entries(config, folder):
  cub_parts.write(folder)
  config.data.on_bad_example = "skip"
  preparation = prepare_collection(config)
  assert preparation.counts == {
    "train": {"read": 10, "skipped: can't be read": 7, "written": 3},
    "test": {"read": 2, "written": 2},
  }
  assert len(preparation.skipped) == len(cub_parts.FAULTS)
  for name, fault in cub_parts.FAULTS.values():
    (reason,) = (reason for reason in preparation.skipped if name in reason)
    assert fault in reason
  collection = open_collection(config)
  assert names(collection.train) == ["Bird_1.jpg", "Bird_3.jpg", "Bird_5.jpg"]
  assert names(collection.test) == ["Bird_2.jpg", "Bird_4.jpg"]
  assert collection.regression is collection.train
  assert collection.landmark_names[6] == "left_eye"


def test_a_bad_entry_is_an_error_by_default(config, folder):
  cub_parts.write(folder)
  with pytest.raises(UserError, match=r"001\.Black_footed_Albatross/Bird_11\.jpg: there is no file"):
    prepare_collection(config)


def test_the_square_about_the_bird(config, folder):
  cub_parts.write(folder, faults=False)
  collection = open_collection(config)
  path = folder / "CUB_200_2011" / "images" / cub_parts.CLASSES["1"] / "Bird_1.jpg"
  picture = np.asarray(Image.open(path))
  # Box: columns 10 to 29, rows 8 to 19. The square's side is 1.1 · 20 = 22: columns 9 to 30, rows 3 to 24.
  example = collection.train[0]
  np.testing.assert_array_equal(example["image"], picture[3:25, 9:31])
  mask = miniatures.soft_mask(cub_parts.HEIGHT, cub_parts.WIDTH)
  np.testing.assert_array_equal(example["saliency"], mask[3:25, 9:31])
  np.testing.assert_array_equal(example["box"], [1, 5, 20, 16])
  visible = np.ones(15, bool)
  visible[list(cub_parts.HIDDEN["1"])] = False
  np.testing.assert_array_equal(example["visible"], visible)
  expected = np.where(visible[:, None], cub_parts.landmarks("1") - (9, 3), 0)
  np.testing.assert_allclose(example["landmarks"], expected, atol=1e-5)
  # At the upper right corner the square is moved inside; where the bird fills the image, nothing is cut.
  assert collection.train[1]["image"].shape == (22, 22, 3)
  np.testing.assert_array_equal(collection.train[1]["box"], [2, 2, 21, 11])
  assert collection.test[0]["image"].shape == (cub_parts.HEIGHT, cub_parts.WIDTH, 3)


@pytest.mark.parametrize(
  ("box", "expected"),
  [
    ((10, 10, 19, 14), (10, 7, 20, 17)),  # inside: 10 × 10 about the middle
    ((0, 0, 9, 4), (0, 0, 10, 10)),  # moved down
    ((30, 15, 39, 19), (30, 10, 40, 20)),  # moved up
    ((5, 0, 34, 9), (5, 0, 35, 20)),  # higher than the image: cut off
    ((-5, 0, 50, 25), (0, 0, 40, 20)),
  ],
)
def test_square_around(box, expected):
  left, top, right, bottom = expected
  square = square_around(np.asarray(box, float), 20, 40, enlarge=1.0)
  assert square == (slice(top, bottom), slice(left, right))


def test_categories(config, folder):
  cub_parts.write(folder, faults=False)
  counts = {}
  for category in (0, 1, 2):
    config.cub.category = category
    collection = open_collection(config)
    counts[category] = [len(collection.train), len(collection.test)]
  assert counts == {0: [4, 3], 1: [3, 2], 2: [1, 1]}
  config.cub.category = 7
  with pytest.raises(UserError, match=r"cub\.category=7, but .*classes\.txt has no such class"):
    prepare_collection(config)


def test_a_class_whose_name_is_too_long_for_a_folder_is_refused(config, folder):
  cub_parts.write(folder, faults=False)
  (folder / "CUB_200_2011" / "classes.txt").write_text(f"1 {'é' * 128}\n")
  with pytest.raises(UserError, match=r"classes\.txt: the name of class 1 is too long for a folder"):
    prepare_collection(config)


def test_parts_in_another_order_are_refused(config, folder):
  cub_parts.write(folder, faults=False)
  (folder / "CUB_200_2011" / "parts" / "parts.txt").write_text("1 beak\n2 back\n")
  with pytest.raises(UserError, match=r"parts\.txt names beak, back; expected back, beak"):
    prepare_collection(config)
