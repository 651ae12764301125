"""CelebA's published layout: the box filter, MAFL's splits, and entries that can't be used."""

import pathlib

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image

from scops_jax.config import default_config
from scops_jax.data.collection import open_collection, prepare_collection
from scops_jax.errors import UserError
from tests import miniatures
from tests.miniatures import celeba_wild

SMALL = "filtered: the face's box covers less than 30 % of the image"


@pytest.fixture
def config(tmp_path):
  config = default_config()
  config.data.name = "celeba_wild"
  config.data.dir = str(tmp_path / "celeba")
  config.data.cache_dir = str(tmp_path / "cache")
  return config


@pytest.fixture
def folder(tmp_path):
  return tmp_path / "celeba"


@pytest.mark.parametrize("sizes", [False, True])
def test_counts_and_bad_entries(config, folder, sizes):
  celeba_wild.write(folder, sizes=sizes)
  config.data.on_bad_example = "skip"
  preparation = prepare_collection(config)
  assert preparation.counts == {
    "train": {"read": 12, SMALL: 2, "skipped: can't be read": 6, "written": 4},
    "regression": {"read": 3, SMALL: 1, "written": 2},
    "test": {"read": 3, SMALL: 1, "written": 2},
  }
  assert len(preparation.skipped) == len(celeba_wild.FAULTS)
  for name, fault in celeba_wild.FAULTS.items():
    (reason,) = (reason for reason in preparation.skipped if name in reason)
    assert fault in reason
  assert "list_landmarks_celeba.txt, line 18: " in str(preparation)
  collection = open_collection(config)
  assert [collection.train[i]["name"] for i in range(4)] == list(celeba_wild.GOOD)
  assert [collection.regression[i]["name"] for i in range(2)] == ["000011.jpg", "000012.jpg"]
  assert [collection.test[i]["name"] for i in range(2)] == ["000021.jpg", "000023.jpg"]


def test_a_bad_entry_is_an_error_by_default(config, folder):
  celeba_wild.write(folder)
  with pytest.raises(UserError, match=r"000031\.jpg: there is no file .*on_bad_example=skip"):
    prepare_collection(config)


def test_an_example_keeps_bytes_and_coordinates(config, folder):
  celeba_wild.write(folder, faults=False)
  example = open_collection(config).train[1]
  height, width, box_width, box_height = celeba_wild.GOOD["000002.jpg"]
  picture = np.asarray(Image.open(folder / "img_celeba" / "000002.jpg"))
  np.testing.assert_array_equal(example["image"], picture)
  points = celeba_wild.landmarks("000002.jpg", height, width)
  np.testing.assert_array_equal(example["landmarks"], points.round())
  assert example["visible"].all()
  np.testing.assert_array_equal(example["box"], [2, 3, 2 + box_width - 1, 3 + box_height - 1])
  # The map has half the image's size.
  half = Image.fromarray(miniatures.soft_mask(height // 2, width // 2))
  expected = np.asarray(half.resize((width, height), Image.Resampling.BILINEAR))
  np.testing.assert_array_equal(example["saliency"], expected)
  assert len(np.unique(example["saliency"])) > 3


def test_the_list_of_training_names_without_mafl(config, folder):
  celeba_wild.write(folder, training_list=True)
  collection = open_collection(config)
  assert [collection.train[i]["name"] for i in range(len(collection.train))] == ["000001.jpg", "000003.jpg"]


def test_listed_sizes_decide_where_they_are_listed(config, folder):
  celeba_wild.write(folder, faults=False)
  # Image 1 is said to be larger than it is, the others are not listed.
  miniatures.write(folder / "list_imsize_celeba.txt", "1\nimage_id h w\n000001.jpg 400 300\n")
  counts = prepare_collection(config).counts["train"]
  assert counts == {"read": 6, SMALL: 3, "written": 3}


def test_saliency_elsewhere_or_none(config, folder, tmp_path):
  celeba_wild.write(folder, faults=False)
  first = prepare_collection(config).path
  elsewhere = (folder / "Saliency_Wild").rename(tmp_path / "maps")
  config.data.saliency_dir = str(elsewhere)
  assert prepare_collection(config).path != first
  config.data.saliency_dir = str(tmp_path / "nothing")
  with pytest.raises(UserError, match=r"nothing: set data\.saliency_dir, or data\.saliency=ones"):
    prepare_collection(config)
  config.data.saliency = "ones"
  assert (open_collection(config).train[0]["saliency"] == 255).all()


@pytest.mark.parametrize(
  "missing", ["list_landmarks_celeba.txt", "list_bbox_celeba.txt", "MAFL/testing.txt", "Saliency_Wild"]
)
def test_a_missing_file_of_the_layout_is_never_skipped(config, folder, missing):
  celeba_wild.write(folder, faults=False)
  (folder / missing).rename(folder / "away")
  config.data.on_bad_example = "skip"
  with pytest.raises(UserError, match=missing):
    prepare_collection(config)


def test_a_name_listed_twice(config, folder):
  celeba_wild.write(folder, faults=False)
  with (folder / "list_bbox_celeba.txt").open("a") as file:
    file.write("000001.jpg 0 0 9 9\n")
  with pytest.raises(UserError, match=r"list_bbox_celeba\.txt, line 16: '000001\.jpg' is in line 4 already"):
    prepare_collection(config)


def test_the_config_takes_the_number_of_parts():
  path = pathlib.Path(__file__).parent.parent / "configs" / "celeba.py"
  found = {}
  for argument in (path, f"{path}:4"):
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    values(["command", f"--config={argument}"])
    found[values.config.num_parts] = values.config.loss.equivariance
  assert found == {8: pytest.approx(1000 / 9), 4: pytest.approx(200)}
