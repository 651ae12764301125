"""A network's maps of one image as an overlay, and labelled files as a contact sheet."""

import pathlib
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scops_jax.data.image_files import decode_picture, open_image
from scops_jax.geometry import pixels_from_points
from scops_jax.prediction.labels import label_pixels
from scops_jax.report.overlays import contact_sheet, display_size, draw_overlay, thumbnail_size

_MAX_TILES = 48  # pictures of a contact sheet


class LabelledFile(NamedTuple):
  """An image that has been labelled."""

  name: str
  image: pathlib.Path
  labels: pathlib.Path  # its index map
  places: Sequence[tuple[float, float]]  # part centres (x, y), pixels of the image


def overlay_parts(
  image: Image.Image,
  probs: NDArray[np.floating],
  centers: NDArray[np.floating],
  *,
  names: Sequence[str] = (),
  shown: Collection[int] | None = None,
  opacity: float = 0.5,
  numbers: bool = True,
  legend: bool = True,
) -> Image.Image:
  """Draws a network's maps over an image, which is enlarged if it is small.

  Args:
    image: RGB.
    probs: `[S, S, K+1]`, channel 0 = background.
    centers: `[K, 2]` (x, y) in [-1, 1], in the network's square.
    names: this and all that follow as in `draw_overlay`.
    shown: the parts that are drawn; None: all.
    opacity: of the colours, 0 to 1.
    numbers: whether the centres are marked.
    legend: whether a legend is added below.

  Returns:
    RGB.
  """
  width, height = display_size(*image.size)
  labels = label_pixels(probs, height=height, width=width).labels
  places = pixels_from_points(centers, width=width, height=height, square=probs.shape[0])
  return draw_overlay(
    image, labels, places, names=names, shown=shown, opacity=opacity, numbers=numbers, legend=legend
  )


def draw_contact_sheet(
  files: Sequence[LabelledFile], *, num_parts: int, names: Sequence[str] = ()
) -> Image.Image | None:
  """Draws images with their parts side by side, at most 48, evenly spaced among the files.

  Args:
    files: the images; those that can't be read any more are left out.
    num_parts: K.
    names: of parts 1..K, or none.

  Returns:
    RGB; None if no image can be read.
  """
  count = min(_MAX_TILES, len(files))
  chosen = [files[i * len(files) // count] for i in range(count)]
  pictures, captions = [], []
  for file in chosen:
    try:
      pictures.append(_tile(file))
    except (OSError, ValueError):
      continue
    captions.append(file.name)
  if not pictures:
    return None
  some = f"{len(pictures)} of " if len(pictures) < len(files) else ""
  title = f"{some}{len(files)} image{'s' if len(files) > 1 else ''}, {num_parts} parts"
  return contact_sheet(pictures, captions, legend=(num_parts, tuple(names)), title=title)


def _tile(file: LabelledFile) -> Image.Image:
  """Draws an image's parts at a thumbnail's size; raises ValueError or OSError if a file can't be read."""
  with open_image(file.labels.read_bytes(), str(file.labels)) as opened:
    width, height = opened.size
    size = thumbnail_size(width, height)
    labels = np.asarray(opened.resize(size, Image.Resampling.NEAREST))
  with open_image(file.image, file.name) as opened:
    opened.draft("RGB", (2 * max(size), 2 * max(size)))  # a JPEG is then decoded at a fraction of its size
    image = decode_picture(opened).image
  # The centre of the original's pixel x lies at (x + 1/2) / width of it.
  places = (np.asarray(file.places, np.float64) + 0.5) * size / (width, height) - 0.5
  return draw_overlay(image.resize(size, Image.Resampling.LANCZOS), labels, places, legend=False)
