"""Files of computed saliency maps (data.saliency = "auto"), which a user may look at and edit.

A map is an 8-bit grey PNG of its image's size, at the image's name without suffix. It carries, as PNG text, a
digest of the image and one of its own pixels: it is current while its image is the same, and one whose pixels
were edited, or that this program did not write, is never replaced.
"""

import hashlib
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from scops_jax.data.image_files import SUFFIXES
from scops_jax.errors import UserError
from scops_jax.storage.files import replacing

_IMAGE_KEY, _PIXELS_KEY = "scops_jax image", "scops_jax pixels"


def map_path(folder: Path, name: str) -> Path:
  """Where the map of an image lies: "a/b.jpg" → folder/a/b.png."""
  stem, dot, suffix = name.rpartition(".")
  return folder / f"{stem if dot + suffix.lower() in SUFFIXES else name}.png"


def image_digest(image: bytes) -> str:
  """Of an image's encoded bytes."""
  return hashlib.sha256(image).hexdigest()[:16]


def write_map(path: Path, saliency: NDArray[np.uint8], digest: str) -> None:
  """Writes a map [H, W], whole or not at all.

  Args:
    path: of the map.
    saliency: 0..255 for 0..1.
    digest: of the image it was computed from.
  """
  text = PngImagePlugin.PngInfo()
  text.add_text(_IMAGE_KEY, digest)
  text.add_text(_PIXELS_KEY, _pixels_digest(saliency))
  with replacing(path) as temporary:
    Image.fromarray(saliency).save(temporary, "PNG", pnginfo=text)


def is_current(path: Path, digest: str) -> bool:
  """Whether there is a map that must stay: of the image with this digest, or edited, or not written here."""
  if not path.is_file():
    return False
  try:
    with Image.open(path) as picture:
      text = dict(picture.info)
      if _IMAGE_KEY not in text or text[_IMAGE_KEY] == digest:
        return True
      return text.get(_PIXELS_KEY) != _pixels_digest(np.asarray(picture))
  except (OSError, SyntaxError) as error:
    raise UserError(f"{path} can't be read as a saliency map: mend or delete it ({error})") from error


def read_map(path: Path, image: bytes) -> NDArray[np.uint8]:
  """Reads a map [H, W], brought to the size of its image.

  Args:
    path: of the map.
    image: the encoded image.

  Raises:
    UserError: it is missing or can't be decoded.
  """
  try:
    with Image.open(path) as picture:
      grey = picture.convert("L")
  except FileNotFoundError as error:
    raise UserError(f"there is no saliency map {path}: run scops_jax.prepare with the same config") from error
  except (OSError, SyntaxError) as error:
    raise UserError(f"{path} can't be read as a saliency map: mend or delete it ({error})") from error
  size = Image.open(io.BytesIO(image)).size
  return np.asarray(grey if grey.size == size else grey.resize(size, Image.Resampling.BILINEAR))


def _pixels_digest(pixels: NDArray[np.uint8]) -> str:
  return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:16]
