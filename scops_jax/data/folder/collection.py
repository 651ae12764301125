"""A folder of own images, with what there is of masks, landmarks and parts.

`data.dir` holds

  images/               JPEG, PNG or WebP files, in subfolders too; a name is a path below it: "a/b.jpg"
  saliency/STEM.png     (or data.saliency_dir) soft masks: white is the object; for a/b.jpg: a/b.png
  landmarks.csv         image,landmark,x,y,visible; in pixels of the upright image, an integer is a pixel's
                        centre, the origin top-left
  parts/STEM.png        index maps of ground-truth parts, 0 = background; for the evaluation only
  train.txt, test.txt   one name a line; where both are missing, see `folder_annotations.read_splits`

All but images/ may be missing.
"""

import functools
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray
from PIL import Image

from scops_jax.data.builder import CollectionBuilder, Example, decode_image, encode_png
from scops_jax.data.folder.annotations import Point
from scops_jax.data.folder.layout import folder_digest, read_layout
from scops_jax.data.folder.summary import Finding, summarize
from scops_jax.data.image_files import Picture, read_image
from scops_jax.data.published.files import read_bytes
from scops_jax.errors import UserError

_JPEG_QUALITY = 95
_PNG_SIGNATURE = b"\x89PNG"
_INDEX_MODES = ("1", "L", "P", "I;16", "I")


class ImageFolder(CollectionBuilder, skip_registration=True):  # type: ignore[call-arg]
  """One example for each image.

  Images are turned upright as their EXIF data say, and reduced so that the longer edge has at most
  `folder.max_edge` pixels; masks, parts and landmarks go with them, landmarks as real numbers. Files that
  need no change keep their bytes; the others are encoded anew, losslessly if they were PNG.

  Saliency: the masks' folder; without one the images' transparency; with data.saliency "ones" or "auto"
  neither is read. The object's box is that of its mask's pixels above one half. A landmark outside its image
  counts as hidden.

  The data set's name depends on the names, sizes and dates of all files: an edited folder is prepared anew.
  """

  def __init__(self, config: ConfigDict) -> None:
    """Opens the data set of the folder as it is now, prepared or not; raises UserError on a faulty layout."""
    self._layout = read_layout(config)
    self.landmark_names = self._layout.table.names
    if len(self.landmark_names) == 1 and config.data.landmark_normalizer == "inter_ocular":
      raise UserError(
        "data.landmark_normalizer=inter_ocular is the distance of the first two landmarks, and landmarks.csv "
        "has one: set data.landmark_normalizer=image"
      )
    self._findings: list[Finding] = []
    super().__init__(config)

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
    shape = _reduced_shape(height, width, self.settings.folder.max_edge)
    saliency = self._read_saliency(name, picture)
    parts = self._read_parts(name, (height, width), required=split == "test")
    landmarks, visible, outside = self._landmarks(name, (height, width), shape)
    if saliency is not None:
      saliency = _resize(saliency, shape, Image.Resampling.BOX)
    if parts is not None:
      parts = _resize(parts, shape, Image.Resampling.NEAREST)
    self._findings.append(
      Finding(
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
      box=None if saliency is None else _box(saliency),
    )

  def _read_saliency(self, name: str, picture: Picture) -> NDArray[np.uint8] | None:
    if self.settings.data.saliency != "collection":
      return None
    if self._layout.masks is None:
      if picture.alpha is None:
        raise ValueError(f"{name}: the image has no transparency to serve as its mask, others have")
      return picture.alpha
    path = self._layout.masks / f"{self._layout.stems[name]}.png"
    if not path.is_file():
      raise ValueError(f"{name}: there is no mask {path}")
    mask = read_image(path)
    # A cut-out says with its transparency what the object is.
    if mask.alpha is not None and mask.alpha.min() < 255:
      values = mask.alpha
    else:
      values = np.asarray(mask.image.convert("L"))
    shape = (picture.image.height, picture.image.width)
    return _resize(_of_aspect(values, shape, path), shape)

  def _read_parts(self, name: str, shape: tuple[int, int], *, required: bool) -> NDArray[np.uint8] | None:
    if self._layout.parts is None:
      return None
    path = self._layout.parts / f"{self._layout.stems[name]}.png"
    if not path.is_file():
      if required:
        raise ValueError(f"{name}: there is no map of its parts {path}, and a test image needs one")
      return None
    try:
      with Image.open(path) as picture:
        indices = np.asarray(picture)
        mode = picture.mode
    except (OSError, SyntaxError) as error:
      raise ValueError(f"{name}: the map of its parts {path} can't be decoded: {error}") from error
    if mode not in _INDEX_MODES or indices.max() > 255:
      raise ValueError(f"{name}: {path} should hold part indices 0..255 in one channel, its mode is {mode}")
    if indices.shape != shape:
      raise ValueError(f"{name}: {path} has {_pixels(indices.shape)}, the upright image {_pixels(shape)}")
    return indices.astype(np.uint8)

  def _landmarks(
    self, name: str, shape: tuple[int, int], reduced: tuple[int, int]
  ) -> tuple[NDArray[np.float32], NDArray[np.bool_], int]:
    """Returns places in the reduced image [L, 2], visibility [L], and how many lie outside the image."""
    size, reduced_size = np.asarray(shape[::-1], float), np.asarray(reduced[::-1], float)
    points: dict[str, Point] = self._layout.table.points.get(name, {})
    landmarks = np.zeros((len(self.landmark_names), 2))
    visible = np.zeros(len(self.landmark_names), np.bool_)
    for row, landmark in enumerate(self.landmark_names):
      if landmark in points:
        # Reducing maps areas: the outer edges of the first and last pixels stay where they are.
        place = np.asarray(points[landmark][:2]) + 0.5
        visible[row] = ((place >= 0) & (place <= size)).all()
        landmarks[row] = np.where(visible[row], place * reduced_size / size - 0.5, 0)
    return landmarks.astype(np.float32), visible, len(points) - int(visible.sum())

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    yield from super()._generate_examples(split)
    found = [finding for finding in self._findings if finding.split == split]
    if self.landmark_names:
      seen = np.any([finding.visible for finding in found], axis=0)
      # The regression needs every landmark, the error any.
      unseen = [name for name, ok in zip(self.landmark_names, seen, strict=True) if not ok]
      if unseen and (split == "train" or not seen.any()):
        raise UserError(
          f"{self._root / 'landmarks.csv'}: no {split} image shows the landmark {unseen[0]!r}: "
          "remove its rows, annotate more images, or choose other splits"
        )

  @functools.cached_property
  def _root(self) -> Path:
    return Path(self.settings.data.dir)

  def _record_metadata(self) -> None:
    indices = [max(finding.part_indices) for finding in self._findings if finding.part_indices]
    if indices:
      self.part_names = ("background", *(f"part {index}" for index in range(1, max(indices) + 1)))
    super()._record_metadata()
    self.info.metadata.update(
      part_names=list(self.part_names),
      summary=summarize(self._findings, landmark_names=self.landmark_names, part_names=self.part_names),
    )


def _reduced_shape(height: int, width: int, max_edge: int) -> tuple[int, int]:
  scale = min(1.0, max_edge / max(height, width))
  return max(2, round(height * scale)), max(2, round(width * scale))


def _resize(
  pixels: NDArray[np.uint8], shape: tuple[int, int], filter_: Image.Resampling = Image.Resampling.BILINEAR
) -> NDArray[np.uint8]:
  if pixels.shape[:2] == shape:
    return pixels
  return np.asarray(Image.fromarray(pixels).resize(shape[::-1], filter_))


def _encode(pixels: NDArray[np.uint8], shape: tuple[int, int], *, original: bytes) -> bytes:
  """Returns the file's own bytes if they decode to what is wanted, else encodes the pixels in this shape."""
  is_png = original.startswith(_PNG_SIGNATURE)
  is_known = is_png or original.startswith(b"\xff\xd8")  # JPEG; tfds keeps no WebP
  if is_known and pixels.shape[:2] == shape:
    decoded = decode_image(original, "")
    if np.array_equal(decoded, pixels):
      return original
  pixels = _resize(pixels, shape, Image.Resampling.LANCZOS)
  if is_png:
    return encode_png(pixels)
  stream = io.BytesIO()
  Image.fromarray(pixels).save(stream, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
  return stream.getvalue()


def _of_aspect(mask: NDArray[np.uint8], shape: tuple[int, int], path: Path) -> NDArray[np.uint8]:
  """Returns the mask, which may have another size than the image but must cover the same: within a pixel."""
  height, width = shape
  scale = max(mask.shape) / max(shape)
  if np.abs(np.asarray(mask.shape) - scale * np.asarray([height, width])).max() > 1:
    raise ValueError(f"the mask {path} has {_pixels(mask.shape)}, the upright image {_pixels(shape)}")
  return mask


def _pixels(shape: tuple[int, ...]) -> str:
  return f"{shape[1]} × {shape[0]} pixels"


def _box(saliency: NDArray[np.uint8]) -> NDArray[np.float32] | None:
  """First and last column and row of the mask's pixels above one half; None if there are none."""
  rows, columns = (np.flatnonzero((saliency >= 128).any(axis=axis)) for axis in (1, 0))
  if not rows.size:
    return None
  return np.asarray((columns[0], rows[0], columns[-1], rows[-1]), np.float32)
