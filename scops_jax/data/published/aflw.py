"""AFLW as it is published: the faces that fill enough of their image, with five of its 21 landmarks.

`data.dir` holds

  data/aflw.sqlite or aflw.sqlite   the annotations
  data/flickr/PATH.jpg              the images, PATH as in the database's FaceImages.filepath
  saliency/PATH.png                 (or data.saliency_dir)
  train.txt, test.txt               PATH.jpg, one a line; where both are missing, see `Aflw`
"""

import contextlib
import functools
import hashlib
import itertools
import math
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray

from scops_jax.data.builder import CollectionBuilder, Example, FilteredError
from scops_jax.data.published.files import (
  find_saliency_folder,
  picture_size,
  read_bytes,
  read_lines,
  read_saliency,
  source_digest,
)
from scops_jax.errors import UserError

_MIN_BOX = 0.3  # of the image's area
_TEST_SHARE = 10  # one image in ten is a test image
# The landmarks, as FeatureCoordTypes.descr names them.
_LANDMARKS = {
  "left_eye": "LeftEyeCenter",
  "right_eye": "RightEyeCenter",
  "nose": "NoseCenter",
  "left_mouth": "MouthLeftCorner",
  "right_mouth": "MouthRightCorner",
}
_TABLES = ("Faces", "FaceImages", "FaceRect", "FeatureCoords", "FeatureCoordTypes")


class Face(NamedTuple):
  """A face as the database has it; SQLite's columns have no types, so the values are not checked yet."""

  face_id: Any
  path: str  # of the image, below data/flickr
  size: tuple[Any, Any] | None  # (height, width) of the image; None: the database does not know it
  box: tuple[Any, ...] | None  # (x, y, width, height); None: the face has none
  points: dict[str, tuple[Any, Any]]  # (x, y) by landmark name; a hidden landmark is missing


class Aflw(CollectionBuilder, skip_registration=True):  # type: ignore[call-arg]
  """The largest face of each image, if its box covers at least 30 % of the image.

  Images keep their published bytes, landmarks their coordinates, taken with 0 for the first pixel. A landmark
  that the database lacks, or that lies outside the image, is hidden.

  AFLW has no published split. Without lists an image is a test image if the SHA-256 of its path in the
  database, as a number, is a multiple of ten. An image is one example, so no image is in both splits; other
  faces of it are left out, because the same picture can't have two sets of part centres.
  """

  landmark_names = tuple(_LANDMARKS)

  @classmethod
  def variant(cls, config: ConfigDict) -> str:
    return f"box30-{source_digest(config)}"

  def list_records(self, split: str) -> Sequence[tuple[Face, bool]]:
    """Every face, and whether it is the largest of its image."""
    self._saliency_folder  # noqa: B018  (its absence is an error of the collection, not of an image)
    wanted = self._image_paths[split]
    records: list[tuple[Face, bool]] = []
    for path, faces in itertools.groupby(self._faces, key=lambda face: face.path):
      if path in wanted:
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
    x, y, box_width, box_height = _numbers(face.box, name, "the face's box")
    if box_width * box_height < _MIN_BOX * width * height:
      raise FilteredError("the face's box covers less than 30 % of the image")
    path = self._root / "data" / "flickr" / _inside(face.path, name)
    shape = picture_size(path, name)
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
      image=read_bytes(path, name),
      landmarks=np.where(visible[:, None], landmarks, 0).astype(np.float32),
      visible=visible,
      saliency=read_saliency(self._saliency_folder, face.path, shape),
      box=np.asarray((x, y, x + box_width - 1, y + box_height - 1), np.float32),
    )

  @functools.cached_property
  def _root(self) -> Path:
    return Path(self.settings.data.dir)

  @functools.cached_property
  def _saliency_folder(self) -> Path | None:
    return find_saliency_folder(self.settings, self._root / "saliency")

  @functools.cached_property
  def _faces(self) -> list[Face]:
    places = [self._root / "data" / "aflw.sqlite", self._root / "aflw.sqlite"]
    return read_database(next((path for path in places if path.exists()), places[0]))

  @functools.cached_property
  def _image_paths(self) -> dict[str, set[str]]:
    """The images of each split."""
    paths = {face.path for face in self._faces}
    lists = {split: self._root / f"{split}.txt" for split in self.splits}
    if not any(path.exists() for path in lists.values()):
      test = {path for path in paths if _is_test(path)}
      return {"train": paths - test, "test": test}
    listed: dict[str, set[str]] = {}
    for split, path in lists.items():
      listed[split] = set()
      for line in read_lines(path):
        name = line.text.strip()
        if name not in paths:
          raise UserError(f"{line}: the database has no face of an image {name!r}")
        if name in listed["train"] and split == "test":
          raise UserError(f"{line}: {name!r} is in train.txt already")
        listed[split].add(name)
    return listed


def read_database(path: Path) -> list[Face]:
  """All faces of AFLW's database, sorted by image and number.

  It is opened for reading only, and only plain tables are read: no view, trigger or function of it runs.

  Raises:
    UserError: it is missing, no SQLite file, or lacks a table, column or landmark.
  """
  if not path.is_file():
    raise UserError(f"{path} is missing: data.dir must hold AFLW as it is published")
  try:
    # Immutable: no lock or journal is made beside it, so the folder may be read-only.
    uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
      connection.execute("PRAGMA trusted_schema = OFF")
      return _read_faces(connection, path)
  except sqlite3.Error as error:
    raise UserError(f"{path} can't be read as AFLW's database: {error}") from error


def _read_faces(connection: sqlite3.Connection, path: Path) -> list[Face]:
  tables = {
    name.lower() for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
  }
  for table in _TABLES:
    if table.lower() not in tables:
      raise UserError(f"{path} has no table {table}: expected the aflw.sqlite that AFLW publishes")
  landmarks = {descr: name for name, descr in _LANDMARKS.items()}
  feature_ids: dict[Any, str] = {}
  for feature_id, descr in connection.execute("SELECT feature_id, descr FROM FeatureCoordTypes"):
    if descr in landmarks:
      feature_ids[feature_id] = landmarks[descr]
  absent = [descr for descr, name in landmarks.items() if name not in feature_ids.values()]
  if absent:
    raise UserError(f"{path}: the table FeatureCoordTypes does not describe {', '.join(absent)}")

  # Of entries for the same thing (several annotators) the first counts.
  points: dict[Any, dict[str, tuple[Any, Any]]] = defaultdict(dict)
  slots = ", ".join("?" * len(feature_ids))
  query = f"SELECT face_id, feature_id, x, y FROM FeatureCoords WHERE feature_id IN ({slots})"
  for face_id, feature_id, x, y in connection.execute(query, list(feature_ids)):
    points[face_id].setdefault(feature_ids[feature_id], (x, y))
  boxes: dict[Any, tuple[Any, ...]] = {}
  for face_id, *box in connection.execute("SELECT face_id, x, y, w, h FROM FaceRect"):
    boxes.setdefault(face_id, tuple(box))
  images: dict[Any, tuple[str, tuple[Any, Any]]] = {}
  for file_id, file_path, height, width in connection.execute(
    "SELECT file_id, filepath, height, width FROM FaceImages"
  ):
    images.setdefault(file_id, (str(file_path), (height, width)))
  faces = []
  for face_id, file_id in connection.execute("SELECT face_id, file_id FROM Faces"):
    image_path, size = images.get(file_id, (str(file_id), None))
    faces.append(Face(face_id, image_path, size, boxes.get(face_id), points.get(face_id, {})))
  return sorted(faces, key=lambda face: (face.path, str(face.face_id)))


def _is_test(path: str) -> bool:
  return int.from_bytes(hashlib.sha256(path.encode()).digest(), "big") % _TEST_SHARE == 0


def _area(face: Face) -> float:
  """Of a face's box; infinite where it is not numbers, so that `read_example` meets and names the face."""
  if face.box is None:
    return 0.0
  width, height = face.box[2:]
  return width * height if isinstance(width, int | float) and isinstance(height, int | float) else math.inf


def _numbers(values: tuple[Any, ...], name: str, what: str) -> NDArray[np.float64]:
  if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
    raise ValueError(f"{name}: {what} should be numbers, the database has {values}")
  return np.asarray(values, np.float64)


def _inside(path: str, name: str) -> PurePosixPath:
  """The path, which must not lead out of the image folder."""
  relative = PurePosixPath(path)
  if relative.is_absolute() or ".." in relative.parts:
    raise ValueError(f"{name}: the database's path leads out of the image folder")
  return relative
