"""PASCAL-Part's published layout: the crops, the merged parts, entries and files that can't be used."""

import io
import struct

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat
from scipy.io.matlab import MatlabFunction, MatlabObject

from scops_jax.config import check_values, default_config
from scops_jax.data.collection import open_collection, prepare_collection
from scops_jax.data.published.pascal_parts import (
  MERGED_PARTS,
  AnnotatedObject,
  part_labels,
  part_names,
  read_annotation,
)
from scops_jax.errors import UserError
from tests import miniatures
from tests.miniatures import pascal_parts
from tests.miniatures.pascal_parts import HEIGHT, LARGE, SMALL, WIDTH, annotated, elements, rectangle

HORSE = ("background", "other", "torso", "neck", "legs", "tail", "head")


@pytest.fixture
def config(tmp_path):
  config = default_config()
  config.data.name = "pascal_parts"
  config.data.dir = str(tmp_path / "published")
  config.data.cache_dir = str(tmp_path / "cache")
  return config


@pytest.fixture
def folder(tmp_path):
  return tmp_path / "published"


def test_counts_and_bad_entries(config, folder):
  pascal_parts.write(folder)
  second = (HEIGHT + 1, WIDTH)
  pascal_parts.write_annotation(
    folder,
    "2008_train1",
    [
      annotated("horse", LARGE, second),
      annotated("horse", SMALL, second),
      annotated("person", LARGE, second),
    ],
  )
  cow = annotated("cow", LARGE, (HEIGHT + 2, WIDTH))
  pascal_parts.write_annotation(folder, "2008_train2", [cow])
  config.data.on_bad_example = "skip"
  preparation = prepare_collection(config)
  assert preparation.counts == {
    "train": {
      "read": 12,
      "written": 3,
      "filtered: the object's box covers less than 20 % of the image": 1,
      "filtered: no object of the category is annotated": 1,
      "skipped: can't be read": 7,
    },
    "test": {"read": 3, "written": 3},
  }
  assert len(preparation.skipped) == len(pascal_parts.FAULTS)
  for reason, (name, fault) in zip(preparation.skipped, pascal_parts.FAULTS.items(), strict=True):
    assert reason.startswith(f"{name}: ")
    assert fault in reason
  collection = open_collection(config)
  assert collection.part_names == HORSE
  assert collection.landmark_names == ()
  names = [collection.train[index]["name"] for index in range(3)]
  assert names == ["2008_train0/1", "2008_train1/1", "2008_train3/1"]


def test_a_bad_entry_is_an_error_by_default(config, folder):
  pascal_parts.write(folder)
  with pytest.raises(UserError, match=r"2009_0: there is no file .*2009_0\.jpg.*on_bad_example=skip"):
    prepare_collection(config)


def test_an_example_is_a_square_about_its_object(config, folder):
  """The box is 32 × 20 at (8, 10); 1.1 · 32 → 36 pixels a side, about the centre (23.5, 19.5): at (6, 2)."""
  pascal_parts.write(folder, faults=False)
  example = open_collection(config).train[0]
  picture = np.asarray(Image.open(pascal_parts.image_path(folder, "2008_train0")))
  np.testing.assert_array_equal(example["image"], picture[2:38, 6:42])
  assert example["landmarks"].shape == (0, 2)
  np.testing.assert_array_equal(example["box"], [2, 8, 33, 27])
  expected = np.zeros((36, 36))
  expected[8:28, 2:34] = HORSE.index("other")
  expected[8:18, 2:34] = HORSE.index("torso")
  expected[8:14, 2:8] = HORSE.index("head")
  expected[18:28, 2:6] = HORSE.index("legs")
  np.testing.assert_array_equal(example["parts"], expected)
  np.testing.assert_array_equal(example["saliency"], np.where(expected > 0, 255, 0))


def test_without_a_saliency_folder_the_name_says_silhouettes(config, folder, tmp_path):
  pascal_parts.write(folder, faults=False)
  assert prepare_collection(config).path.parent.name.startswith("horse-silhouettes-")
  config.data.saliency_dir = str(tmp_path / "maps")
  with pytest.raises(UserError, match=r"no folder of saliency maps .*maps"):
    prepare_collection(config)
  ramp = miniatures.encoded(np.tile(np.arange(WIDTH, dtype=np.uint8), (HEIGHT, 1)), "PNG")
  for name in ("train0", "train1", "train3", "val0", "val1", "val2"):
    miniatures.write(tmp_path / "maps" / f"2008_{name}.png", ramp)
  config.data.on_bad_example = "skip"
  preparation = prepare_collection(config)
  assert preparation.path.parent.name.startswith("horse-")
  assert "silhouettes" not in preparation.path.parent.name
  assert "2008_train2.jpg: there is no saliency map" in str(preparation)
  saliency = open_collection(config).train[0]["saliency"]
  np.testing.assert_array_equal(saliency, np.tile(np.arange(6, 42), (36, 1)))


def test_saliency_of_ones(config, folder):
  pascal_parts.write(folder, faults=False)
  config.data.saliency = "ones"
  assert (open_collection(config).train[0]["saliency"] == 255).all()


def test_a_list_that_is_no_list(config, folder):
  path = folder / "VOCdevkit/VOC2010/ImageSets/Main/horse_train.txt"
  miniatures.write(path, "2008_train0 yes\n")
  with pytest.raises(UserError, match=r"horse_train\.txt, line 1"):
    prepare_collection(config)
  path.unlink()
  with pytest.raises(UserError, match=r"horse_train\.txt is missing"):
    prepare_collection(config)


def test_unknown_category(config):
  config.pascal.category = "cat"
  with pytest.raises(UserError, match=r"pascal\.category='cat' is not one of aeroplane"):
    check_values(config)


@pytest.mark.parametrize("category", sorted(MERGED_PARTS))
def test_every_category_is_valid(category):
  config = default_config()
  config.pascal.category = category
  check_values(config)
  assert len(set(part_names(category))) == 2 + len(MERGED_PARTS[category])
  parts = [part for merged in MERGED_PARTS[category].values() for part in merged]
  assert len(parts) == len(set(parts))


def test_part_labels():
  """Later objects hide earlier ones, wheels lie on sides, and numbers of repeated parts do not matter."""

  def item(category, **parts):
    whole = np.ones((1, 6), bool)
    masks = {name: np.isin(np.arange(6), columns)[None] for name, columns in parts.items()}
    mask = masks.pop("mask", whole)
    return AnnotatedObject(category, mask, tuple(masks.items()))

  names = part_names("car")
  car = item("car", wheel_2=[1], wheel_1=[3], leftside=[0, 1, 2, 3])
  labels = part_labels([car, item("person", mask=[2, 5])], "car")
  assert [names[label] for label in labels[0]] == [
    "side",
    "wheels",
    "background",
    "wheels",
    "other",
    "background",
  ]
  beside = item("car", mask=[5], frontside=[4, 5])  # a part does not reach over its object
  assert [names[label] for label in part_labels([car, beside], "car")[0, 4:]] == ["other", "front"]
  with pytest.raises(ValueError, match="'torso' is not a part of a car"):
    part_labels([item("car", torso=[0])], "car")


def test_annotation_round_trip(tmp_path):
  pascal_parts.write_annotation(
    tmp_path, "a", [annotated("horse", LARGE, head=SMALL), annotated("person", SMALL)]
  )
  path = pascal_parts.annotation_path(tmp_path, "a")
  horse, person = read_annotation(path, "a")
  assert (horse.category, person.category) == ("horse", "person")
  np.testing.assert_array_equal(horse.mask, rectangle(*LARGE))
  assert horse.mask.dtype == bool
  assert [name for name, _ in horse.parts] == ["head"]
  np.testing.assert_array_equal(horse.parts[0][1], rectangle(*SMALL))
  assert person.parts == ()
  pascal_parts.write_annotation(tmp_path, "a", [])
  assert read_annotation(path, "a") == ()


def matlab_element(kind, content):
  return struct.pack("<II", kind, len(content)) + content + b"\0" * (-len(content) % 8)


def function_handle_file(name):
  """A MATLAB 5 file whose only variable is a function handle (array class 16 around a matrix)."""
  inner = [struct.pack("<II", 4, 0), struct.pack("<ii", 1, 2), b"", "pi".encode("utf-16-le")]
  kinds = (6, 5, 1, 4)  # uint32 flags, int32 dimensions, int8 name, uint16 text
  matrix = matlab_element(14, b"".join(map(matlab_element, kinds, inner)))
  outer = [struct.pack("<II", 16, 0), struct.pack("<ii", 1, 1), name.encode()]
  variable = matlab_element(14, b"".join(map(matlab_element, kinds, outer)) + matrix)
  return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H2s", 0x0100, b"IM") + variable


def test_a_function_handle_is_refused(tmp_path):
  path = tmp_path / "a.mat"
  path.write_bytes(function_handle_file("anno"))
  assert isinstance(loadmat(io.BytesIO(path.read_bytes()))["anno"], MatlabFunction)
  with pytest.raises(
    ValueError, match=r"a: .*a\.mat is no annotation of PASCAL-Part: expected a struct anno"
  ):
    read_annotation(path, "a")


@pytest.mark.parametrize(
  ("value", "message"),
  [
    ({"anno": MatlabObject(elements([{"objects": 1.0}]), "thing")}, "expected a struct anno with objects"),
    ({"anno": 3.0}, "expected a struct anno with objects"),
    ({"other": 3.0}, "expected a struct anno with objects"),
    ({"anno": elements([{"objects": 1.0}] * 2)}, "expected one struct anno, got 2"),
    ({"anno": elements([{"objects": "horse"}])}, "expected a struct objects with class, mask, parts"),
    (
      {"anno": elements([{"objects": elements([{"class": 3, "mask": 3, "parts": 3}])}])},
      "expected text as class",
    ),
    (
      {"anno": elements([{"objects": elements([{"class": "horse", "mask": "text", "parts": 3}])}])},
      "expected a logical or uint8 matrix as mask",
    ),
    (
      {
        "anno": elements(
          [{"objects": elements([{"class": "horse", "mask": np.ones((2, 2), bool), "parts": 3}])}]
        )
      },
      "expected a struct parts with part_name, mask",
    ),
  ],
)
def test_other_content_is_refused(tmp_path, value, message):
  path = tmp_path / "a.mat"
  savemat(path, value)
  with pytest.raises(ValueError, match=rf"a: .*{message}"):
    read_annotation(path, "a")


@pytest.mark.parametrize("content", [b"", b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM", b"\xff" * 300])
def test_other_files_are_refused(tmp_path, content):
  path = tmp_path / "a.mat"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=r"a: .*a\.mat (can't be read as a MATLAB 5|is no annotation)"):
    read_annotation(path, "a")
