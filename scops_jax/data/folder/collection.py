"""A folder of own images, with masks, landmarks and parts if there are any.

`data.dir` holds

  images/               pictures, in subfolders too (image_files has the formats); a name is a path below it:
                        "a/b.jpg". Without images/ the pictures lie in data.dir itself
  saliency/STEM.png     (or data.saliency_dir) soft masks: white is the object; for a/b.jpg: a/b.png
  landmarks.csv         image,landmark,x,y,visible; in pixels of the upright image, an integer is a pixel's
                        centre, the origin top-left
  parts/STEM.png        index maps of ground-truth parts, 0 = background; for the evaluation only
  train.txt, test.txt   a name on each line; if one or both are missing, see `layout.read_splits`

Only the pictures are required.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray
from PIL import Image

from scops_jax.data.builder import EMPTY, CollectionBuilder, Example
from scops_jax.data.folder.layout import folder_digest, map_name, read_layout
from scops_jax.data.image_files import (
  SUFFIXES,
  Picture,
  decode_image,
  encode_png,
  open_image,
  read_image,
  resize_pixels,
)
from scops_jax.data.source_files import mask_box, read_bytes
from scops_jax.errors import UserError, printable

_JPEG_QUALITY = 95
_PNG_SIGNATURE = b"\x89PNG"
_INDEX_MODES = ("1", "L", "P", "I;16", "I")
_FEW_IMAGES = 200  # with fewer training images parts are seldom consistent
_FULL = 0.95  # share of an image; a mask that covers more is of no use


class _Finding(NamedTuple):
  """What was found about one image."""

  split: str
  height: int  # of the file, upright
  width: int
  reduced: bool
  foreground: float | None  # mean of the mask, 0..1; None: no mask
  part_indices: tuple[int, ...] | None  # in its index map; None: no map
  visible: tuple[bool, ...]  # of each landmark
  outside: int  # landmarks that count as hidden because they lie outside the image


class ImageFolder(CollectionBuilder, skip_registration=True):  # type: ignore[call-arg]
  """One example for each image.

  Images are turned upright (EXIF) and reduced so that the longer edge has at most `folder.max_edge` pixels;
  masks, parts and landmarks are scaled with them, and landmarks keep their fractions. Files that need no
  change keep their bytes; the others are encoded again, without loss if they were PNG.

  Saliency comes from the folder of masks, or from the images' transparency if there is no such folder. With
  data.saliency "ones" or "auto" neither is read. The object's box encloses the mask's pixels above one half.
  A landmark outside its image counts as hidden.

  The data set's name depends on the names, sizes and dates of all files: edited folders are prepared again.
  """

  def __init__(self, config: ConfigDict, *, variant: str | None = None) -> None:
    """Opens the data set of the folder as it is now, prepared or not; raises as `read_layout` does."""
    self._layout = read_layout(config)
    self.landmark_names = self._layout.table.names
    if len(self.landmark_names) == 1 and config.data.landmark_normalizer == "inter_ocular":
      raise UserError(
        "data.landmark_normalizer=inter_ocular is the distance of the first two landmarks, and landmarks.csv "
        "has one: set data.landmark_normalizer=image"
      )
    self._findings: list[_Finding] = []
    super().__init__(config, variant=variant)

  @classmethod
  def variant(cls, config: ConfigDict) -> str:
    name = re.sub(r"[^A-Za-z0-9]+", "_", Path(config.data.dir).resolve().name)
    return f"{name}-{folder_digest(config)}"

  def list_records(self, split: str) -> Sequence[tuple[str, str]]:
    return [(split, name) for name in self._layout.splits[split]]

  def read_example(self, record: tuple[str, str]) -> Example:
    split, name = record
    path = self._layout.images[name]
    picture = read_image(path)
    width, height = picture.image.size
    if min(height, width) < 2:
      raise ValueError(f"{name}: the image has {_pixels((height, width))}, expected at least 2 × 2")
    shape = _reduced_shape(height, width, self.settings.folder.max_edge)
    saliency = self._read_saliency(name, picture)
    parts = self._read_parts(name, (height, width), required=split == "test")
    landmarks, visible, outside = self._landmarks(name, (height, width), shape)
    if saliency is not None:
      saliency = resize_pixels(saliency, shape, Image.Resampling.BOX)
    if parts is not None:
      parts = resize_pixels(parts, shape, Image.Resampling.NEAREST)
    self._findings.append(
      _Finding(
        split=split,
        height=height,
        width=width,
        reduced=shape != (height, width),
        foreground=None if saliency is None else float(saliency.mean() / 255),
        part_indices=None if parts is None else tuple(np.unique(parts).tolist()),
        visible=tuple(visible.tolist()),
        outside=outside,
      )
    )
    return Example(
      name=name,
      image=_encode(picture.pixels, shape, original=read_bytes(path, name)),
      landmarks=landmarks,
      visible=visible,
      saliency=saliency,
      parts=parts,
      box=None if saliency is None else mask_box(saliency >= 128),
    )

  def _read_saliency(self, name: str, picture: Picture) -> NDArray[np.uint8] | None:
    if self.settings.data.saliency != "collection":
      return None
    if self._layout.masks is None:
      if picture.alpha is None:
        raise ValueError(f"{name}: the image has no transparency to serve as its mask, others have")
      return picture.alpha
    path = self._layout.masks / map_name(name)
    if not path.is_file():
      raise ValueError(f"{name}: there is no mask {path}")
    mask = read_image(path)
    values = np.asarray(mask.image.convert("L"))
    if mask.alpha is not None and mask.alpha.min() < 255:
      values = mask.alpha  # of a cut-out
    shape = (picture.image.height, picture.image.width)
    # A mask may have another size than the image, but the same aspect: within a pixel.
    scale = max(values.shape) / max(shape)
    if np.abs(np.asarray(values.shape) - scale * np.asarray(shape)).max() > 1:
      raise ValueError(f"the mask {path} has {_pixels(values.shape)}, the upright image {_pixels(shape)}")
    return resize_pixels(values, shape)

  def _read_parts(self, name: str, shape: tuple[int, int], *, required: bool) -> NDArray[np.uint8] | None:
    if self._layout.parts is None:
      return None
    path = self._layout.parts / map_name(name)
    if not path.is_file():
      if required:
        raise ValueError(f"{name}: there is no map of its parts {path}, and a test image needs one")
      return None
    with open_image(path, f"{name}: the map of its parts {path}") as picture:
      indices, mode = np.asarray(picture), picture.mode
    if mode not in _INDEX_MODES or indices.max() > 255:
      raise ValueError(f"{name}: {path} should hold part indices 0..255 in one channel, its mode is {mode}")
    if indices.shape != shape:
      raise ValueError(f"{name}: {path} has {_pixels(indices.shape)}, the upright image {_pixels(shape)}")
    return indices.astype(np.uint8)

  def _landmarks(
    self, name: str, shape: tuple[int, int], reduced: tuple[int, int]
  ) -> tuple[NDArray[np.float32], NDArray[np.bool_], int]:
    """Returns (x, y) in the reduced image [L, 2], visibility [L], and how many lie outside the image."""
    size, reduced_size = np.asarray(shape[::-1], float), np.asarray(reduced[::-1], float)
    points = self._layout.table.points.get(name, {})
    landmarks = np.zeros((len(self.landmark_names), 2))
    visible = np.zeros(len(self.landmark_names), np.bool_)
    for row, landmark in enumerate(self.landmark_names):
      if landmark in points:
        # Reducing keeps the outer edges of the first and last pixels, not their centres.
        place = np.asarray(points[landmark]) + 0.5
        visible[row] = ((place >= 0) & (place <= size)).all()
        landmarks[row] = np.where(visible[row], place * reduced_size / size - 0.5, 0)
    return landmarks.astype(np.float32), visible, len(points) - int(visible.sum())

  def _check_landmarks(self, split: str, shown: NDArray[np.bool_]) -> None:
    # The regression needs every landmark in a training image, its error any landmark in a test image.
    if not shown.all() and (split == "train" or not shown.any()):
      outside = sum(finding.outside for finding in self._findings if finding.split == split)
      hint = f" ({outside} landmarks lie outside their image: coordinates are in pixels)" if outside else ""
      raise UserError(
        f"{Path(self.settings.data.dir) / 'landmarks.csv'}: no {split} image shows the landmark "
        f"{self.landmark_names[int(np.argmin(shown))]!r}{hint}: remove its rows, annotate more images, or "
        "choose other splits"
      )

  def _record_metadata(self) -> None:
    indices = [max(finding.part_indices) for finding in self._findings if finding.part_indices]
    if indices:
      self.part_names = ("background", *(f"part {index}" for index in range(1, max(indices) + 1)))
    super()._record_metadata()
    self.info.metadata.update(
      part_names=list(self.part_names),
      summary=[
        *_summarize(self._findings, landmark_names=self.landmark_names, part_names=self.part_names),
        *_describe_others(self._layout.others),
      ],
    )


def _reduced_shape(height: int, width: int, max_edge: int) -> tuple[int, int]:
  scale = min(1.0, max_edge / max(height, width))
  return max(2, round(height * scale)), max(2, round(width * scale))


def _encode(pixels: NDArray[np.uint8], shape: tuple[int, int], *, original: bytes) -> bytes:
  """Returns the file's bytes if they decode to these pixels in this shape, else encodes them."""
  is_png = original.startswith(_PNG_SIGNATURE)
  is_jpeg = original.startswith(b"\xff\xd8")
  # tfds stores no WebP.
  if (is_png or is_jpeg) and pixels.shape[:2] == shape and np.array_equal(decode_image(original, ""), pixels):
    return original
  pixels = resize_pixels(pixels, shape, Image.Resampling.LANCZOS)
  if is_png:
    return encode_png(pixels)
  stream = io.BytesIO()
  Image.fromarray(pixels).save(stream, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
  return stream.getvalue()


def _pixels(shape: tuple[int, ...]) -> str:
  return f"{shape[1]} × {shape[0]} pixels"


def _summarize(
  findings: Sequence[_Finding], *, landmark_names: Sequence[str], part_names: Sequence[str]
) -> list[str]:
  """Returns lines about images, masks, landmarks and parts; problems start with "warning"."""
  train = [finding for finding in findings if finding.split == "train"]
  test = [finding for finding in findings if finding.split == "test"]
  lines = [f"images: {len(train)} to train on, {len(test)} to test on; {_describe_sizes(findings)}"]
  if len(train) < _FEW_IMAGES:
    lines.append(
      f"warning: {len(train)} training images are few; with {_FEW_IMAGES} or more, parts mean the same in "
      "every image more reliably"
    )
  lines += _describe_masks(findings)
  lines += _describe_landmarks(train, test, landmark_names)
  if part_names:
    count = sum(finding.part_indices is not None for finding in findings)
    lines.append(f"ground-truth parts: {len(part_names) - 1}, in {count} images; used by the evaluation only")
  else:
    lines.append("ground-truth parts: none")
  return lines


def _describe_others(others: Sequence[str]) -> list[str]:
  if not others:
    return []
  names = ", ".join(printable(name, 100) for name in others[:3]) + (", …" if len(others) > 3 else "")
  read = ", ".join(SUFFIXES)
  return [f"warning: {len(others)} files among the images are left out, only {read} are read: {names}"]


def _describe_sizes(findings: Sequence[_Finding]) -> str:
  def text(finding: _Finding) -> str:
    return f"{finding.width} × {finding.height}"

  ordered = sorted(findings, key=lambda finding: finding.width * finding.height)
  smallest, largest = text(ordered[0]), text(ordered[-1])
  words = f"all {smallest}" if smallest == largest else f"from {smallest} to {largest} pixels"
  reduced = sum(finding.reduced for finding in findings)
  return words + (f", {reduced} of them kept smaller (folder.max_edge)" if reduced else "")


def _describe_masks(findings: Sequence[_Finding]) -> list[str]:
  shares = np.asarray([finding.foreground for finding in findings if finding.foreground is not None])
  if not shares.size:
    return ["masks: none"]
  lines = [f"masks: {len(shares)}, the object covers {np.median(shares):.0%} of an image (median)"]
  for what, count in (("empty", (shares < EMPTY).sum()), ("nearly full", (shares > _FULL).sum())):
    if count:
      lines.append(f"warning: {count} masks are {what}; white is the object, black the background")
  return lines


def _describe_landmarks(
  train: Sequence[_Finding], test: Sequence[_Finding], names: Sequence[str]
) -> list[str]:
  if not names:
    return ["landmarks: none, so no landmark error"]
  lines = [f"landmarks: {len(names)}; visible in (training, test) images:"]
  for index, name in enumerate(names):
    counts = (sum(finding.visible[index] for finding in split) for split in (train, test))
    lines.append(f"  {printable(name)}: " + ", ".join(map(str, counts)))
  outside = sum(finding.outside for finding in (*train, *test))
  if outside:
    lines.append(f"warning: {outside} landmarks lie outside their image and count as hidden")
  return lines
