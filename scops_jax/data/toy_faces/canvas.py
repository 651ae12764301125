"""A supersampled canvas that takes colours and part labels at once."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from scops_jax.data.toy_faces.colours import Colour
from scops_jax.data.toy_faces.shapes import Points

SUPERSAMPLING = 3  # odd, so that the centre of a pixel is the centre of one of its samples

PART_NAMES = ("background", "hair", "face", "eyes", "nose", "mouth", "neck", "clothes", "accessory")
HAIR, FACE, EYES, NOSE, MOUTH, NECK, CLOTHES, ACCESSORY = range(1, len(PART_NAMES))


class Canvas:
  """An RGB picture and its index map of parts, drawn together; points are in pixels of the output."""

  def __init__(self, background: Image.Image) -> None:
    """Starts from an RGB background of the output's size."""
    self.size = background.width
    enlarged = (self.size * SUPERSAMPLING,) * 2
    self.image = background.resize(enlarged, Image.Resampling.NEAREST)
    self.labels = Image.new("L", enlarged)
    self._colours = ImageDraw.Draw(self.image, "RGBA")
    self._labels = ImageDraw.Draw(self.labels)

  def fill(self, points: Points, colour: Colour, part: int | None = None, *, opacity: float = 1.0) -> None:
    """Fills a polygon; without `part`, the index map stays as it is."""
    samples = _to_samples(points)
    self._colours.polygon(samples, fill=(*colour, round(255 * opacity)))
    if part is not None:
      self._labels.polygon(samples, fill=part)

  def stroke(
    self, points: Points, colour: Colour, width: float, part: int | None = None, *, opacity: float = 1.0
  ) -> None:
    """Draws an open line; `width` is in pixels of the output."""
    samples, pixels = _to_samples(points), max(1, round(width * SUPERSAMPLING))
    self._colours.line(samples, fill=(*colour, round(255 * opacity)), width=pixels)
    if part is not None:
      self._labels.line(samples, fill=part, width=pixels)

  def colours(self) -> NDArray[np.float32]:
    """The picture at the output's size: the mean of each pixel's samples, [H, W, 3] in 0..255."""
    return np.asarray(self.image.reduce(SUPERSAMPLING), np.float32)

  def parts(self) -> NDArray[np.uint8]:
    """The index map at the output's size: the label of each pixel's central sample, [H, W]."""
    centre = SUPERSAMPLING // 2
    return np.asarray(self.labels)[centre::SUPERSAMPLING, centre::SUPERSAMPLING].copy()

  def person(self) -> Image.Image:
    """How much of each pixel is not background, 0..255, at the output's size."""
    return self.labels.point([0] + [255] * 255).reduce(SUPERSAMPLING)


def _to_samples(points: Points) -> list[tuple[float, float]]:
  return [tuple(p) for p in ((points + 0.5) * SUPERSAMPLING - 0.5).tolist()]
