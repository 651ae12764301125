"""AFLW as it is published: the faces that fill enough of their image, with five of its 21 landmarks.

`data.dir` holds

  data/aflw.sqlite or aflw.sqlite   the annotations
  data/flickr/PATH.jpg              the images, PATH as in the database's FaceImages.filepath
  saliency/PATH.png                 (or data.saliency_dir)
  train.txt, test.txt               a PATH.jpg on each line; if both are missing, see `Aflw`
"""

import contextlib
import itertools
import math
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray

from scops_jax.data import source_files as files
from scops_jax.data.builder import Example, FilteredError
from scops_jax.data.published.base import PublishedCollection
from scops_jax.errors import UserError, printable

_MIN_BOX = 0.3  # of the image's area
_DATABASES = ("data/aflw.sqlite", "aflw.sqlite")
# The landmarks, as FeatureCoordTypes.descr names them.
_LANDMARKS = {
  "left_eye": "LeftEyeCenter",
  "right_eye": "RightEyeCenter",
  "nose": "NoseCenter",
  "left_mouth": "MouthLeftCorner",
  "right_mouth": "MouthRightCorner",
}
_TABLES = ("Faces", "FaceImages", "FaceRect", "FeatureCoords", "FeatureCoordTypes")
_MAX_BYTES = 1 << 29  # of the database
_MAX_ROWS = 2_000_000  # of a table; the published one has 26 000 faces with 21 points each
_MAX_TEXT = 1 << 20  # bytes of a value
_MAX_SECONDS = 30  # for reading it; a second is enough
_MAX_NUMBER = 1e6  # of a coordinate in pixels
_TABLE_NAMES = "SELECT name FROM sqlite_master WHERE type = 'table'"  # no views
# Of several annotators' boxes of a face the first counts.
_ALL_FACES = """
  SELECT face_id, file_id, i.first, filepath, height, width, r.first, x, y, w, h FROM Faces
  LEFT JOIN (SELECT file_id, MIN(rowid) AS first, filepath, height, width FROM FaceImages GROUP BY file_id) i
    USING (file_id)
  LEFT JOIN (SELECT face_id, MIN(rowid) AS first, x, y, w, h FROM FaceRect GROUP BY face_id) r USING (face_id)
"""


class Face(NamedTuple):
  """A face in the database. SQLite's columns have no types, so `read_example` checks the values."""

  face_id: Any
  path: str  # of the image, below data/flickr
  size: tuple[Any, ...] | None  # (height, width) of the image; None: not in the database
  box: tuple[Any, ...] | None  # (x, y, width, height); None: not in the database
  points: dict[str, tuple[Any, Any]]  # (x, y) of the visible landmarks, by name


class Aflw(PublishedCollection, skip_registration=True):  # type: ignore[call-arg]
  """The largest face of each image, if its box covers at least 30 % of the image.

  Images keep their published bytes. Coordinates start with 0 at the first pixel. A landmark that the database
  lacks, or that lies outside the image, is hidden.

  AFLW has no published split. Without lists, `chosen_for_test` decides by an image's path in the database. An
  image is one example: its other faces are left out, because an image has one set of part centres.
  """

  landmark_names = tuple(_LANDMARKS)
  saliency_folders = ("saliency",)

  @classmethod
  def label(cls, config: ConfigDict) -> str:
    return "box30"

  @classmethod
  def sources(cls, config: ConfigDict) -> list[str]:
    return [*_DATABASES, "data/flickr", *(f"{split}.txt" for split in cls.splits)]

  def open_source(self) -> None:
    super().open_source()
    self._root = Path(self.settings.data.dir)
    places = [self._root / name for name in _DATABASES]
    self._faces = read_database(next((path for path in places if path.exists()), places[0]))
    self._paths = self._read_splits()

  def list_records(self, split: str) -> Sequence[tuple[Face, bool]]:
    """Every face, and whether it is the largest of its image."""
    records: list[tuple[Face, bool]] = []
    for path, faces in itertools.groupby(self._faces, key=lambda face: face.path):
      if path in self._paths[split]:
        group = list(faces)
        largest = max(group, key=_area)
        records.extend((face, face is largest) for face in group)
    return records

  def read_example(self, record: tuple[Face, bool]) -> Example:
    face, is_largest = record
    name = f"{face.path} (face {face.face_id})"
    if face.size is None:
      raise FilteredError("the database does not know the image")
    if face.box is None:
      raise FilteredError("the database has no box of the face")
    if not is_largest:
      raise FilteredError("another face of the image is larger")
    height, width = _numbers(face.size, name, "the image's size")
    box = _numbers(face.box, name, "the face's box")
    if box[2] * box[3] < _MIN_BOX * width * height:
      raise FilteredError("the face's box covers less than 30 % of the image")
    path = self._root / "data" / "flickr" / _inside(face.path, name)
    shape = files.picture_size(path, name)
    if shape != (height, width):
      raise ValueError(
        f"{name}: the image has {shape[0]} × {shape[1]} pixels, the database says {height:.0f} × {width:.0f}"
      )
    landmarks = np.full((len(_LANDMARKS), 2), np.nan)
    for row, landmark in enumerate(_LANDMARKS):
      if landmark in face.points:
        landmarks[row] = _numbers(face.points[landmark], name, landmark)
    last = np.asarray([width, height]) - 1
    visible = np.all((landmarks >= -0.5) & (landmarks <= last + 0.5), axis=1)
    return Example(
      name=face.path,
      image=files.read_bytes(path, name),
      landmarks=np.where(visible[:, None], landmarks, 0).astype(np.float32),
      visible=visible,
      saliency=files.read_saliency(self._saliency_folder, face.path, shape),
      box=files.corner_box(*box),
    )

  def _read_splits(self) -> dict[str, set[str]]:
    """The paths of each split's images."""
    paths = {face.path for face in self._faces}

    def check(path: str, line: files.Line) -> None:
      if path not in paths:
        raise UserError(f"{line}: the database has no face of an image {path!r}")

    listed = files.read_split_lists(self._root, self.splits, check)
    if not listed:
      test = {path for path in paths if files.chosen_for_test(path)}
      return {"train": paths - test, "test": test}
    for split in self.splits:
      if split not in listed:
        raise UserError(f"{self._root / split}.txt is missing, and there is a list of the other split")
    return {split: set(names) for split, names in listed.items()}


def read_database(path: Path) -> list[Face]:
  """All faces of AFLW's database, sorted by image and number.

  It is opened read-only, and only plain tables are read: none of its views, triggers or functions runs.

  Raises:
    UserError: the file is missing, not SQLite, or lacks a table, column or landmark.
  """
  if not path.is_file():
    raise UserError(f"{path} is missing: data.dir must hold AFLW as it is published")
  if path.stat().st_size > _MAX_BYTES:
    raise UserError(f"{path} has over {_MAX_BYTES >> 20} MiB: AFLW's database is smaller")
  try:
    # immutable: SQLite writes no lock or journal file, so the folder may be read-only.
    uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
      connection.execute("PRAGMA trusted_schema = OFF")
      # Columns may be computed: without bounds a small file could take all memory and time.
      connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_TEXT)
      deadline = time.monotonic() + _MAX_SECONDS
      connection.set_progress_handler(lambda: time.monotonic() > deadline, 1000)
      return _read_faces(connection, path)
  except (sqlite3.Error, UnicodeDecodeError) as error:
    raise UserError(f"{path} can't be read as AFLW's database: {error}") from error


def _read_faces(connection: sqlite3.Connection, path: Path) -> list[Face]:
  tables = {name.lower() for (name,) in connection.execute(_TABLE_NAMES)}
  for table in _TABLES:
    if table.lower() not in tables:
      raise UserError(f"{path} has no table {table}: expected the aflw.sqlite that AFLW publishes")
  for table in _TABLES:
    (count,) = connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()
    if count > _MAX_ROWS:
      raise UserError(f"{path}: the table {table} has {count} rows, AFLW's have at most {_MAX_ROWS}")
  names = {descr: name for name, descr in _LANDMARKS.items()}
  types = dict(connection.execute("SELECT feature_id, descr FROM FeatureCoordTypes"))
  absent = [descr for descr in names if descr not in types.values()]
  if absent:
    raise UserError(f"{path}: the table FeatureCoordTypes does not describe {', '.join(absent)}")
  points: dict[Any, dict[str, tuple[Any, Any]]] = {}
  for face_id, feature_id, x, y in connection.execute("SELECT face_id, feature_id, x, y FROM FeatureCoords"):
    if types.get(feature_id) in names:
      # Several annotators may have marked a landmark; the first counts, as in _ALL_FACES.
      points.setdefault(face_id, {}).setdefault(names[types[feature_id]], (x, y))
  faces = []
  for face_id, file_id, image, image_path, height, width, rect, *box in connection.execute(_ALL_FACES):
    faces.append(
      Face(
        face_id,
        str(file_id if image is None else image_path),
        None if image is None else (height, width),
        None if rect is None else tuple(box),
        points.get(face_id, {}),
      )
    )
  return sorted(faces, key=lambda face: (face.path, str(face.face_id)))


def _area(face: Face) -> float:
  """The area of a face's box; infinite if it is not numbers, so that `read_example` reports the face."""
  if face.box is None:
    return 0.0
  width, height = face.box[2:]
  return width * height if isinstance(width, int | float) and isinstance(height, int | float) else math.inf


def _numbers(values: tuple[Any, ...], name: str, what: str) -> NDArray[np.float64]:
  if not all(isinstance(value, int | float) and abs(value) <= _MAX_NUMBER for value in values):
    raise ValueError(f"{name}: {what} should be numbers, the database has {printable(str(values))}")
  return np.asarray(values, np.float64)


def _inside(path: str, name: str) -> PurePosixPath:
  """Returns the path if it stays inside the image folder."""
  relative = PurePosixPath(path)
  if relative.is_absolute() or ".." in relative.parts:
    raise ValueError(f"{name}: the database's path leads out of the image folder")
  return relative
