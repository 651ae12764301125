"""A folder of own images: formats, masks, landmarks, splits, and mistakes in any of them."""

import hashlib
import os

import numpy as np
import pytest
from PIL import Image

from scops_jax.config import default_config
from scops_jax.data.collection import open_collection, prepare_collection
from scops_jax.data.folder.layout import read_landmark_table, read_splits
from scops_jax.errors import UserError

HEIGHT, WIDTH = 12, 20
HEADER = "image,landmark,x,y,visible\n"


@pytest.fixture
def root(tmp_path):
  """Three training images, one test image, a mask each."""
  root = tmp_path / "my photos"
  for index, name in enumerate(("a.jpg", "b.png", "more/c.webp", "d.png")):
    save(root / "images" / name, picture(index))
    save((root / "saliency" / name).with_suffix(".png"), mask())
  (root / "test.txt").write_text("d.png\r\n")
  return root


@pytest.fixture
def config(root, tmp_path):
  config = default_config()
  config.data.name = "image_folder"
  config.data.dir = str(root)
  config.data.cache_dir = str(tmp_path / "cache")
  config.data.landmark_normalizer = "image"
  return config


def picture(seed, height=HEIGHT, width=WIDTH):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def mask(height=HEIGHT, width=WIDTH):
  result = np.zeros((height, width), np.uint8)
  result[height // 4 : height // 2, width // 4 : width // 2] = 255
  return result


def save(path, array, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(array).save(path, **options)


def write_table(root, *rows):
  (root / "landmarks.csv").write_text(HEADER + "\n".join(rows), newline="")


def example(source, name):
  (found,) = (source[i] for i in range(len(source)) if source[i]["name"] == name)
  return found


def test_formats_masks_and_boxes(config):
  collection = open_collection(config)
  assert [collection.train[i]["name"] for i in range(3)] == ["a.jpg", "b.png", "more/c.webp"]
  assert collection.test[0]["name"] == "d.png"
  read = example(collection.train, "b.png")
  np.testing.assert_array_equal(read["image"], picture(1))
  np.testing.assert_array_equal(read["saliency"], mask())
  np.testing.assert_array_equal(read["box"], [5, 3, 9, 5])
  assert example(collection.train, "more/c.webp")["image"].shape == (HEIGHT, WIDTH, 3)
  assert collection.landmark_names == collection.part_names == ()


def test_files_that_need_no_change_keep_their_bytes(config, root):
  source = open_collection(config).train
  names = {source.encoded_image(i)[0]: source.encoded_image(i)[1] for i in range(3)}
  assert names["a.jpg"] == (root / "images" / "a.jpg").read_bytes()
  assert names["more/c.webp"].startswith(b"\xff\xd8")


def test_landmarks_keep_their_fractions_when_a_turned_photograph_is_reduced(config, root):
  exif = Image.Exif()
  exif[0x0112] = 6  # stored 40 × 24, shown 24 × 40
  save(root / "images" / "a.jpg", picture(0, 24, 40), exif=exif)
  save(root / "saliency" / "a.png", mask(40, 24))
  config.folder.max_edge = 20
  write_table(
    root, "a.jpg,tail,0.25,39.5,1", "a.jpg,nose,24.6,3,1", "b.png,nose,3.125,2,true", "d.png,nose,1,1,1"
  )
  collection = open_collection(config)
  assert collection.landmark_names == ("tail", "nose")
  read = example(collection.train, "a.jpg")
  assert read["image"].shape == (20, 12, 3)
  assert read["saliency"].shape == (20, 12)
  # Half the size: (x + 1/2) / 2 - 1/2; the second lies outside the image.
  np.testing.assert_array_equal(read["landmarks"], [[-0.125, 19.5], [0, 0]])
  np.testing.assert_array_equal(read["visible"], [True, False])
  read = example(collection.train, "b.png")
  np.testing.assert_array_equal(read["landmarks"], [[0, 0], [3.125, 2]])
  np.testing.assert_array_equal(read["visible"], [False, True])


def test_the_summary(config, root):
  write_table(
    root, "a.jpg,nose,3,2,1", "b.png,nose,99,2,1", "d.png,nose,1,1,1", "d.png,tail,,,0", "a.jpg,tail,1,2,1"
  )
  save(root / "saliency" / "b.png", np.zeros((HEIGHT, WIDTH), np.uint8))
  save(root / "images" / "d.png", picture(3, 2 * HEIGHT, 2 * WIDTH))
  text = str(prepare_collection(config))
  for line in (
    "images: 3 to train on, 1 to test on; from 20 × 12 to 40 × 24 pixels",
    "warning: 3 training images are few",
    "masks: 4, the object covers 6% of an image",
    "warning: 1 masks are empty",
    "landmarks: 2; visible in (training, test) images:",
    "nose: 1, 1",
    "tail: 1, 0",
    "warning: 1 landmarks lie outside their image",
    "ground-truth parts: none",
  ):
    assert line in text


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    (
      ["e.jpg,nose,1,2,1"],
      r"landmarks\.csv, line 2: there is no image 'e\.jpg'; .*nearest is 'a\.jpg'",
    ),
    (["a.jpg,nose,1,2,1", "a.jpg,nose,1,2,0"], r"line 3: 'nose' of 'a\.jpg' is in line 2 already"),
    (["a.jpg,nose,1,two,1"], r"line 2: y='two' is not a number"),
    (["a.jpg,nose,nan,2,1"], r"line 2: x='nan' is not a number"),
    (["a.jpg,nose,1,2,maybe"], r"line 2: visible='maybe' should be 1 or 0"),
    (["a.jpg,nose,1,2"], r"line 2: expected as many fields"),
    (["a.jpg,nose,1,2,1,9"], r"line 2: expected as many fields"),
    (["a.jpg,,1,2,1"], r"line 2: the landmark has no name"),
    (['a.jpg,"no"se,1,2,1'], r"line 2"),
    (["a.jpg,nose,1,2,1"], r"no test image shows the landmark 'nose'"),
    (["d.png,nose,1,2,1"], r"no train image shows the landmark 'nose'"),
  ],
)
def test_mistakes_in_the_table_name_file_and_line(config, root, rows, message):
  write_table(root, *rows)
  config.data.on_bad_example = "skip"  # these are mistakes of the collection, not of an image
  with pytest.raises(UserError, match=message):
    prepare_collection(config)


def test_the_table_as_spreadsheets_write_it(tmp_path):
  path = tmp_path / "landmarks.csv"
  text = (
    '\ufeffvisible, y ,x,landmark,image,note\r\n1,2,1.5,"left ""eye""","a, b.jpg",\r\n\r\n'
    "FALSE,,,tail,c.jpg,x\r\n"
  )
  path.write_bytes(text.encode())
  table = read_landmark_table(path, ["a, b.jpg", "c.jpg"])
  assert table.names == ('left "eye"', "tail")
  assert table.points == {"a, b.jpg": {'left "eye"': (1.5, 2.0)}}


@pytest.mark.parametrize("header", ["", "a.jpg,nose,1,2,1\n", "image;landmark;x;y;visible\n"])
def test_a_table_needs_its_header(tmp_path, header):
  (tmp_path / "landmarks.csv").write_text(header)
  with pytest.raises(
    UserError, match=r"line 1: expected a header with the columns image,landmark,x,y,visible"
  ):
    read_landmark_table(tmp_path / "landmarks.csv", ["a.jpg"])


def test_one_landmark_has_no_inter_ocular_distance(config, root):
  write_table(root, "a.jpg,nose,1,2,1")
  config.data.landmark_normalizer = "inter_ocular"
  with pytest.raises(UserError, match=r"landmark_normalizer=image"):
    prepare_collection(config)


def test_the_split_by_name(tmp_path):
  names = [f"{i}.jpg" for i in range(500)]
  splits = read_splits(tmp_path, names)
  assert sorted(splits["train"] + splits["test"]) == sorted(names)
  assert 30 < len(splits["test"]) < 70
  assert all(int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10 == 0 for name in splits["test"])
  fewer = read_splits(tmp_path, names[:250])
  assert set(fewer["test"]) == set(splits["test"]) & set(names[:250])
  assert {split: len(found) for split, found in read_splits(tmp_path, ["a.jpg", "b.jpg"]).items()} == {
    "train": 1,
    "test": 1,
  }


@pytest.mark.parametrize(
  ("lists", "message"),
  [
    ({"test": "e.jpg"}, r"test\.txt, line 1: there is no image 'e\.jpg'"),
    (
      {"train": "a.jpg\nb.png", "test": "\nb.png"},
      r"test\.txt, line 2: 'b\.png' is in .*train\.txt, line 2 already",
    ),
    ({"test": "a.jpg\nb.png\na.jpg"}, r"line 3: 'a\.jpg' is in .*line 1 already"),
    ({"test": "a.jpg\nb.png"}, "no image for the train split"),
    ({"test": "\n"}, "no image for the test split"),
  ],
)
def test_mistakes_in_lists_name_file_and_line(tmp_path, lists, message):
  for split, text in lists.items():
    (tmp_path / f"{split}.txt").write_text(text)
  with pytest.raises(UserError, match=message):
    read_splits(tmp_path, ["a.jpg", "b.png"])


def test_transparency_serves_where_there_is_no_folder_of_masks(config, root):
  (root / "saliency").rename(root / "away")
  for name in ("b.png", "d.png"):
    save(root / "images" / name, np.dstack([picture(1), mask()]))
  config.data.on_bad_example = "skip"
  preparation = prepare_collection(config)
  assert preparation.counts["train"] == {"read": 3, "written": 1, "skipped: can't be read": 2}
  assert "a.jpg: the image has no transparency" in preparation.skipped[0]
  read = open_collection(config).train[0]
  np.testing.assert_array_equal(read["saliency"], mask())
  assert (read["image"][mask() == 0] == 255).all()


def test_no_masks_at_all_is_an_error_that_says_what_to_do(config, root):
  (root / "saliency").rename(root / "away")
  with pytest.raises(UserError, match=r"no folder of masks .*data\.saliency=auto.*data\.saliency=ones"):
    prepare_collection(config)
  config.data.saliency = "ones"
  assert (open_collection(config).train[0]["saliency"] == 255).all()


def test_masks_of_other_kinds(config, root):
  save(root / "saliency" / "a.png", mask(2 * HEIGHT, 2 * WIDTH))  # of twice the image's size
  save(root / "saliency" / "b.png", np.dstack([picture(1), mask()]))  # a cut-out
  collection = open_collection(config)
  assert example(collection.train, "a.jpg")["saliency"].shape == (HEIGHT, WIDTH)
  np.testing.assert_array_equal(example(collection.train, "b.png")["saliency"], mask())
  save(root / "saliency" / "a.png", mask(WIDTH, HEIGHT))
  with pytest.raises(UserError, match="has 12 × 20 pixels, the upright image 20 × 12"):
    prepare_collection(config)


def test_parts_are_for_the_test_images(config, root):
  parts = np.zeros((HEIGHT, WIDTH), np.uint8)
  parts[2, 3] = 2
  save(root / "parts" / "d.png", parts)
  collection = open_collection(config)
  assert collection.part_names == ("background", "part 1", "part 2")
  np.testing.assert_array_equal(collection.test[0]["parts"], parts)
  save(root / "parts" / "d.png", picture(0))
  with pytest.raises(UserError, match=r"d\.png: .*part indices 0\.\.255 in one channel"):
    prepare_collection(config)
  save(root / "parts" / "a.png", parts)
  (root / "parts" / "d.png").unlink()
  with pytest.raises(UserError, match=r"d\.png: there is no map of its parts"):
    prepare_collection(config)


def test_an_edited_folder_is_prepared_again(config, root):
  first = prepare_collection(config)
  assert not prepare_collection(config).built
  os.utime(root / "saliency" / "a.png", ns=(1, 1))
  assert prepare_collection(config).path != first.path
  paths = {prepare_collection(config).path}
  write_table(root, "a.jpg,nose,1,2,1", "d.png,nose,1,2,1")
  paths.add(prepare_collection(config).path)
  config.folder.max_edge = 16
  paths.add(prepare_collection(config).path)
  assert len(paths) == 3
  assert all(path.parent.name.startswith("my_photos-") for path in paths)


def test_two_images_with_one_stem(config, root):
  save(root / "images" / "a.png", picture(0))
  with pytest.raises(UserError, match=r"'a\.jpg' and 'a\.png'.*rename"):
    prepare_collection(config)


def test_a_folder_without_images_says_what_is_expected(config, tmp_path):
  config.data.dir = str(tmp_path)
  with pytest.raises(UserError, match=r"data\.dir=.*should hold the images in images/"):
    prepare_collection(config)


def test_any_folder_of_pictures_serves(config, root):
  write_table(root, "a.jpg,nose,3,2,1", "b.png,nose,4,2,1", "d.png,nose,1,1,1")
  usual = open_collection(config)
  for entry in (root / "images").iterdir():
    entry.rename(root / entry.name)
  (root / "images").rmdir()
  save(root / "saliency_auto" / "a.png", mask())
  save(root / "extra.gif", picture(5))
  save(root / "saliency" / "extra.png", mask())
  (root / "notes.doc").write_text("no picture")
  assert "warning: 1 files among the images are left out" in str(prepare_collection(config))
  flat = open_collection(config)
  assert [flat.train[i]["name"] for i in range(4)] == ["a.jpg", "b.png", "extra.gif", "more/c.webp"]
  for name in ("a.jpg", "more/c.webp"):
    for key, value in example(usual.train, name).items():
      np.testing.assert_array_equal(example(flat.train, name)[key], value)
  variant = prepare_collection(config).path
  save(root / "saliency_auto" / "b.png", mask())  # is no image
  assert prepare_collection(config).path == variant


def test_a_broken_image_is_named(config, root):
  (root / "images" / "a.jpg").write_bytes(b"\xff\xd8 no picture")
  with pytest.raises(UserError, match=r"a\.jpg .*on_bad_example=skip"):
    prepare_collection(config)
  config.data.on_bad_example = "skip"
  assert prepare_collection(config).counts["train"]["written"] == 2
