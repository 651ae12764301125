"""One image of `python -m scops_jax.predict`: reads its file for the network and writes the results."""

import io
import math
import pathlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scops_jax.data.image_files import pad_batch, read_image, resize_image
from scops_jax.errors import UserError
from scops_jax.geometry import pixels_from_points
from scops_jax.prediction.labels import label_pixels
from scops_jax.prediction.overlay import overlay_parts
from scops_jax.report.overlays import PALETTE, display_size, draw_overlay
from scops_jax.storage.files import replacing

# Larger originals are not kept until their maps are there but read a second time: this bounds the memory.
_KEPT_PIXELS = 1 << 20
_JPEG_QUALITY = 90
_LONGEST_JPEG = 65500  # pixels, libjpeg's limit
_PNG_LEVEL = 1  # of compression: four times as fast as the default, and label maps are small anyway


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


class PredictedImage(NamedTuple):
  """An image with the network's output for it."""

  loaded: LoadedImage
  probs: NDArray[np.float32]  # [S, S, K+1]
  centers: NDArray[np.float32]  # [K, 2] in [-1, 1]


class DoneImage(NamedTuple):
  """An image whose files have been written."""

  stem: str
  source: dict[str, Any]  # the file's version
  checksums: dict[str, int]  # CRC-32 of each output file, by kind
  rows: list[list[Any]]  # its rows of parts.csv, without the image's name


class OutputFiles(NamedTuple):
  """What is written, and where."""

  path: pathlib.Path  # of the folder
  probabilities: bool  # whether soft maps are written
  part_names: tuple[str, ...] = ()  # for legends
  marks: bool = True  # whether overlays have numbers and a legend

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


def predict_batch(
  predict: Callable[[NDArray[np.uint8]], Any], batch: Sequence[LoadedImage | UserError], *, size: int
) -> Iterator[PredictedImage | UserError]:
  """Yields the images of a batch with their maps, and its errors.

  Args:
    predict: maps `[size, S, S, 3]` to labels, probs and centers.
    batch: at most `size` images; the network's batch is filled up with copies of the last one.
    size: images per call of the network.
  """
  images = [image for image in batch if isinstance(image, LoadedImage)]
  yield from (error for error in batch if isinstance(error, UserError))
  if images:
    pixels = pad_batch(np.stack([image.network_pixels for image in images]), size)
    _, probs, centers = jax.device_get(predict(pixels))
    yield from (PredictedImage(image, probs[i], centers[i]) for i, image in enumerate(images))


def write_image(predicted: PredictedImage | UserError, *, out: OutputFiles) -> DoneImage | UserError:
  """Writes the files of an image; returns the error if there is one.

  Raises:
    OSError: a file can't be written.
  """
  if isinstance(predicted, UserError):
    return predicted
  (file, source, _, image), probs, centers = predicted
  if not (np.isfinite(probs).all() and np.isfinite(centers).all()):
    return UserError(f"{file.path} can't be labelled: the network's result has NaN or infinite numbers")
  if image is None:
    try:
      image = read_image(file.path).image
    except UserError as error:
      return error
  width, height = image.size
  found = label_pixels(probs, height=height, width=width)
  labels = Image.fromarray(found.labels)
  labels.putpalette(PALETTE)
  places = pixels_from_points(centers, width=width, height=height, square=probs.shape[0])
  options: dict[str, Any] = {"names": out.part_names, "numbers": out.marks, "legend": out.marks}
  if not out.marks or display_size(width, height) == image.size:
    overlay = draw_overlay(image, found.labels, places, **options)
  else:
    overlay = overlay_parts(image, probs, centers, **options)
  if max(overlay.size) > _LONGEST_JPEG:
    return UserError(
      f"{file.path} can't be labelled: its overlay of {overlay.width} × {overlay.height} pixels would be "
      f"longer than a JPEG may be, {_LONGEST_JPEG}"
    )
  contents = {kind: io.BytesIO() for kind in out.of(file.stem)}
  labels.save(contents["labels"], format="PNG", compress_level=_PNG_LEVEL)
  overlay.save(contents["overlays"], format="JPEG", quality=_JPEG_QUALITY)
  if out.probabilities:
    np.savez_compressed(contents["probabilities"], probs=probs.astype(np.float16), centers=centers)
  for kind, path in out.of(file.stem).items():
    with replacing(path) as temporary:
      temporary.write_bytes(contents[kind].getbuffer())
  checksums = {kind: zlib.crc32(content.getbuffer()) for kind, content in contents.items()}
  rows = [
    [k, round(x, 3), round(y, 3), int(found.areas[k]), _rounded(found.mean_probs[k])]
    for k, (x, y) in enumerate(places.tolist(), 1)
  ]
  return DoneImage(file.stem, source, checksums, rows)


def _rounded(value: float) -> float | None:
  return None if math.isnan(value) else round(float(value), 4)
