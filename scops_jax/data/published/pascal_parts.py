"""Objects of one category of PASCAL VOC 2010, with the parts of PASCAL-Part as ground truth.

`data.dir` holds

  VOCdevkit/VOC2010/JPEGImages/NAME.jpg
  VOCdevkit/VOC2010/ImageSets/Main/CATEGORY_train.txt   NAME 1 (shows it), 0 or -1; the training images
  VOCdevkit/VOC2010/ImageSets/Main/CATEGORY_val.txt     likewise, the test images
  Annotations_Part/NAME.mat                             PASCAL-Part
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray

from scops_jax.data.builder import CollectionBuilder, Example, FilteredError, encode_png
from scops_jax.data.published.files import (
  find_saliency_folder,
  read_lines,
  read_picture,
  read_saliency,
  source_digest,
  square_around,
)
from scops_jax.data.published.pascal_annotations import (
  AnnotatedObject,
  part_labels,
  part_names,
  read_annotation,
)

_LISTS = {"train": "train", "test": "val"}
_MIN_BOX = 0.2  # of the image's area
_ENLARGE = 1.1  # side of the cut-out square over the box's longer edge: a margin of 5 % on each side


class PascalParts(CollectionBuilder, skip_registration=True):  # type: ignore[call-arg]
  """One example for each object of `pascal.category` whose box covers at least 20 % of the image.

  The box is that of the object's silhouette. The image is cut to the square about it, enlarged to 1.1 of the
  box's longer edge; the square is moved into the image where it reaches over the edge, and cut off where it
  does not fit. The cut-out is kept as PNG, so nothing is compressed twice. Other objects of the category in
  it count as foreground and their parts as parts, since nothing tells the network which one is meant; objects
  of other categories are background.

  The saliency is that of `data.saliency_dir`, of the whole image, cut alike. Without such a folder it is the
  category's silhouettes: supervision that the paper does not use here, so the data set's name says so.

  The parts, merged as in `pascal_annotations`, are for the evaluation only. There are no landmarks.
  """

  def __init__(self, config: ConfigDict) -> None:
    """Opens the data set of config.pascal.category, prepared or not."""
    self.part_names = part_names(config.pascal.category)
    super().__init__(config)

  @classmethod
  def variant(cls, config: ConfigDict) -> str:
    source = "silhouettes-" if _takes_silhouettes(config) else ""
    return f"{config.pascal.category}-{source}{source_digest(config)}"

  def list_records(self, split: str) -> Sequence[tuple[str, int]]:
    """Image names and the objects' numbers among those of the category in their image."""
    self._saliency_folder  # noqa: B018  (its absence is an error of the collection, not of an image)
    category = self.settings.pascal.category
    path = self._voc / "ImageSets" / "Main" / f"{category}_{_LISTS[split]}.txt"
    # 0: it shows only objects that are marked as difficult; -1: none.
    names = [line.key for line in read_lines(path) if line.numbers(1)[0] == 1]
    return [(name, number) for name in names for number in range(self._count_objects(name))]

  def read_example(self, record: tuple[str, int]) -> Example:
    name, number = record
    objects = read_annotation(self._annotation_path(name), name)
    found = self._of_category(objects)
    if not found:
      raise FilteredError("no object of the category is annotated")
    pixels = read_picture(self._voc / "JPEGImages" / f"{name}.jpg", name)
    height, width = pixels.shape[:2]
    if any(mask.shape != (height, width) for mask in _masks(objects)):
      raise ValueError(f"{name}: a mask of its annotation is not of the image's size, {height} × {width}")
    x0, y0, x1, y1 = box = _box(found[number].mask, name)
    if (x1 - x0 + 1) * (y1 - y0 + 1) < _MIN_BOX * height * width:
      raise FilteredError("the object's box covers less than 20 % of the image")
    try:
      parts = part_labels(objects, self.settings.pascal.category)
    except ValueError as error:
      raise ValueError(f"{name}: {error}") from error
    left, top, right, bottom = square_around(box, height, width, enlarge=_ENLARGE)
    crop = np.s_[top:bottom, left:right]
    saliency = self._saliency(name, parts)
    return Example(
      name=f"{name}/{number + 1}",
      image=encode_png(pixels[crop]),
      landmarks=np.zeros((0, 2), np.float32),
      visible=np.zeros(0, np.bool_),
      saliency=None if saliency is None else saliency[crop],
      parts=parts[crop],
      box=box - np.asarray((left, top, left, top), np.float32),
    )

  @functools.cached_property
  def _voc(self) -> Path:
    return Path(self.settings.data.dir) / "VOCdevkit" / "VOC2010"

  @functools.cached_property
  def _saliency_folder(self) -> Path | None:
    return None if _takes_silhouettes(self.settings) else find_saliency_folder(self.settings)

  def _annotation_path(self, name: str) -> Path:
    return Path(self.settings.data.dir) / "Annotations_Part" / f"{name}.mat"

  def _of_category(self, objects: Sequence[AnnotatedObject]) -> list[AnnotatedObject]:
    return [item for item in objects if item.category == self.settings.pascal.category]

  def _count_objects(self, name: str) -> int:
    try:
      objects = read_annotation(self._annotation_path(name), name)
    except ValueError:
      return 1  # read_example meets the same error, and names the image
    return max(1, len(self._of_category(objects)))

  def _saliency(self, name: str, parts: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    if _takes_silhouettes(self.settings):
      return np.where(parts > 0, 255, 0).astype(np.uint8)
    return read_saliency(self._saliency_folder, f"{name}.jpg", parts.shape)


def _takes_silhouettes(config: ConfigDict) -> bool:
  return config.data.saliency == "collection" and not config.data.saliency_dir


def _masks(objects: Sequence[AnnotatedObject]) -> list[NDArray[np.bool_]]:
  return [mask for item in objects for mask in (item.mask, *(mask for _, mask in item.parts))]


def _box(mask: NDArray[np.bool_], name: str) -> NDArray[np.float32]:
  """First and last column and row of a silhouette, (x0, y0, x1, y1)."""
  rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
  if not rows.size:
    raise ValueError(f"{name}: the silhouette of an object is empty")
  return np.asarray((columns[0], rows[0], columns[-1], rows[-1]), np.float32)
