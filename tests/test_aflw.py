"""AFLW's published layout: its database, the box filter, hidden landmarks, splits, bad entries."""

import numpy as np
import pytest
from PIL import Image

from scops_jax.config import default_config
from scops_jax.data.collection import open_collection, prepare_collection
from scops_jax.data.published.aflw import read_database
from scops_jax.errors import UserError
from tests.miniatures import aflw


@pytest.fixture
def config(tmp_path):
  config = default_config()
  config.data.name = "aflw"
  config.data.dir = str(tmp_path / "published")
  config.data.cache_dir = str(tmp_path / "cache")
  return config


@pytest.fixture
def database(tmp_path):
  return aflw.write(tmp_path / "published", faults=False)


def names(source):
  return [source[index]["name"] for index in range(len(source))]


def test_counts_and_bad_entries(config, tmp_path):
  database = aflw.write(tmp_path / "published")
  database.add_face("train0", box=(0, 0, 25, 28))  # 700 pixels, fewer than the other face's 728
  with (database.folder / "train.txt").open("a") as listed:
    for name, box in (("small", aflw.SMALL_BOX), ("just", (0, 0, 16, 24)), ("no_box", None)):
      database.add_image(name)  # "just": 384 of 1280 pixels, exactly 30 %
      database.add_face(name, box=box)
      listed.write(f"\r\n0/{name}.jpg")
  config.data.on_bad_example = "skip"
  preparation = prepare_collection(config)
  assert preparation.counts == {
    "train": {
      "read": 16,
      "written": 5,
      "filtered: another face of the image is larger": 1,
      "filtered: the face's box covers less than 30 % of the image": 1,
      "filtered: the database has no box of the face": 1,
      "skipped: can't be read": 8,
    },
    "test": {"read": 3, "written": 3},
  }
  assert len(preparation.skipped) == len(aflw.FAULTS)
  for name, fault in aflw.FAULTS.items():
    (reason,) = (reason for reason in preparation.skipped if name in reason)
    assert fault in reason
  assert preparation.skipped[0].startswith("0/f0_missing.jpg (face 5): ")
  collection = open_collection(config)
  assert collection.landmark_names == ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
  assert collection.part_names == ()
  assert names(collection.train) == ["0/just.jpg", *(f"0/train{index}.jpg" for index in range(4))]


def test_a_bad_entry_is_an_error_by_default(config, tmp_path):
  aflw.write(tmp_path / "published")
  with pytest.raises(
    UserError, match=r"0/f0_missing\.jpg \(face 5\): there is no file .*on_bad_example=skip"
  ):
    prepare_collection(config)


def test_an_example_keeps_bytes_and_coordinates(config, database):
  example = open_collection(config).test[2]
  np.testing.assert_array_equal(example["image"], np.asarray(Image.open(database.image_path("test2"))))
  assert example["image"].shape == (aflw.HEIGHT, aflw.WIDTH + 2, 3)
  expected = [(12.5, 9), (26, 9.5), (19, 15), (14, 21), (24, 21.5)]  # two columns to the right of POINTS
  np.testing.assert_array_equal(example["landmarks"], expected)
  assert example["visible"].all()
  np.testing.assert_array_equal(example["saliency"], np.tile(np.arange(aflw.WIDTH + 2), (aflw.HEIGHT, 1)))
  np.testing.assert_array_equal(example["box"], [4, 2, 29, 29])


def test_landmarks_follow_their_descriptions_and_may_be_hidden(config, database):
  """Another number for a landmark; landmarks that are missing, outside the image, or there twice."""
  database.execute("UPDATE FeatureCoordTypes SET feature_id = 108 WHERE descr = 'LeftEyeCenter'")
  database.add_image("more")
  database.add_face("more", points={108: (1, 2), 11: (-0.5, 31.5), 15: (3, 31.6), 18: (7, 8)})
  database.insert("FeatureCoords", database.num_faces, 18, 99, 99, 2)
  (database.folder / "train.txt").write_text("0/more.jpg")
  example = open_collection(config).train[0]
  np.testing.assert_array_equal(example["visible"], [True, True, False, True, False])
  np.testing.assert_array_equal(example["landmarks"], [(1, 2), (-0.5, 31.5), (0, 0), (7, 8), (0, 0)])


def test_without_lists_the_path_decides_the_split(config, database):
  for split in ("train", "test"):
    (database.folder / f"{split}.txt").unlink()
  for index in range(20):
    database.add_image(f"more{index}")
    database.add_face(f"more{index}")
    database.add_face(f"more{index}", box=(0, 0, 30, 30))
  collection = open_collection(config)
  # Those of 27 paths whose SHA-256 is a multiple of ten.
  assert names(collection.test) == ["0/more11.jpg", "0/more19.jpg", "0/more4.jpg"]
  assert len(names(collection.train)) == 24
  assert not set(names(collection.train)) & set(names(collection.test))


def test_the_saliency_folder_is_required_unless_it_is_ones(config, database):
  config.data.saliency_dir = str(database.folder / "nowhere")
  config.data.on_bad_example = "skip"
  with pytest.raises(UserError, match=r"no folder of saliency maps .*nowhere"):
    prepare_collection(config)
  config.data.saliency = "ones"
  assert (open_collection(config).train[1]["saliency"] == 255).all()


@pytest.mark.parametrize("path", ["/secret.jpg", "0/../../../secret.jpg"])
def test_paths_do_not_leave_the_folder(config, database, path):
  database.execute(f"UPDATE FaceImages SET filepath = '{path}' WHERE file_id = 'train1.jpg'")
  (database.folder / "train.txt").write_text(f"0/train0.jpg\n{path}\n")
  with pytest.raises(UserError, match="leads out of the image folder"):
    prepare_collection(config)


def test_lists_must_agree_with_the_database(config, database):
  listed = database.folder / "train.txt"
  listed.write_text("0/train0.jpg\n0/fish.jpg\n")
  with pytest.raises(
    UserError, match=r"train\.txt, line 2: the database has no face of an image '0/fish\.jpg'"
  ):
    prepare_collection(config)
  listed.write_text("0/train0.jpg\n0/test1.jpg\n")
  with pytest.raises(
    UserError, match=r"test\.txt, line 2: '0/test1\.jpg' is in .*train\.txt, line 2 already"
  ):
    prepare_collection(config)
  listed.unlink()
  with pytest.raises(UserError, match=r"train\.txt is missing"):
    prepare_collection(config)


def test_the_database_is_not_written_to(database):
  content = database.path.read_bytes()
  assert len(read_database(database.path)) == 7
  assert database.path.read_bytes() == content
  assert sorted(path.name for path in database.path.parent.iterdir()) == ["aflw.sqlite", "flickr"]


def test_a_database_at_the_top(config, database):
  database.path.rename(database.folder / "aflw.sqlite")
  assert prepare_collection(config).counts["test"]["written"] == 3


@pytest.mark.parametrize(
  ("script", "message"),
  [
    ("DROP TABLE FaceRect", "has no table FaceRect"),
    ("ALTER TABLE FaceRect RENAME TO R; CREATE VIEW FaceRect AS SELECT * FROM R", "has no table FaceRect"),
    (
      "ALTER TABLE FaceRect RENAME COLUMN w TO breadth",
      "can't be read as AFLW's database: no such column: w",
    ),
    (
      "DELETE FROM FeatureCoordTypes WHERE feature_id > 12",
      "not describe NoseCenter, MouthLeftCorner, MouthR",
    ),
  ],
)
def test_another_database_is_refused(database, script, message):
  database.execute(script)
  with pytest.raises(UserError, match=rf"aflw\.sqlite.* {message}"):
    read_database(database.path)


def test_no_database(database):
  database.path.write_bytes(b"not a database at all" * 100)
  with pytest.raises(
    UserError, match=r"aflw\.sqlite can't be read as AFLW's database: file is not a database"
  ):
    read_database(database.path)
  database.path.unlink()
  with pytest.raises(UserError, match=r"aflw\.sqlite is missing"):
    read_database(database.path)


def test_a_face_of_no_known_image(config, database):
  database.add_face("stray")
  (database.folder / "train.txt").write_text("0/train0.jpg\nstray.jpg\n")
  assert prepare_collection(config).counts["train"]["filtered: the database does not know the image"] == 1
