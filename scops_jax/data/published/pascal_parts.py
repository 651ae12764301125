"""Objects of one category of PASCAL VOC 2010, with the parts of PASCAL-Part as ground truth.

`data.dir` holds

  VOCdevkit/VOC2010/JPEGImages/NAME.jpg
  VOCdevkit/VOC2010/ImageSets/Main/CATEGORY_train.txt   NAME 1 (shows it), 0 or -1; the training images
  VOCdevkit/VOC2010/ImageSets/Main/CATEGORY_val.txt     the same for the test images
  Annotations_Part/NAME.mat                             PASCAL-Part

PASCAL-Part (Chen et al., "Detect What You Can", CVPR 2014) has a MATLAB file for each image: the struct
`anno` with `objects`, each with `class`, the silhouette `mask` and `parts`, each with `part_name` and `mask`.
Nothing else in a file is used, and a function handle or an object in the place of one of these is refused.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray

from scops_jax.data import source_files as files
from scops_jax.data.builder import Example, FilteredError
from scops_jax.data.image_files import encode_png
from scops_jax.data.published.base import PublishedCollection
from scops_jax.data.published.matlab import read_variable

_LISTS = {"train": "train", "test": "val"}
_MIN_BOX = 0.2  # of the image's area

_LEGS = tuple(f"{side}{end}{half}" for side in "lr" for end in "fb" for half in ("uleg", "lleg", "ho"))
_ANIMAL = {
  "torso": ("torso",),
  "neck": ("neck",),
  "legs": _LEGS,
  "tail": ("tail",),
  "head": ("head", "leye", "reye", "lear", "rear", "lhorn", "rhorn", "muzzle"),
}
_ROAD_VEHICLE = {
  "side": ("leftside", "rightside", "door", "leftmirror", "rightmirror"),
  "roof": ("roofside",),
  "back": ("backside", "bliplate"),
  "front": ("frontside", "fliplate", "headlight"),
  "windows": ("window",),
  "wheels": ("wheel",),
}
# The merged parts of each category, and the annotated parts that form them, without the number that some have
# (wheel_2). Where parts overlap, the later one is in front.
MERGED_PARTS: dict[str, dict[str, tuple[str, ...]]] = {
  "aeroplane": {
    "body": ("body",),
    "tail": ("stern", "tail"),
    "wings": ("lwing", "rwing"),
    "engines": ("engine",),
    "wheels": ("wheel",),
  },
  "bus": _ROAD_VEHICLE,
  "car": _ROAD_VEHICLE,
  "cow": _ANIMAL,
  "horse": _ANIMAL,
  "motorbike": {
    "saddle": ("saddle",),
    "handlebar": ("handlebar",),
    "headlight": ("headlight",),
    "wheels": ("fwheel", "bwheel"),
  },
  "sheep": _ANIMAL,
}
_OTHER = 1  # the label of an object's pixels that are in none of its annotated parts


class AnnotatedObject(NamedTuple):
  """One object of an image."""

  category: str
  mask: NDArray[np.bool_]  # [H, W], its silhouette
  parts: tuple[tuple[str, NDArray[np.bool_]], ...]  # annotated name and mask [H, W]


class PascalParts(PublishedCollection, skip_registration=True):  # type: ignore[call-arg]
  """One example for each object of `pascal.category` whose box covers at least 20 % of the image.

  The box is that of the object's silhouette. Images are cut to squares with a margin around it, see
  `square_around`, and kept as PNG, so that nothing is compressed twice. Other objects of the category in the
  square count as foreground and their parts as parts, since nothing tells the network which object is meant;
  objects of other categories are background.

  Saliency maps of whole images are read from `data.saliency_dir`. Without such a folder the category's
  silhouettes serve: supervision that the paper does not use here, so the data set's name says so.

  The merged parts (MERGED_PARTS) are for the evaluation only. There are no landmarks.
  """

  def __init__(self, config: ConfigDict, *, variant: str | None = None) -> None:
    """Opens the data set of config.pascal.category, prepared or not."""
    self.part_names = part_names(config.pascal.category)
    super().__init__(config, variant=variant)

  @classmethod
  def label(cls, config: ConfigDict) -> str:
    return config.pascal.category + ("-silhouettes" if _takes_silhouettes(config) else "")

  @classmethod
  def sources(cls, config: ConfigDict) -> list[str]:
    return ["VOCdevkit/VOC2010/JPEGImages", "Annotations_Part", *(_list(config, split) for split in _LISTS)]

  def open_source(self) -> None:
    self._saliency_folder = None
    if not _takes_silhouettes(self.settings):
      super().open_source()
    self._root = Path(self.settings.data.dir)

  def list_records(self, split: str) -> Sequence[tuple[str, int]]:
    """Image names, each with the numbers of the category's objects in the image."""
    # 0: it shows only objects that are marked as difficult; -1: none.
    names = [
      line.key
      for line in files.read_lines(self._root / _list(self.settings, split))
      if line.numbers(1)[0] == 1
    ]
    return [(name, number) for name in names for number in range(self._count_objects(name))]

  def read_example(self, record: tuple[str, int]) -> Example:
    name, number = record
    objects = read_annotation(self._root / "Annotations_Part" / f"{name}.mat", name)
    found = [item for item in objects if item.category == self.settings.pascal.category]
    if not found:
      raise FilteredError("no object of the category is annotated")
    pixels = files.read_picture(self._root / "VOCdevkit/VOC2010/JPEGImages" / f"{name}.jpg", name)
    height, width = pixels.shape[:2]
    masks = [mask for item in objects for mask in (item.mask, *(mask for _, mask in item.parts))]
    if any(mask.shape != (height, width) for mask in masks):
      raise ValueError(f"{name}: a mask of its annotation is not of the image's size, {height} × {width}")
    box = files.mask_box(found[number].mask)
    if box is None:
      raise ValueError(f"{name}: the silhouette of an object is empty")
    if np.prod(box[2:] - box[:2] + 1) < _MIN_BOX * height * width:
      raise FilteredError("the object's box covers less than 20 % of the image")
    try:
      parts = part_labels(objects, self.settings.pascal.category)
    except ValueError as error:
      raise ValueError(f"{name}: {error}") from error
    saliency = files.read_saliency(self._saliency_folder, f"{name}.jpg", parts.shape)
    if _takes_silhouettes(self.settings):
      saliency = np.where(parts > 0, 255, 0).astype(np.uint8)
    square = files.square_around(box, height, width)
    return Example(
      name=f"{name}/{number + 1}",
      image=encode_png(pixels[square]),
      landmarks=np.zeros((0, 2), np.float32),
      visible=np.zeros(0, np.bool_),
      saliency=None if saliency is None else saliency[square],
      parts=parts[square],
      box=box - np.tile(np.asarray((square[1].start, square[0].start), np.float32), 2),
    )

  def _count_objects(self, name: str) -> int:
    try:
      objects = read_annotation(self._root / "Annotations_Part" / f"{name}.mat", name)
    except ValueError:
      return 1  # read_example gets the same error and reports it
    return max(1, sum(item.category == self.settings.pascal.category for item in objects))


def _list(config: ConfigDict, split: str) -> str:
  return f"VOCdevkit/VOC2010/ImageSets/Main/{config.pascal.category}_{_LISTS[split]}.txt"


def _takes_silhouettes(config: ConfigDict) -> bool:
  return config.data.saliency == "collection" and not config.data.saliency_dir


def part_names(category: str) -> tuple[str, ...]:
  """The names of a category's labels: the background, pixels in no annotated part, the merged parts."""
  return ("background", "other", *MERGED_PARTS[category])


def read_annotation(path: Path, name: str) -> tuple[AnnotatedObject, ...]:
  """The objects of an image; later ones are in front of earlier ones.

  Args:
    path: the .mat file.
    name: the image's name.

  Raises:
    ValueError: the file is missing, damaged or not an annotation; the message begins with `name`.
  """
  content = files.read_bytes(path, name)
  try:
    annotation = read_variable(content, "anno")
  except ValueError as error:
    raise ValueError(f"{name}: {path} can't be read as a MATLAB 5 file: {error}") from error
  try:
    annotations = _elements(annotation, "anno", ("objects",))
    if len(annotations) != 1:
      raise ValueError(f"expected one struct anno, got {len(annotations)}")
    return tuple(
      AnnotatedObject(
        category=_text(item["class"], "class"), mask=_mask(item["mask"], "mask"), parts=_parts(item["parts"])
      )
      for item in _elements(annotations[0]["objects"], "objects", ("class", "mask", "parts"))
    )
  except ValueError as error:
    raise ValueError(f"{name}: {path} is no annotation of PASCAL-Part: {error}") from error


def part_labels(objects: Sequence[AnnotatedObject], category: str) -> NDArray[np.uint8]:
  """Labels each pixel with the merged part of the category that is visible there.

  Args:
    objects: the objects of an image, at least one.
    category: objects of other categories are background, also where they hide one of this category.

  Returns:
    [H, W], an index into `part_names(category)`.

  Raises:
    ValueError: an annotated part is not one of the category's.
  """
  merged = MERGED_PARTS[category].values()
  label_of = {part: label for label, parts in enumerate(merged, _OTHER + 1) for part in parts}
  labels = np.zeros(objects[0].mask.shape, np.uint8)
  for item in objects:
    labels[item.mask] = _OTHER if item.category == category else 0
    if item.category != category:
      continue
    labelled = []
    for part, mask in item.parts:
      stem = re.sub(r"_\d+$", "", part)
      if stem not in label_of:
        raise ValueError(f"{part!r} is not a part of a {category}")
      labelled.append((label_of[stem], mask))
    for label, mask in sorted(labelled, key=lambda pair: pair[0]):
      labels[mask & item.mask] = label
  return labels


def _parts(value: Any) -> tuple[tuple[str, NDArray[np.bool_]], ...]:
  return tuple(
    (_text(part["part_name"], "part_name"), _mask(part["mask"], "mask of a part"))
    for part in _elements(value, "parts", ("part_name", "mask"))
  )


def _elements(value: Any, what: str, fields: tuple[str, ...]) -> list[dict[str, Any]]:
  """The elements of a struct array."""
  if not isinstance(value, list) or any(not set(fields) <= item.keys() for item in value):
    raise ValueError(f"expected a struct {what} with {', '.join(fields)}")
  return value


def _text(value: Any, what: str) -> str:
  if not isinstance(value, str):
    raise ValueError(f"expected text as {what}")
  return value


def _mask(value: Any, what: str) -> NDArray[np.bool_]:
  if not isinstance(value, np.ndarray) or value.ndim != 2:
    raise ValueError(f"expected a logical or uint8 matrix as {what}")
  return value != 0
