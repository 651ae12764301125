"""Finds image files by folder or glob, and reads them in any pixel format.

JPEG, PNG, WebP, TIFF, BMP and GIF; the content decides which of them a file is, not its name.
"""

import contextlib
import glob
import io
import pathlib
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from scops_jax.errors import UserError, printable

# Of image files in folders, in lower or upper case.
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

_VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")

MAX_PIXELS = 10**8  # of an image; decoding one takes up to a gigabyte of memory

_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
_UNREAD = (".avif", ".heic", ".heif", ".jp2", ".jxl")  # suffixes of other formats
_BRANDS = (b"heic", b"heix", b"heif", b"mif1", b"avif")  # of HEIC and AVIF, the formats of phones


class Picture(NamedTuple):
  """A decoded image."""

  image: Image.Image  # RGB; transparent pixels are blended with white, as in a viewer
  alpha: NDArray[np.uint8] | None  # [H, W], 255 = opaque; None if the file has no transparency

  @property
  def pixels(self) -> NDArray[np.uint8]:
    """The image as `[H, W, 3]`."""
    return np.asarray(self.image)


def read_image(path: str | pathlib.Path) -> Picture:
  """Reads an image file as 8-bit RGB, upright.

  Greyscale, palette, CMYK and 16-bit files are converted (16 bits are scaled, not clipped), every kind of
  transparency becomes `alpha`, and the EXIF orientation is applied. Only the first frame of an animation and
  the first page of a TIFF are read. Colour profiles are ignored.

  Args:
    path: a file of one of these formats; its suffix does not matter.

  Returns:
    The image; its arrays are read-only.

  Raises:
    UserError: the file is missing, not in one of these formats, damaged or truncated.
  """
  try:
    with open_image(path, str(path)) as picture:
      picture.load()
      return decode_picture(picture)
  except ValueError as error:
    raise UserError(f"{error}: repair or remove the file") from error


def _is_endless(path: pathlib.Path) -> bool:
  """Returns whether this is a pipe or a device, which would be read without end."""
  return path.exists() and not path.is_file() and not path.is_dir()


@contextlib.contextmanager
def open_image(file: pathlib.Path | str | bytes, what: str) -> Iterator[Image.Image]:
  """Opens an image file by its path or content; Pillow decodes the pixels when they are used.

  Args:
    file: of one of these formats.
    what: the subject of the errors' messages.

  Raises:
    ValueError: the file is missing, not in one of these formats, larger than MAX_PIXELS, or damaged, also if
      that shows only while the caller decodes it.
  """
  try:
    with warnings.catch_warnings():
      # Pillow warns about fewer pixels than it refuses.
      warnings.simplefilter("ignore", Image.DecompressionBombWarning)
      if not isinstance(file, bytes) and _is_endless(pathlib.Path(file)):
        raise ValueError("it is not a file")
      opened = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=_FORMATS)
    with opened as picture:
      if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(f"{picture.width} × {picture.height} pixels are over {MAX_PIXELS // 10**6} million")
      yield picture
  except UnidentifiedImageError as error:
    with contextlib.suppress(OSError):
      if _is_phone_format(file):
        raise ValueError(f"{what} is a HEIC or AVIF image, which is not read: convert it to JPEG") from error
    raise ValueError(f"{what} is not a JPEG, PNG, WebP, TIFF, BMP or GIF image that can be read") from error
  # Pillow raises many kinds of errors for damaged files: SyntaxError, zlib.error, struct.error, …
  except Exception as error:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    raise ValueError(f"{what} can't be decoded: {reason}") from error


def _is_phone_format(file: pathlib.Path | str | bytes) -> bool:
  if not isinstance(file, bytes):
    with open(file, "rb") as opened:
      file = opened.read(12)
  return file[4:8] == b"ftyp" and file[8:12] in _BRANDS


def decode_image(image: pathlib.Path | bytes, what: str, *, mode: str = "RGB") -> NDArray[np.uint8]:
  """An image file's pixels, [H, W, 3] of mode "RGB" and [H, W] of mode "L"; raises as `open_image` does."""
  with open_image(image, what) as picture:
    return np.asarray(picture.convert(mode))


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
  """An [H, W] or [H, W, 3] array as a PNG file's bytes."""
  stream = io.BytesIO()
  Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
  return stream.getvalue()


def find_images(where: str | pathlib.Path, *, outside: pathlib.Path | None = None) -> dict[str, pathlib.Path]:
  """Finds image files by name; they are not opened.

  Args:
    where: a file; a folder, whose files and subfolders are searched for SUFFIXES, except hidden ones; or a
      glob ("photos/**/*.jpg"), which may match files with any suffix. A path that exists is not a glob.
    outside: a folder whose files are left out.

  Returns:
    Paths by name, sorted by name. A name is the path relative to the folder, or to the folders in front of
    the glob's first wildcard, with slashes.

  Raises:
    UserError: no image is found.
  """
  path = pathlib.Path(where)
  base = path
  if path.is_file():
    return {path.name: path}
  if path.is_dir():
    found = [file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES]
    found = [file for file in found if not any(p.startswith(".") for p in file.relative_to(path).parts)]
  else:
    found = [pathlib.Path(file) for file in glob.glob(str(where), recursive=True)]
    while glob.has_magic(str(base)):
      base = base.parent
  excluded = outside.resolve() if outside is not None else None
  images = {
    file.relative_to(base).as_posix(): file
    for file in found
    # A link to nothing is no folder either: it is found, and reported when it is read.
    if not file.is_dir() and (excluded is None or excluded not in (file.parent.resolve() / "-").parents)
  }
  if not images:
    others = sorted({file.suffix.lower() for file in path.rglob("*.*") if file.is_file()})
    there = f" (there are {', '.join(map(printable, others[:5]))} files)" if others else ""
    raise UserError(
      f"no image is found at {where}{there}: give an image file, a folder of {', '.join(SUFFIXES)} files, or "
      "a glob"
    )
  return dict(sorted(images.items()))


def is_video(where: str | pathlib.Path) -> bool:
  """Returns whether this is a file with a video's suffix."""
  path = pathlib.Path(where)
  return path.suffix.lower() in _VIDEOS and path.is_file()


def unread_images(where: str | pathlib.Path) -> list[str]:
  """Returns the names of a folder's image files of other formats, which `find_images` leaves out, sorted."""
  path = pathlib.Path(where)
  if not path.is_dir():
    return []
  return sorted(
    file.relative_to(path).as_posix() for file in path.rglob("*") if file.suffix.lower() in _UNREAD
  )


def resize_pixels(
  pixels: NDArray[np.uint8],
  size: int | tuple[int, int],
  filter_: Image.Resampling = Image.Resampling.BILINEAR,
) -> NDArray[np.uint8]:
  """Resizes an image `[H, W, 3]` or map `[H, W]` to a square of `size` pixels, or to (height, width)."""
  shape = (size, size) if isinstance(size, int) else size
  return pixels if pixels.shape[:2] == shape else resize_image(Image.fromarray(pixels), shape, filter_)


def resize_image(
  image: Image.Image, size: int | tuple[int, int], filter_: Image.Resampling = Image.Resampling.BILINEAR
) -> NDArray[np.uint8]:
  """Does the same to Pillow's image, which saves a copy."""
  height, width = (size, size) if isinstance(size, int) else size
  return np.asarray(image if image.size == (width, height) else image.resize((width, height), filter_))


def pad_batch(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
  """Pads a batch `[B, H, W, 3]` to `size` images by repeating the last one."""
  return np.concatenate([pixels, np.repeat(pixels[-1:], size - len(pixels), axis=0)])


def decode_picture(picture: Image.Image) -> Picture:
  """Converts an opened image as `read_image` says."""
  # Damaged metadata is no reason to refuse the pixels; Pillow raises many kinds of errors for it.
  with contextlib.suppress(Exception):
    ImageOps.exif_transpose(picture, in_place=True)
  if picture.mode.startswith("I"):
    return _decode_16_bits(picture)
  if picture.mode == "F":
    raise ValueError("its pixels are floating-point numbers: convert it to 8 or 16 bits")
  if not picture.has_transparency_data:
    return Picture(picture.convert("RGB"), None)
  key = picture.info.get("transparency")
  if isinstance(key, tuple) and max(key) > 255:
    # This is the colour key of a 16-bit image, whose pixels Pillow has reduced to their high bytes.
    picture.info["transparency"] = tuple(value >> 8 for value in key)
  rgba = picture.convert("RGBA")
  white = Image.new("RGBA", rgba.size, "white")
  return Picture(Image.alpha_composite(white, rgba).convert("RGB"), np.asarray(rgba.getchannel("A")))


def _decode_16_bits(picture: Image.Image) -> Picture:
  """Scales 16-bit greyscale, which Pillow would clip at 255; one grey value may be transparent."""
  values = np.asarray(picture).astype(np.int64)
  if values.min() < 0 or values.max() > 65535:
    raise ValueError("its pixels have more than 16 bits: convert it to 8 or 16")
  grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
  alpha = None
  if "transparency" in picture.info:
    opaque = values != picture.info["transparency"]
    alpha = np.where(opaque, 255, 0).astype(np.uint8)
    grey = np.where(opaque, grey, 255).astype(np.uint8)
  return Picture(Image.fromarray(grey).convert("RGB"), alpha)


# All that reading a picture's pixels takes; exported programs come with a copy.
DECODING = (Picture, _decode_16_bits, decode_picture)
