"""Files of computed saliency maps (data.saliency = "auto"), which a user may look at and edit.

A map is an 8-bit grey PNG of its image's size. Its PNG text holds a digest of the image and one of the map's
own pixels. A map is replaced only if its image has changed and its pixels have not: maps that were edited, or
that another program wrote, are kept.
"""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from scops_jax.data.image_files import SUFFIXES, open_image, resize_image
from scops_jax.errors import UserError
from scops_jax.storage.files import replacing

_IMAGE_KEY, _PIXELS_KEY = "scops_jax image", "scops_jax pixels"


def map_path(folder: Path, name: str) -> Path:
  """The path of an image's map: "a/b.jpg" → folder/a/b.png."""
  stem, dot, suffix = name.rpartition(".")
  return folder / f"{stem if dot + suffix.lower() in SUFFIXES else name}.png"


def image_digest(image: bytes) -> str:
  """A digest of an image's encoded bytes."""
  return hashlib.sha256(image).hexdigest()[:16]


def write_map(path: Path, saliency: NDArray[np.uint8], digest: str) -> None:
  """Writes a map.

  Args:
    path: of the map; an interruption leaves no partial file.
    saliency: [H, W], 0..255 for 0..1.
    digest: of the image that it was computed from.

  Raises:
    UserError: it can't be written.
  """
  text = PngImagePlugin.PngInfo()
  text.add_text(_IMAGE_KEY, digest)
  text.add_text(_PIXELS_KEY, _pixels_digest(saliency))
  try:
    with replacing(path) as temporary:
      Image.fromarray(saliency).save(temporary, "PNG", pnginfo=text)
  except OSError as error:
    raise UserError(f"a saliency map can't be written: {error}") from error


def is_current(path: Path, digest: str) -> bool:
  """Whether there is a map to keep: one of the image with this digest, or one that is not ours to replace."""
  if not path.is_file():
    return False
  with _open_map(path) as picture:
    text = picture.info
    if _IMAGE_KEY not in text or text[_IMAGE_KEY] == digest:
      return True
    return text.get(_PIXELS_KEY) != _pixels_digest(np.asarray(picture))


def read_map(path: Path, image: bytes) -> NDArray[np.uint8]:
  """Reads a map [H, W] and resizes it to its image's size.

  Args:
    path: of the map.
    image: the encoded image.

  Raises:
    UserError: the map is missing or can't be decoded.
  """
  if not path.is_file():
    raise UserError(f"there is no saliency map {path}: run scops_jax.prepare with the same config")
  with _open_map(path) as picture:
    grey = picture.convert("L")
  width, height = Image.open(io.BytesIO(image)).size
  return resize_image(grey, (height, width))


@contextmanager
def _open_map(path: Path) -> Iterator[Image.Image]:
  try:
    with open_image(path, str(path)) as picture:
      yield picture
  except ValueError as error:
    raise UserError(f"{error}: repair or delete this saliency map") from error


def _pixels_digest(pixels: NDArray[np.uint8]) -> str:
  return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:16]
