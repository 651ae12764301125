"""CelebA as it is published, in the wild (not the aligned crops): faces that fill enough of their image.

`data.dir` holds

  img_celeba/NAME.jpg
  list_landmarks_celeba.txt   NAME x1 y1 … x5 y5; a count and the columns' names stand before
  list_bbox_celeba.txt        NAME x y width height, likewise
  list_imsize_celeba.txt      NAME height width; without it the sizes are read from the images
  Saliency_Wild/NAME.png      or in data.saliency_dir
  MAFL/training.txt           names of the images that landmarks are regressed on
  MAFL/testing.txt            names of the test images
  MAFL/celebA_training.txt    names of the images to train on; without it, all images

and coordinates are in pixels.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from scops_jax.data.builder import CollectionBuilder, Example, FilteredError
from scops_jax.data.published.files import (
  Line,
  by_key,
  find_saliency_folder,
  list_files,
  picture_size,
  read_bytes,
  read_lines,
  read_saliency,
  source_digest,
)

_MIN_BOX = 0.3  # of the image's area (section 4.1)


class CelebaWild(CollectionBuilder, skip_registration=True):  # type: ignore[call-arg]
  """Faces whose box covers at least 30 % of the image, without MAFL's images where the network is trained.

  The images keep their published bytes. Coordinates are taken with 0 for the first pixel.

  Differs from the release: landmarks keep their fractions where it truncates them after resizing.
  """

  splits = ("train", "regression", "test")
  landmark_names = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")

  @classmethod
  def variant(cls, config: ConfigDict) -> str:
    return f"wild-{source_digest(config)}"

  def list_records(self, split: str) -> Sequence[str]:
    return self._published.splits[split]

  def read_example(self, record: str) -> Example:
    published = self._published
    path = published.images / record
    if not path.is_file():
      raise ValueError(f"{record}: there is no file {path}")
    for lines, what in ((published.boxes, "box"), (published.landmarks, "landmarks")):
      if record not in lines:
        raise ValueError(f"{record}: the published lists have no {what} for it")
    x, y, width, height = published.boxes[record].numbers(4)
    landmarks = published.landmarks[record].numbers(10)
    listed = published.sizes.get(record)
    if width * height < _MIN_BOX * np.prod(listed.numbers(2) if listed else picture_size(path, record)):
      raise FilteredError("the face's box covers less than 30 % of the image")
    return Example(
      name=record,
      image=read_bytes(path, record),
      landmarks=landmarks.reshape(5, 2).astype(np.float32),
      visible=np.ones(5, bool),
      saliency=read_saliency(published.saliency, record, picture_size(path, record)),
      box=np.asarray((x, y, x + width - 1, y + height - 1), np.float32),
    )

  @functools.cached_property
  def _published(self) -> "_Published":
    return _read_published(self.settings)


class _Published(NamedTuple):
  """What the files beside the images say."""

  images: Path
  saliency: Path | None
  landmarks: dict[str, Line]
  boxes: dict[str, Line]
  sizes: dict[str, Line]
  splits: dict[str, list[str]]


def _read_published(config: ConfigDict) -> _Published:
  root = Path(config.data.dir)
  images, mafl = root / "img_celeba", root / "MAFL"
  landmarks = by_key(_entries(root / "list_landmarks_celeba.txt"))
  boxes = by_key(_entries(root / "list_bbox_celeba.txt"))
  sizes, training = root / "list_imsize_celeba.txt", mafl / "celebA_training.txt"
  splits = {
    "regression": [line.key for line in _entries(mafl / "training.txt")],
    "test": [line.key for line in _entries(mafl / "testing.txt")],
  }
  if training.exists():
    names = [line.key for line in _entries(training)]
  else:
    names = sorted({*list_files(images), *landmarks, *boxes})
  held_out = {*splits["regression"], *splits["test"]}
  splits["train"] = [name for name in names if name not in held_out]
  return _Published(
    images=images,
    saliency=find_saliency_folder(config, root / "Saliency_Wild"),
    landmarks=landmarks,
    boxes=boxes,
    sizes=by_key(_entries(sizes)) if sizes.exists() else {},
    splits=splits,
  )


def _entries(path: Path) -> list[Line]:
  """A list's lines without the count and the columns' names: an entry begins with a file's name."""
  return [line for line in read_lines(path) if Path(line.key).suffix]
