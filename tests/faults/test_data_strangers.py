"""Files of strangers: what is wrong with them is said in one message, and takes neither memory nor time."""

import io
import os
import pathlib
import sqlite3
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from scops_jax.config import default_config
from scops_jax.data.collection import prepare_collection
from scops_jax.data.folder.layout import read_landmark_table
from scops_jax.data.image_files import MAX_PIXELS, decode_image, read_image
from scops_jax.data.published import aflw as aflw_reader
from scops_jax.data.published.matlab import MAX_BYTES, read_variable
from scops_jax.data.saliency_maps import is_current, read_map
from scops_jax.data.source_files import read_lines
from scops_jax.errors import UserError
from tests.faults.fuzz_data import fuzz
from tests.miniatures import aflw, celeba_wild, pascal_parts


@pytest.fixture
def config(tmp_path):
  config = default_config()
  config.data.dir, config.data.cache_dir = str(tmp_path / "data"), str(tmp_path / "cache")
  config.data.on_bad_example = "skip"
  return config


@pytest.fixture
def folder(config):
  """A config of six images with masks, and its root."""
  root = pathlib.Path(config.data.dir)
  for name in ("images", "saliency"):
    (root / name).mkdir(parents=True)
  for index in range(6):
    Image.fromarray(np.full((20, 30, 3), 40 * index, np.uint8)).save(root / "images" / f"{index}.png")
    Image.fromarray(np.full((20, 30), 255, np.uint8)).save(root / "saliency" / f"{index}.png")
  config.data.name = "image_folder"
  return config, root


def bomb(mode, edge=30_000):
  """A small PNG file that declares edge² pixels."""
  stream = io.BytesIO()
  Image.new(mode, (1, 1)).save(stream, "PNG")
  data = bytearray(stream.getvalue())
  data[16:24] = struct.pack(">II", edge, edge)
  data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
  return bytes(data)


class Bounds:
  """Measures Python's memory and time."""

  def __enter__(self):
    tracemalloc.start()
    self.started = time.monotonic()
    return self

  def __exit__(self, *exception):
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300e6
    assert time.monotonic() - self.started < 10


@pytest.mark.parametrize("edge", [12_000, 30_000])  # Pillow warns about the first and refuses the second
def test_image_bombs_are_named(tmp_path, edge):
  path = tmp_path / "bomb.png"
  path.write_bytes(bomb("RGB", edge))
  with Bounds(), pytest.raises(UserError, match=r"bomb\.png can't be decoded: .*pixels"):
    read_image(path)
  with Bounds(), pytest.raises(ValueError, match=r"^x: the image can't be decoded: .*pixels"):
    decode_image(path.read_bytes(), "x: the image")
  with Bounds(), pytest.raises(UserError, match=r"bomb\.png can't be decoded: .*repair or delete"):
    read_map(path, b"")
  with Bounds(), pytest.raises(UserError, match=r"bomb\.png can't be decoded: .*repair or delete"):
    is_current(path, "")
  assert edge**2 > MAX_PIXELS


@pytest.mark.parametrize("place", ["images/1.png", "saliency/1.png", "parts/1.png"])
@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_image_bombs_in_a_folder_are_skipped_and_listed(folder, place, mode):
  config, root = folder
  if place.startswith("parts"):
    (root / "parts").mkdir()
    (root / "test.txt").write_text("0.png\n1.png\n")
    Image.fromarray(np.ones((20, 30), np.uint8)).save(root / "parts" / "0.png")
  (root / place).write_bytes(bomb(mode))
  with Bounds():
    preparation = prepare_collection(config)
  (reason,) = preparation.skipped
  assert place.split("/")[1] in reason
  assert "pixels" in reason


@pytest.mark.parametrize(
  ("name", "miniature", "path"),
  [
    ("celeba_wild", celeba_wild, "img_celeba/000001.jpg"),
    ("celeba_wild", celeba_wild, "Saliency_Wild/000001.png"),
    ("aflw", aflw, "data/flickr/0/train0.jpg"),
    ("pascal_parts", pascal_parts, "VOCdevkit/VOC2010/JPEGImages/2008_train0.jpg"),
  ],
)
def test_image_bombs_in_published_collections_are_skipped_and_listed(config, name, miniature, path):
  config.data.name, config.pascal.category = name, "horse"
  miniature.write(pathlib.Path(config.data.dir), faults=False)
  (pathlib.Path(config.data.dir) / path).write_bytes(bomb("RGB"))
  with Bounds():
    (reason,) = prepare_collection(config).skipped
  assert "can't be decoded" in reason
  assert "pixels" in reason


def element(kind, content):
  return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def matlab(*elements):
  return b"MATLAB 5.0".ljust(124) + struct.pack("<H", 0x100) + b"IM" + b"".join(elements)


def array(kind, shape, body, name=b"anno"):
  flags = element(6, struct.pack("<II", kind, 0))
  return element(14, flags + element(5, np.asarray(shape, "<i4").tobytes()) + element(1, name) + body)


def nested(depth):
  fields = element(5, struct.pack("<i", 8)) + element(1, b"objects\0")
  value = array(9, (1, 1), element(2, b"\1"), name=b"")
  for _ in range(depth):
    value = array(2, (1, 1), fields + value, name=b"anno")
  return value


MATLAB_FAULTS = {
  "a matrix declares gigabytes": matlab(array(9, (2**31 - 1, 4), element(2, b"\1"))),
  "a struct array declares billions": matlab(
    array(2, (2**31 - 1, 1), element(5, struct.pack("<i", 8)) + element(1, b"objects\0"))
  ),
  "an element declares gigabytes": matlab(struct.pack("<II", 14, 2**32 - 1)),
  "a compressed variable unpacks without end": matlab(
    struct.pack("<II", 15, 300_000) + zlib.compress(bytes(MAX_BYTES + 1), 9)[:300_000].ljust(300_000, b"\0")
  ),
  "structs nest a thousand deep": matlab(nested(1000)),
  "a negative dimension": matlab(array(9, (-1, 4), element(2, b"\1"))),
  "no dimensions": matlab(array(9, (), element(2, b"\1"))),
  "field names of length zero": matlab(array(2, (1, 1), element(5, struct.pack("<i", 0)) + element(1, b""))),
  "text that is not UTF-8": matlab(array(4, (1, 1), element(16, b"\xff"))),
  "damaged compression": matlab(struct.pack("<II", 15, 8) + b"nonsense"),
  "MATLAB 7.3": b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n",
  "nothing": b"",
}


@pytest.mark.parametrize("fault", MATLAB_FAULTS)
def test_matlab_files_that_would_take_all_memory(fault):
  with Bounds(), pytest.raises(ValueError, match=r"."):
    read_variable(MATLAB_FAULTS[fault], "anno")


def table(path, *rows):
  path.write_bytes(b"\n".join([b"image,landmark,x,y,visible", *rows]))
  return read_landmark_table(path, ["a.jpg"])


LISTS = {
  "a long field": lambda path: table(path, b"a.jpg,tip,1,2," + b"1" * 5_000_000),
  "a long name": lambda path: table(path, b"a" * 100_000 + b",tip,1,2,1"),
  "a long number": lambda path: table(path, b"a.jpg,tip," + b"1" * 100_000 + b",2,1"),
  "a huge coordinate": lambda path: table(path, b"a.jpg,tip,1e300,2,1"),
  "no text": lambda path: table(path, b"a.jpg,tip\xff,1,2,1"),
  "a list of numbers": lambda path: (path.write_text("x " + "7" * 10**6), read_lines(path)[0].numbers(1)),
  "a list of another length": lambda path: (
    path.write_text("x " + "7 " * 10**6),
    read_lines(path)[0].numbers(1),
  ),
}


@pytest.mark.parametrize("fault", LISTS)
def test_absurd_lists_are_named_shortly(tmp_path, fault):
  with Bounds(), pytest.raises(UserError, match=r"x\.csv") as caught:
    LISTS[fault](tmp_path / "x.csv")
  assert len(str(caught.value)) < 1000


def test_files_beyond_the_limits_are_not_read(tmp_path):
  for read in (read_lines, lambda path: read_landmark_table(path, []), aflw_reader.read_database):
    path = tmp_path / "large"
    with path.open("wb") as file:
      file.truncate(1 << 34)  # sparse
    with Bounds(), pytest.raises(UserError, match=r"large.* MiB"):
      read(path)


AFLW_FAULTS = {
  "computed gigabytes": "ALTER TABLE FaceRect RENAME TO R; CREATE TABLE FaceRect (face_id, x, y, w, "
  "h AS (zeroblob(1000000000))); INSERT INTO FaceRect SELECT face_id, x, y, w FROM R",
  "computed for hours": "ALTER TABLE FeatureCoords RENAME TO R; CREATE TABLE FeatureCoords (face_id, "
  "feature_id, x AS (length(hex(zeroblob(400000)))), y AS (x)); WITH RECURSIVE n(i) AS "
  "(SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 100000) INSERT INTO FeatureCoords SELECT 1, 8 FROM n",
}


@pytest.mark.parametrize("fault", AFLW_FAULTS)
def test_databases_that_would_take_all_memory_or_time(tmp_path, monkeypatch, fault):
  # SQLite's speed must not decide: any time is too long.
  monkeypatch.setattr(aflw_reader, "_MAX_SECONDS", 0)
  database = aflw.write(tmp_path, faults=False)
  database.execute(AFLW_FAULTS[fault])
  with Bounds(), pytest.raises(UserError, match=r"aflw\.sqlite can't be read as AFLW's database"):
    aflw_reader.read_database(database.path)


def test_a_database_with_names_in_no_encoding_is_named(tmp_path):
  database = aflw.write(tmp_path, faults=False)
  # SQLite quotes the name in its own error, which Python then can't decode.
  broken = database.path.read_bytes().replace(b"CREATE TABLE FaceRect", b"CREATE TABLX FaceRect")
  database.path.write_bytes(broken.replace(b"FaceRect", b"Face\xffect"))
  with pytest.raises(UserError, match=r"aflw\.sqlite can't be read as AFLW's database"):
    aflw_reader.read_database(database.path)


def test_a_cut_database_is_named(tmp_path):
  database = aflw.write(tmp_path, faults=False)
  data = database.path.read_bytes()
  for size in (100, 5000, len(data) // 2):
    database.path.write_bytes(data[:size])
    with pytest.raises(UserError, match=r"aflw\.sqlite"):
      aflw_reader.read_database(database.path)
  assert sqlite3.connect(":memory:").execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize(
  ("name", "shown"),
  [(b"\xff1.png", r"\udcff1.png"), (b"\x1b[2J1.png", r"\x1b[2J1.png"), (b"a\nb.png", r"a\nb.png")],
)
def test_names_that_no_terminal_should_see_are_skipped_and_listed(folder, name, shown):
  config, root = folder
  os.rename(os.fsencode(root / "images" / "1.png"), os.fsencode(root / "images") + b"/" + name)
  preparation = prepare_collection(config)
  (reason,) = preparation.skipped
  assert shown in reason
  assert "\x1b" not in str(preparation)
  str(preparation).encode()  # a terminal takes it


@pytest.mark.parametrize("shape", [(1, 30), (30, 1), (1, 1)])
def test_an_image_of_one_row_is_skipped_and_listed(folder, shape):
  config, root = folder
  for name in ("images", "saliency"):
    Image.fromarray(np.full(shape, 255, np.uint8)).save(root / name / "1.png")
  (reason,) = prepare_collection(config).skipped
  assert f"1.png: the image has {shape[1]} × {shape[0]} pixels, expected at least 2 × 2" in reason


def test_files_of_other_formats_are_named(folder):
  config, root = folder
  picture = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
  for name in ("a.heic", "b.psd", "c.svg", "d.raw", ".hidden.raw"):
    picture.save(root / "images" / name, "BMP")
  text = str(prepare_collection(config))
  assert "warning: 4 files among the images are left out, only .bmp, .gif, .jpeg" in text
  assert "are read: a.heic, b.psd, c.svg, …" in text


def test_landmarks_outside_of_all_images(folder):
  config, root = folder
  (root / "landmarks.csv").write_text(
    "image,landmark,x,y,visible\n"
    + "".join(f"{i}.png,tip,500,500,1\n{i}.png,tail,5,-50,1\n" for i in range(6))
  )
  with pytest.raises(UserError, match=r"landmarks\.csv: no \w+ image shows .*lie outside their image"):
    prepare_collection(config)


def test_all_landmarks_of_a_published_image_outside(config):
  config.data.name = "celeba_wild"
  root = pathlib.Path(config.data.dir)
  celeba_wild.write(root, faults=False)
  listed = root / "list_landmarks_celeba.txt"
  lines = listed.read_text().splitlines()
  row = next(i for i, line in enumerate(lines) if line.startswith("000001.jpg"))
  lines[row] = "000001.jpg" + " 900 -900" * 5
  listed.write_text("\n".join(lines))
  (reason,) = prepare_collection(config).skipped
  assert "000001.jpg: all landmarks lie outside the image of 30 × 40 pixels" in reason


@pytest.mark.parametrize("value", [0, 1])
def test_all_masks_empty(folder, value):
  config, root = folder
  for path in (root / "saliency").iterdir():
    Image.fromarray(np.full((20, 30), value, np.uint8)).save(path)
  with pytest.raises(UserError, match=r"every mask of the train split is empty: 255 is the object"):
    prepare_collection(config)


def test_mutated_files_are_refused_or_read():
  report = fuzz(0, 300)
  assert report.failures == []
  assert report.memory < 200e6
  assert min(report.outcomes[kind] for kind in ("refused", "bad example", "example")) > 50
