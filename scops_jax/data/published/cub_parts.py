"""CUB-200-2011 as it is published: birds of one category, or all, cut out around their boxes.

`data.dir` holds

  CUB_200_2011/classes.txt             class CLASS
  CUB_200_2011/images.txt              image CLASS/NAME.jpg
  CUB_200_2011/train_test_split.txt    image 1 (training) or 0 (test)
  CUB_200_2011/bounding_boxes.txt      image x y width height
  CUB_200_2011/parts/parts.txt         part name
  CUB_200_2011/parts/part_locs.txt     image part x y visible
  CUB_200_2011/images/CLASS/NAME.jpg
  segmentations/CLASS/NAME.png         here or in CUB_200_2011, or in data.saliency_dir

where class, image and part are numbers from 1, and coordinates are in pixels. `image_class_labels.txt` is not
read, because an image's folder gives its class.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray

from scops_jax.data import source_files as files
from scops_jax.data.builder import Example
from scops_jax.data.image_files import encode_png
from scops_jax.data.published.base import PublishedCollection
from scops_jax.errors import UserError

_LISTS = (
  "classes.txt",
  "images.txt",
  "train_test_split.txt",
  "bounding_boxes.txt",
  "parts/parts.txt",
  "parts/part_locs.txt",
)
# parts/parts.txt, in its order, which has spaces for "_".
_PARTS = (
  "back",
  "beak",
  "belly",
  "breast",
  "crown",
  "forehead",
  "left_eye",
  "left_leg",
  "left_wing",
  "nape",
  "right_eye",
  "right_leg",
  "right_wing",
  "tail",
  "throat",
)


class CubParts(PublishedCollection, skip_registration=True):  # type: ignore[call-arg]
  """Birds with 15 landmarks, some of them hidden, and silhouettes for saliency (section 4.2).

  Images are cut to squares with a margin around the bird's box, see `square_around`, and kept as PNG, so that
  nothing is compressed twice. The silhouettes are means over several annotators and stay soft. Coordinates
  start with 0 at the first pixel.
  """

  landmark_names = _PARTS
  saliency_folders = ("segmentations", "CUB_200_2011/segmentations")

  @classmethod
  def label(cls, config: ConfigDict) -> str:
    return f"category{config.cub.category:03d}" if config.cub.category else "all"

  @classmethod
  def sources(cls, config: ConfigDict) -> list[str]:
    return [f"CUB_200_2011/{name}" for name in (*_LISTS, "images")]

  def open_source(self) -> None:
    super().open_source()
    root = Path(self.settings.data.dir) / "CUB_200_2011"
    path = root / "parts" / "parts.txt"
    names = tuple(line.words(1)[0].strip().replace(" ", "_") for line in files.read_lines(path))
    if names != _PARTS:
      raise UserError(f"{path} names {', '.join(names)}; expected {', '.join(_PARTS)}")
    self._parts: dict[str, list[files.Line]] = defaultdict(list)
    for line in files.read_lines(root / "parts" / "part_locs.txt"):
      self._parts[line.key].append(line)
    self._images = root / "images"
    self._boxes = files.by_key(files.read_lines(root / "bounding_boxes.txt"))
    self._birds = _read_splits(root, self.settings.cub.category)

  def list_records(self, split: str) -> Sequence["_Bird"]:
    return self._birds[split]

  def read_example(self, record: "_Bird") -> Example:
    if record.problem:
      raise ValueError(f"{record.name}: {record.problem}")
    box = _read_box(record, self._boxes)
    landmarks, visible = _read_landmarks(record, self._parts.get(record.number, []))
    pixels = files.read_picture(self._images / record.name, record.name)
    height, width = pixels.shape[:2]
    square = files.square_around(box, height, width)
    saliency = files.read_saliency(self._saliency_folder, record.name, (height, width))
    offset = np.asarray((square[1].start, square[0].start), np.float32)
    return Example(
      name=record.name,
      image=encode_png(pixels[square]),
      landmarks=np.where(visible[:, None], landmarks - offset, 0),
      visible=visible,
      saliency=None if saliency is None else saliency[square],
      box=box - np.tile(offset, 2),
    )


_MAX_NAME = 255  # bytes of a file's name


class _Bird(NamedTuple):
  name: str  # CLASS/NAME.jpg
  number: str
  problem: str  # why it can't be used; "": it can


def _read_splits(root: Path, category: int) -> dict[str, list[_Bird]]:
  """The birds of a category, or of all if it is 0; those in no published split are faulty training birds."""
  folder = "*"
  if category:
    classes = files.by_key(files.read_lines(root / "classes.txt"))
    if str(category) not in classes:
      raise UserError(f"cub.category={category}, but {root / 'classes.txt'} has no such class")
    folder = classes[str(category)].words(1)[0].strip()
    if len(folder.encode()) > _MAX_NAME:
      raise UserError(f"{root / 'classes.txt'}: the name of class {category} is too long for a folder")
  is_training = {line.key: line.text.split()[1:] for line in files.read_lines(root / "train_test_split.txt")}
  splits: dict[str, list[_Bird]] = {"train": [], "test": []}
  unlisted = dict.fromkeys(files.list_files(root / "images", f"{folder}/*"))
  for number, line in files.by_key(files.read_lines(root / "images.txt")).items():
    name = line.words(1)[0].strip()
    if folder not in ("*", Path(name).parent.name):
      continue
    unlisted.pop(name, None)
    split = {"1": "train", "0": "test"}.get(" ".join(is_training.get(number, ())))
    problem = "" if split else f"train_test_split.txt does not say 0 or 1 for image {number}"
    splits[split or "train"].append(_Bird(name, number, problem))
  splits["train"] += [_Bird(name, "", "images.txt does not list it") for name in unlisted]
  return splits


def _read_box(bird: _Bird, lines: dict[str, files.Line]) -> NDArray[np.float32]:
  if bird.number not in lines:
    raise ValueError(f"{bird.name}: bounding_boxes.txt has no line for image {bird.number}")
  x, y, width, height = lines[bird.number].numbers(4)
  if min(width, height) <= 0:
    raise ValueError(f"{bird.name}: its box is {width} × {height} pixels")
  return files.corner_box(x, y, width, height)


def _read_landmarks(bird: _Bird, lines: list[files.Line]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
  """The parts' coordinates [15, 2] and whether they are visible [15]."""
  rows = np.asarray([line.numbers(4) for line in lines]).reshape(-1, 4)
  rows = rows[np.argsort(rows[:, 0])]
  if not np.array_equal(rows[:, 0], 1 + np.arange(len(_PARTS))):
    raise ValueError(f"{bird.name}: part_locs.txt should have each of {len(_PARTS)} parts once for it")
  return rows[:, 1:3].astype(np.float32), rows[:, 3] == 1
