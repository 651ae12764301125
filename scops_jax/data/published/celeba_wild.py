"""CelebA as it is published, in the wild (not the aligned crops): faces that fill enough of their image.

`data.dir` holds

  img_celeba/NAME.jpg
  list_landmarks_celeba.txt   NAME x1 y1 … x5 y5, after lines with the count and the columns' names
  list_bbox_celeba.txt        NAME x y width height, after two such lines
  list_imsize_celeba.txt      NAME height width; without it the sizes are read from the images
  Saliency_Wild/NAME.png      or in data.saliency_dir
  MAFL/training.txt           names of the images that landmarks are regressed on
  MAFL/testing.txt            names of the test images
  MAFL/celebA_training.txt    names of the images to train on; without it, all images

and coordinates are in pixels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from scops_jax.data import source_files as files
from scops_jax.data.builder import Example, FilteredError
from scops_jax.data.published.base import PublishedCollection

_MIN_BOX = 0.3  # of the image's area (section 4.1)
_LISTS = {
  "landmarks": "list_landmarks_celeba.txt",
  "boxes": "list_bbox_celeba.txt",
  "sizes": "list_imsize_celeba.txt",
  "regression": "MAFL/training.txt",
  "test": "MAFL/testing.txt",
  "train": "MAFL/celebA_training.txt",
}


class CelebaWild(PublishedCollection, skip_registration=True):  # type: ignore[call-arg]
  """Faces whose box covers at least 30 % of the image; MAFL's images are not trained on.

  The images keep their published bytes. Coordinates start with 0 at the first pixel.

  Differs from the release: landmarks keep their fractions; the release truncates them after resizing.
  """

  splits = ("train", "regression", "test")
  landmark_names = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
  saliency_folders = ("Saliency_Wild",)

  @classmethod
  def label(cls, config: ConfigDict) -> str:
    return "wild"

  @classmethod
  def sources(cls, config: ConfigDict) -> list[str]:
    return ["img_celeba", *_LISTS.values()]

  def open_source(self) -> None:
    super().open_source()
    root = Path(self.settings.data.dir)
    self._images = root / "img_celeba"
    lists = {what: root / name for what, name in _LISTS.items()}
    self._landmarks = files.by_key(_entries(lists["landmarks"]))
    self._boxes = files.by_key(_entries(lists["boxes"]))
    self._sizes = files.by_key(_entries(lists["sizes"])) if lists["sizes"].exists() else {}
    self._names = {split: [line.key for line in _entries(lists[split])] for split in ("regression", "test")}
    if lists["train"].exists():
      names = [line.key for line in _entries(lists["train"])]
    else:
      names = sorted({*files.list_files(self._images), *self._landmarks, *self._boxes})
    held_out = {*self._names["regression"], *self._names["test"]}
    self._names["train"] = [name for name in names if name not in held_out]

  def list_records(self, split: str) -> Sequence[str]:
    return self._names[split]

  def read_example(self, record: str) -> Example:
    path = self._images / record
    if not path.is_file():
      raise ValueError(f"{record}: there is no file {path}")
    for lines, what in ((self._boxes, "box"), (self._landmarks, "landmarks")):
      if record not in lines:
        raise ValueError(f"{record}: the published lists have no {what} for it")
    box, landmarks = self._boxes[record].numbers(4), self._landmarks[record].numbers(10)
    size = self._sizes[record].numbers(2) if record in self._sizes else files.picture_size(path, record)
    if box[2] * box[3] < _MIN_BOX * np.prod(size):
      raise FilteredError("the face's box covers less than 30 % of the image")
    return Example(
      name=record,
      image=files.read_bytes(path, record),
      landmarks=landmarks.reshape(5, 2).astype(np.float32),
      visible=np.ones(5, bool),
      saliency=files.read_saliency(self._saliency_folder, record, files.picture_size(path, record)),
      box=files.corner_box(*box),
    )


def _entries(path: Path) -> list[files.Line]:
  """A list's lines without the count and the columns' names: an entry begins with a file's name."""
  return [line for line in files.read_lines(path) if Path(line.key).suffix]
