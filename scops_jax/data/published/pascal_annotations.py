"""Reads PASCAL-Part annotation files and merges their parts to a few for each category.

PASCAL-Part (Chen et al., "Detect What You Can", CVPR 2014) gives a MATLAB file for an image of VOC 2010: the
struct `anno` with `objects`, each with `class`, the silhouette `mask` and `parts`, each with `part_name` and
`mask`. The files are data: a function handle or object in the place of one of these is refused, and nothing
else of a file is looked at.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from scops_jax.data.published.files import read_bytes

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
# Of each category the merged parts, and the names of the annotated parts that they are made of, without the
# number of those that occur several times (wheel_2). Where parts overlap, the later one is in front.
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
_OTHER = 1  # the label of what belongs to the object but to none of its annotated parts


class AnnotatedObject(NamedTuple):
  """One object of an image."""

  category: str
  mask: NDArray[np.bool_]  # [H, W], its silhouette
  parts: tuple[tuple[str, NDArray[np.bool_]], ...]  # annotated name and mask [H, W]


def part_names(category: str) -> tuple[str, ...]:
  """The names of a category's labels: the background, what is in no annotated part, the merged parts."""
  return ("background", "other", *MERGED_PARTS[category])


def read_annotation(path: Path, name: str) -> tuple[AnnotatedObject, ...]:
  """The objects of an image, later ones in front of earlier ones.

  Args:
    path: of the .mat file.
    name: the image's.

  Raises:
    ValueError: it is missing, damaged or something else; the message begins with `name`.
  """
  content = read_bytes(path, name)
  try:
    variables = loadmat(io.BytesIO(content), variable_names=["anno"])
  # A damaged file makes SciPy's parser raise many kinds of errors: OSError, IndexError, MatReadError, …
  except Exception as error:
    raise ValueError(f"{name}: {path} can't be read as a MATLAB 5 file: {error}") from error
  try:
    annotations = _elements(variables.get("anno"), "anno", ("objects",))
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
  """Labels each pixel with the merged part of the category that is seen there.

  Args:
    objects: of one image, at least one.
    category: its objects' parts are labelled; other objects are background, also where they hide those.

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


def _elements(value: Any, what: str, fields: tuple[str, ...]) -> list[Any]:
  """The elements of a struct array, which MATLAB writes as an empty matrix if there are none."""
  # SciPy reads function handles and objects as subclasses of ndarray.
  if type(value) is np.ndarray:
    if value.size == 0:
      return []
    if set(fields) <= set(value.dtype.names or ()):
      return list(value.ravel())
  raise ValueError(f"expected a struct {what} with {', '.join(fields)}")


def _text(value: Any, what: str) -> str:
  if type(value) is not np.ndarray or value.dtype.kind != "U" or value.size != 1:
    raise ValueError(f"expected text as {what}")
  return str(value.item())


def _mask(value: Any, what: str) -> NDArray[np.bool_]:
  if type(value) is not np.ndarray or value.dtype.kind not in "bu" or value.ndim != 2:
    raise ValueError(f"expected a logical or uint8 matrix as {what}")
  return value != 0
