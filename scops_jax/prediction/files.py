"""One image of `python -m scops_jax.predict`: reads its file for the network and writes the results."""

import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scops_jax.data.image_files import pad_batch, read_image, resize_image
from scops_jax.errors import UserError
from scops_jax.prediction.labels import label_pixels
from scops_jax.report.palette import part_colors
from scops_jax.storage.files import replacing

# Larger originals are not kept until their maps are there but read a second time: this bounds the memory.
_KEPT_PIXELS = 1 << 20
_OPACITIES = bytes([0] + [round(255 * 0.55)] * 255)  # in overlays, by label; the background is transparent
_JPEG_QUALITY = 90
_PNG_LEVEL = 1  # of compression: four times as fast as the default, and label maps are small anyway
_PALETTE = np.concatenate([np.zeros((1, 3), np.uint8), part_colors(255)]).tobytes()


class ImageFile(NamedTuple):
  """An image to label."""

  name: str
  path: pathlib.Path
  stem: str  # of the names of its output files

  def version(self) -> dict[str, Any]:
    """Returns what tells that the file has changed.

    Raises:
      OSError: the file can't be found.
    """
    status = self.path.stat()
    return {"image": self.name, "bytes": status.st_size, "modified_ns": status.st_mtime_ns}


class LoadedImage(NamedTuple):
  """An image that has been read."""

  file: ImageFile
  source: dict[str, Any]  # the file's version
  network_pixels: NDArray[np.uint8]  # [S, S, 3]
  image: Image.Image | None  # RGB; None: too large to keep


class ImageMaps(NamedTuple):
  """The network's output for one image."""

  labels: NDArray[np.uint8]  # [S, S]
  probs: NDArray[np.float32]  # [S, S, K+1]
  centers: NDArray[np.float32]  # [K, 2] in [-1, 1]


class DoneImage(NamedTuple):
  """An image whose files have been written."""

  stem: str
  source: dict[str, Any]  # the file's version
  rows: list[list[Any]]  # its rows of parts.csv, without the image's name


class OutputFiles(NamedTuple):
  """The names of the output files."""

  path: pathlib.Path  # of the folder
  probabilities: bool  # whether soft maps are written

  def of(self, stem: str) -> dict[str, pathlib.Path]:
    """Returns an image's output files by kind."""
    files = {
      "labels": self.path / "labels" / f"{stem}.png",
      "overlays": self.path / "overlays" / f"{stem}.jpg",
    }
    if self.probabilities:
      files["probabilities"] = self.path / "probabilities" / f"{stem}.npz"
    return files


def load_image(file: ImageFile, *, image_size: int) -> LoadedImage | UserError:
  """Reads an image and resizes it to image_size²; returns the error if it can't be read."""
  try:
    source = file.version()  # first: if the file changes from here on, it is labelled again
    image = read_image(file.path).image
  except UserError as error:
    return error
  except OSError as error:
    return UserError(f"{file.path} can't be read: {error.strerror}")
  kept = image if image.width * image.height <= _KEPT_PIXELS else None
  return LoadedImage(file, source, resize_image(image, image_size), kept)


def stack_pixels(images: Sequence[LoadedImage], size: int) -> NDArray[np.uint8]:
  """Returns a batch `[size, S, S, 3]`, filled up with copies of the last image."""
  return pad_batch(np.stack([image.network_pixels for image in images]), size)


def pair_maps(images: Sequence[LoadedImage], prediction: Any) -> Iterator[tuple[LoadedImage, ImageMaps]]:
  """Yields the images of a batch with their maps, after waiting for its labels, probs and centers."""
  labels, probs, centers = jax.device_get(prediction)
  for i, image in enumerate(images):
    yield image, ImageMaps(labels[i], probs[i], centers[i])


def write_image(predicted: tuple[LoadedImage, ImageMaps], *, out: OutputFiles) -> DoneImage | UserError:
  """Writes the files of an image; returns the error if the original can't be read a second time.

  Raises:
    OSError: a file can't be written.
  """
  loaded, maps = predicted
  try:
    image = read_image(loaded.file.path).image if loaded.image is None else loaded.image
  except UserError as error:
    return error
  width, height = image.size
  found = label_pixels(maps.probs, maps.labels, height=height, width=width)
  files = out.of(loaded.file.stem)
  labels = Image.fromarray(found.labels)
  labels.putpalette(_PALETTE)
  with replacing(files["labels"]) as temporary:
    labels.save(temporary, format="PNG", compress_level=_PNG_LEVEL)
  with replacing(files["overlays"]) as temporary:
    _overlay(image, labels).save(temporary, format="JPEG", quality=_JPEG_QUALITY)
  if out.probabilities:
    with replacing(files["probabilities"]) as temporary, temporary.open("wb") as file:
      np.savez_compressed(file, probs=maps.probs.astype(np.float16), centers=maps.centers)
  last = np.array([width - 1, height - 1])
  points = (maps.centers.astype(np.float64) + 1) / 2 * last
  rows = [
    [k, round(float(x), 3), round(float(y), 3), int(found.areas[k]), _rounded(found.mean_probs[k])]
    for k, (x, y) in enumerate(points, 1)
  ]
  return DoneImage(loaded.file.stem, loaded.source, rows)


def _overlay(image: Image.Image, labels: Image.Image) -> Image.Image:
  mask = Image.frombytes("L", labels.size, labels.tobytes().translate(_OPACITIES))
  return Image.composite(labels.convert("RGB"), image, mask)


def _rounded(value: float) -> float | None:
  return None if math.isnan(value) else round(float(value), 4)
