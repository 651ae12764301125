import errno
import io
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from scops_jax.config import default_config
from scops_jax.data import collection as collection_module
from scops_jax.data import prepared
from scops_jax.data.builder import CollectionBuilder, Example, FilteredError, encode_png
from scops_jax.data.collection import open_collection, prepare_collection
from scops_jax.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
HEIGHT, WIDTH = 5, 7


def picture(value):
  return encode_png(np.full((HEIGHT, WIDTH, 3), value, np.uint8))


class Scenarios(CollectionBuilder, skip_registration=True):
  """Records name what becomes of them."""

  landmark_names = ("tip",)
  part_names = ("background", "thing")
  train = ("good", "small", "good", "broken", "unreadable", "grey")
  test = ("good",)

  @classmethod
  def variant(cls, config):
    return "only"

  def list_records(self, split):
    return [(kind, f"{kind}{index}.png") for index, kind in enumerate(getattr(self, split))]

  def read_example(self, record):
    kind, name = record
    if kind == "small":
      raise FilteredError("too small")
    if kind == "unreadable":
      raise OSError(f"{name}: no such file")
    if kind == "interrupted":
      raise KeyboardInterrupt
    image = picture(9)
    if kind == "broken":
      image = image[:-30]
    if kind == "grey":
      image = io.BytesIO()
      Image.new("L", (WIDTH, HEIGHT), 50).save(image, "JPEG")
      image = image.getvalue()
    points = np.full((2 if kind == "two points" else 1, 2), np.nan if kind == "lost" else 1.5)
    return Example(name, image, points, np.ones(1, bool))


@pytest.fixture
def config(tmp_path):
  config = default_config()
  config.data.cache_dir = str(tmp_path / "cache")
  config.toy_faces.num_train, config.toy_faces.num_test = 6, 3
  return config


@pytest.fixture
def miniature(config, monkeypatch):
  """A config of the collection Miniature, and its builder class, which the test may change."""

  class Miniature(Scenarios, skip_registration=True):
    pass

  monkeypatch.setitem(collection_module.BUILDERS, "miniature", Miniature)
  config.data.name = "miniature"
  return config, Miniature


def files(folder):
  return {path.relative_to(folder) for path in pathlib.Path(folder).rglob("*") if path.is_file()}


def test_toy_faces_round_trip(config):
  faces = open_collection(config)
  assert (len(faces.train), len(faces.test)) == (6, 3)
  assert faces.landmark_names == ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
  assert faces.part_names[:3] == ("background", "hair", "face")
  example = faces.test[2]
  assert example["name"] == "test/000002"
  assert {key: (value.shape, value.dtype) for key, value in example.items() if key != "name"} == {
    "image": ((128, 128, 3), np.uint8),
    "saliency": ((128, 128), np.uint8),
    "landmarks": ((5, 2), np.float32),
    "visible": ((5,), np.bool_),
    "box": ((4,), np.float32),
    "parts": ((128, 128), np.uint8),
  }
  assert not np.array_equal(faces.train[2]["image"], example["image"])


def test_same_seed_same_data_elsewhere(config, tmp_path):
  first = open_collection(config)
  config.data.cache_dir = str(tmp_path / "elsewhere")
  second = open_collection(config)
  assert first.fingerprint == second.fingerprint
  for index in range(6):
    np.testing.assert_array_equal(first.train[index]["image"], second.train[index]["image"])


def test_another_seed_or_size_is_another_data_set(config):
  fingerprints = [open_collection(config).fingerprint]
  config.toy_faces.seed = 1
  fingerprints.append(open_collection(config).fingerprint)
  config.toy_faces.num_train = 7
  larger = open_collection(config)
  fingerprints.append(larger.fingerprint)
  assert len(set(fingerprints)) == 3
  assert len(larger.train) == 7


def test_saliency_of_ones(config):
  config.data.saliency = "ones"
  assert (open_collection(config).train[0]["saliency"] == 255).all()


def test_preparing_again_does_nothing(config):
  first = prepare_collection(config)
  stamps = {path: path.stat().st_mtime_ns for path in first.path.iterdir()}
  second = prepare_collection(config)
  assert (first.built, second.built) == (True, False)
  assert "nothing to do" in str(second)
  assert {path: path.stat().st_mtime_ns for path in first.path.iterdir()} == stamps
  assert (
    first.counts == second.counts == {"train": {"read": 6, "written": 6}, "test": {"read": 3, "written": 3}}
  )


def test_no_network_and_no_tensorflow(config, monkeypatch):
  def refuse(*arguments):
    raise AssertionError("network access")

  monkeypatch.setattr(socket.socket, "connect", refuse)
  monkeypatch.setattr(socket, "getaddrinfo", refuse)
  open_collection(config).train[0]
  assert "tensorflow" not in sys.modules


def test_unknown_collection_lists_the_names(config):
  config.data.name = "fish"
  with pytest.raises(UserError, match=r"data\.name='fish'.*toy_faces"):
    open_collection(config)


def test_bad_example_is_an_error_that_names_it(miniature):
  config, _ = miniature
  with pytest.raises(UserError, match=r"broken3\.png: the image can't be decoded.*on_bad_example=skip"):
    prepare_collection(config)
  assert not any("array_record" in str(path) for path in files(config.data.cache_dir))


def test_bad_examples_are_skipped_and_listed(miniature):
  config, _ = miniature
  config.data.on_bad_example = "skip"
  preparation = prepare_collection(config)
  assert preparation.counts["train"] == {
    "read": 6,
    "filtered: too small": 1,
    "skipped: can't be read": 2,
    "written": 3,
  }
  assert [reason.split(":")[0] for reason in preparation.skipped] == ["broken3.png", "unreadable4.png"]
  assert "unreadable4.png: no such file" in str(preparation)
  collection = open_collection(config)
  assert [collection.train[i]["name"] for i in range(3)] == ["good0.png", "good2.png", "grey5.png"]


def test_a_data_set_with_skipped_examples_is_refused_where_they_are_errors(miniature):
  config, _ = miniature
  config.data.on_bad_example = "skip"
  prepare_collection(config)
  config.data.on_bad_example = "error"
  with pytest.raises(UserError, match=r"without 2 bad examples.*broken3\.png"):
    open_collection(config)


def test_defaults_of_an_example(miniature):
  """Grey pictures become RGB; no saliency is all foreground; no parts are all background."""
  config, builder = miniature
  builder.train = ("grey",)
  example = open_collection(config).train[0]
  assert example["image"].shape == (HEIGHT, WIDTH, 3)
  np.testing.assert_array_equal(example["saliency"], np.full((HEIGHT, WIDTH), 255))
  np.testing.assert_array_equal(example["parts"], np.zeros((HEIGHT, WIDTH)))
  np.testing.assert_array_equal(example["landmarks"], [[1.5, 1.5]])
  np.testing.assert_array_equal(example["box"], [0, 0, WIDTH - 1, HEIGHT - 1])


@pytest.mark.parametrize(
  ("kind", "message"), [("two points", r"shape \(2, 2\), expected \(1, 2\)"), ("lost", "not a number")]
)
def test_wrong_annotations_name_the_image(miniature, kind, message):
  config, builder = miniature
  builder.train = (kind,)
  with pytest.raises(UserError, match=rf"{kind}0\.png: .*{message}"):
    prepare_collection(config)


@pytest.mark.parametrize("records", [(), ("small", "small")])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_images_is_an_error(miniature, split, records):
  config, builder = miniature
  builder.train = ("good",)
  setattr(builder, split, records)
  with pytest.raises(UserError, match=f"no image in its {split} split"):
    prepare_collection(config)
  assert not any("array_record" in str(path) for path in files(config.data.cache_dir))


def test_interrupted_preparation_is_done_again(miniature):
  config, builder = miniature
  builder.train = ("good", "interrupted")
  with pytest.raises(KeyboardInterrupt):
    prepare_collection(config)
  folder = pathlib.Path(config.data.cache_dir) / "miniature" / "only"
  leftover = folder / "incomplete.ABCDEF_1.0.0"  # what SIGKILL leaves
  leftover.mkdir()
  (leftover / "miniature-train.array_record-00000-of-00001").write_bytes(b"half")
  builder.train = ("good",)
  assert len(open_collection(config).train) == 1
  assert not leftover.exists()


def test_cache_that_can_not_be_written(config, tmp_path):
  (tmp_path / "file").write_text("")
  config.data.cache_dir = str(tmp_path / "file" / "cache")
  with pytest.raises(UserError, match=r"data\.cache_dir="):
    prepare_collection(config)


def refuse_writing(monkeypatch, code, *, lock_only=False):
  """Lets files be opened for reading only, as root may write in a folder without permissions."""
  opened = pathlib.Path.open

  def refuse(path, mode="r", *arguments, **options):
    if ("w" in mode or "a" in mode) and (path.name == "lock" or not lock_only):
      raise OSError(code, os.strerror(code), str(path))
    return opened(path, mode, *arguments, **options)

  monkeypatch.setattr(pathlib.Path, "open", refuse)


def test_a_prepared_data_set_in_a_folder_that_can_not_be_written_is_used(config, monkeypatch):
  prepare_collection(config)
  refuse_writing(monkeypatch, errno.EROFS)
  assert not prepare_collection(config).built
  config.toy_faces.num_test += 1  # another data set
  with pytest.raises(UserError, match=r"can't prepare toy_faces in data\.cache_dir=.*Read-only file system"):
    prepare_collection(config)


def test_a_lock_that_another_user_wrote_is_waited_for(config, monkeypatch):
  prepare_collection(config)
  locked = []
  refuse_writing(monkeypatch, errno.EACCES, lock_only=True)
  monkeypatch.setattr(prepared, "lock_file", lambda file, wait: locked.append((file.mode, wait)))
  assert not prepare_collection(config).built
  assert locked == [("r", True)]


def test_command(tmp_path):
  command = [sys.executable, "-m", "scops_jax.prepare", "--config=configs/toy_faces.py"]
  small = [
    "--config.toy_faces.num_train=2",
    "--config.toy_faces.num_test=1",
    f"--config.data.cache_dir={tmp_path}",
  ]
  first, second, wrong = (
    subprocess.run([*command, *small, *more], capture_output=True, text=True, cwd=ROOT, check=False)
    for more in ((), (), ("--config.data.name=fish",))
  )
  assert first.returncode == 0, first.stderr
  assert "train: 2 read, 2 written" in first.stdout
  assert "nothing to do" in second.stdout
  assert wrong.returncode == 1
  names = ", ".join(sorted(collection_module.BUILDERS))
  assert wrong.stderr.strip().splitlines() == [f"error: data.name='fish' is not one of {names}"]
