"""AFLW: its database, images, saliency maps and lists; each entry says what is wrong with it."""

import contextlib
import sqlite3

import numpy as np

from tests import miniatures

# A part of AFLW's FeatureCoordTypes, and where a face has these points.
FEATURES = {
  1: "LeftBrowLeftCorner",
  8: "LeftEyeCenter",
  11: "RightEyeCenter",
  15: "NoseCenter",
  18: "MouthLeftCorner",
  20: "MouthRightCorner",
}
POINTS = {
  8: (10.5, 9.0),
  11: (24.0, 9.5),
  15: (17.0, 15.0),
  18: (12.0, 21.0),
  20: (22.0, 21.5),
  1: (8.0, 7.0),
}
HEIGHT, WIDTH = 32, 40  # 1280 pixels
BOX = (4, 2, 26, 28)  # x, y, width, height: 57 % of them
SMALL_BOX = (0, 0, 16, 23)  # 28.75 %
# Faults, all among the training images.
FAULTS = {
  "f0_missing": "there is no file",
  "f1_truncated": "the image can't be decoded: image file is truncated",
  "f2_other_size": "the image has 33 × 41 pixels, the database says 32 × 40",
  "f3_no_saliency": "there is no saliency map",
  "f4_box": "the face's box should be numbers, the database has (4, 2, 'wide', 28)",
  "f5_null": "left_eye should be numbers, the database has (10.5, None)",
  "f6_infinite": "left_eye should be numbers, the database has (inf, 9.0)",
  "f7_size": "the image's size should be numbers, the database has (32, None)",
}
_SCHEMA = """
  CREATE TABLE Faces (face_id INTEGER PRIMARY KEY, file_id TEXT, db_id TEXT);
  CREATE TABLE FaceImages (image_id INTEGER PRIMARY KEY, db_id TEXT, file_id TEXT, filepath TEXT, bw INTEGER,
    width INTEGER, height INTEGER);
  CREATE TABLE FaceRect (face_id INTEGER, x INTEGER, y INTEGER, w INTEGER, h INTEGER, annot_type_id INTEGER,
    upsidedown INTEGER);
  CREATE TABLE FacePose (face_id INTEGER, roll REAL, pitch REAL, yaw REAL);
  CREATE TABLE FeatureCoords (face_id INTEGER, feature_id INTEGER, x REAL, y REAL, annot_type_id INTEGER);
  CREATE TABLE FeatureCoordTypes (feature_id INTEGER, descr TEXT, code TEXT, x REAL, y REAL, z REAL);
"""


def write(folder, *, faults=True):
  """Writes four training and three test images with a face each that passes, of several widths."""
  database = Database(folder)
  for split, count in (("train", 4), ("test", 3)):
    names = [f"{split}{index}" for index in range(count)]
    for index, name in enumerate(names):
      database.add_image(name, width=WIDTH + index)
      database.add_face(name, points={key: (x + index, y + index % 2) for key, (x, y) in POINTS.items()})
    if faults and split == "train":
      for name in FAULTS:
        _add_fault(database, name)
      names += FAULTS
    # CRLF, no line end after the last entry.
    miniatures.write(folder / f"{split}.txt", "\r\n".join(f"0/{name}.jpg" for name in names))
  return database


class Database:
  """Writes entries of aflw.sqlite and the files that belong to them."""

  def __init__(self, folder):
    self.folder = folder
    self.path = folder / "data" / "aflw.sqlite"
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self.num_faces = 0
    self.execute(_SCHEMA)
    for feature_id, descr in FEATURES.items():
      self.insert("FeatureCoordTypes", feature_id, descr, "", 0, 0, 0)

  def execute(self, script):
    with self._connection() as connection:
      connection.executescript(script)

  def insert(self, table, *values):
    with self._connection() as connection, connection:
      connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", values)

  def image_path(self, name):
    return self.folder / "data" / "flickr" / "0" / f"{name}.jpg"

  def add_image(self, name, *, width=WIDTH):
    """An image with a saliency map whose values are the columns."""
    miniatures.write(
      self.image_path(name), miniatures.encoded(miniatures.pixels(HEIGHT, width, self.num_faces))
    )
    saliency = np.tile(np.arange(width, dtype=np.uint8), (HEIGHT, 1))
    miniatures.write(self.folder / "saliency" / "0" / f"{name}.png", miniatures.encoded(saliency, "PNG"))
    self.insert("FaceImages", None, "flickr", f"{name}.jpg", f"0/{name}.jpg", 0, width, HEIGHT)

  def add_face(self, name, *, box=BOX, points=POINTS):
    """A face of an image; its number is counted up from 1."""
    self.num_faces += 1
    self.insert("Faces", self.num_faces, f"{name}.jpg", "flickr")
    if box is not None:
      self.insert("FaceRect", self.num_faces, *box, 1, 0)
    for feature_id, (x, y) in points.items():
      self.insert("FeatureCoords", self.num_faces, feature_id, x, y, 1)

  @contextlib.contextmanager
  def _connection(self):
    with contextlib.closing(sqlite3.connect(self.path)) as connection:
      connection.executescript("PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY")
      yield connection


def _add_fault(database, name):
  database.add_image(name)
  points = {**POINTS}
  if name == "f5_null":
    points[8] = (10.5, None)
  if name == "f6_infinite":
    points[8] = (float("inf"), 9.0)
  database.add_face(name, box=(4, 2, "wide", 28) if name == "f4_box" else BOX, points=points)
  path = database.image_path(name)
  if name == "f0_missing":
    path.unlink()
  if name == "f1_truncated":
    miniatures.write(path, path.read_bytes()[:-30])
  if name == "f2_other_size":
    miniatures.write(path, miniatures.encoded(miniatures.pixels(HEIGHT + 1, WIDTH + 1, 0)))
  if name == "f3_no_saliency":
    (database.folder / "saliency" / "0" / f"{name}.png").unlink()
  if name == "f7_size":
    database.execute(f"UPDATE FaceImages SET width = NULL WHERE file_id = '{name}.jpg'")
