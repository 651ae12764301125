"""Pictures of test images with their parts and landmarks."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from scops_jax.report.palette import part_colors
from scops_jax.storage.files import replacing

# Draws a mark at x, y; the last argument is the number of canvas pixels for a pixel of the figure.
Mark = Callable[[ImageDraw.ImageDraw, float, float, int], None]

_OPACITY = 0.55  # of part colours over an image
_COLUMNS = 8  # images side by side
_TILE = 160  # least width of a picture in a figure, pixels
_GAP = 6  # between pictures, pixels
_LINE = 28  # height of a line of the legend, pixels
_FONT = 16  # of the legend, pixels
_SUPERSAMPLING = 3  # marks are drawn at this many times the resolution, then averaged
_LANDMARK = (255, 255, 255)  # marks of annotated landmarks
_PREDICTED = (255, 221, 51)  # marks of predicted landmarks
_INK = (40, 40, 40)  # text and the rims of marks


def pixel_positions(points: np.ndarray, *, height: int, width: int) -> np.ndarray:
  """Returns points in pixels of a picture, counted from the centre of the first: (p + 1) / 2 · (size - 1).

  Args:
    points: `[..., 2]` (x, y) in [-1, 1], corners aligned.
    height: of the picture, pixels.
    width: of the picture, pixels.

  Returns:
    `[..., 2]` (x, y) float64. Where 0 is to be the edge of the picture, add 0.5.
  """
  return (np.asarray(points, np.float64) + 1) / 2 * (np.array([width, height]) - 1)


def overlay(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Blends part colours over images; the background, label 0, stays as it is.

  Args:
    images: `[B, H, W, 3]` uint8 RGB.
    labels: `[B, H, W]` integers, 0 .. 255.

  Returns:
    `[B, H, W, 3]` uint8.

  Raises:
    ValueError: Shapes disagree or a label is out of range.
    TypeError: The images are not uint8 or the labels not integers.
  """
  _check_images(images, labels)
  colors = part_colors(255)[np.maximum(labels, 1) - 1].astype(np.float32)
  blended = (1 - _OPACITY) * images + _OPACITY * colors
  return np.where(labels[..., None] > 0, np.rint(blended), images).astype(np.uint8)


def part_figure(
  images: np.ndarray,
  labels: np.ndarray,
  centers: np.ndarray,
  path: str | Path,
  *,
  landmarks: np.ndarray | None = None,
  predicted: np.ndarray | None = None,
) -> None:
  """Writes a PNG of images above their coloured parts with numbered part centres, and a legend.

  With landmarks a third row shows annotated landmarks as rings and predicted ones as crosses.

  Args:
    images: `[N, H, W, 3]` uint8 RGB.
    labels: `[N, H, W]` integers, 0 .. K.
    centers: `[N, K, 2]` (x, y) of part 1 .. K in [-1, 1], corners aligned. The centre of a part that has no
      pixel in an image is not drawn.
    path: File to write; its folder is made, a file of that name is replaced.
    landmarks: `[N, L, 2]` in [-1, 1]; NaN where hidden.
    predicted: `[N, L, 2]` in [-1, 1].

  Raises:
    ValueError: Shapes disagree or a label is out of range.
    TypeError: The images are not uint8 or the labels not integers.
  """
  _check_images(images, labels)
  for name, points in (("centers", centers), ("landmarks", landmarks), ("predicted", predicted)):
    if points is not None and (points.ndim != 3 or points.shape[::2] != (len(images), 2)):
      raise ValueError(f"{name} must be [{len(images)}, points, 2], got {points.shape}")
  num_parts = centers.shape[1]
  if labels.max(initial=0) > num_parts:
    raise ValueError(f"labels must be in 0 .. {num_parts}, as many as centers, got {labels.max()}")
  kinds = [
    (points, mark, meaning)
    for points, mark, meaning in (
      (landmarks, _ring, "annotated landmark"),
      (predicted, _cross, "predicted landmark"),
    )
    if points is not None
  ]
  stacks = [
    _stack(image, labels[i], centers[i], [(points[i], mark) for points, mark, _ in kinds])
    for i, image in enumerate(images)
  ]
  columns = min(_COLUMNS, len(stacks))
  stacks += [np.full_like(stacks[0], 255)] * (-len(stacks) % columns)
  rows = [_join(stacks[i : i + columns], axis=1) for i in range(0, len(stacks), columns)]
  grid = _join(rows, axis=0, gap=3 * _GAP)
  grid = np.pad(grid, ((_GAP, _GAP), (_GAP, _GAP), (0, 0)), constant_values=255)
  parts = [(_swatch(color), f"part {i}") for i, color in enumerate(part_colors(num_parts), 1)]
  legend = _legend(grid.shape[1], [*parts, *((mark, meaning) for _, mark, meaning in kinds)])
  figure = Image.fromarray(np.concatenate([grid, legend]))
  with replacing(path) as temporary:
    figure.save(temporary, format="PNG")


def _check_images(images: np.ndarray, labels: np.ndarray) -> None:
  if images.dtype != np.uint8 or not np.issubdtype(labels.dtype, np.integer):
    raise TypeError(f"images must be uint8 and labels integers, got {images.dtype} and {labels.dtype}")
  if images.ndim != 4 or images.shape[3] != 3 or not len(images) or labels.shape != images.shape[:3]:
    raise ValueError(
      f"images must be [B, H, W, 3] with B > 0 and labels [B, H, W], got {images.shape} and {labels.shape}"
    )
  if labels.min() < 0 or labels.max() > 255:
    raise ValueError(f"labels must be in 0 .. 255, got {labels.min()} .. {labels.max()}")


def _enlarge(array: np.ndarray, scale: int, resampling: Image.Resampling) -> np.ndarray:
  height, width = array.shape[:2]
  return np.asarray(Image.fromarray(array).resize((width * scale, height * scale), resampling))


def _stack(
  image: np.ndarray, labels: np.ndarray, centers: np.ndarray, marks: Sequence[tuple[np.ndarray, Mark]]
) -> np.ndarray:
  """Returns one image, its parts with their centres and, if there are marks, the image with those."""
  scale = -(-_TILE // image.shape[1])

  def to_pixels(points: np.ndarray) -> np.ndarray:
    """Returns positions in the enlarged picture; 0 is its edge."""
    return (pixel_positions(points, height=image.shape[0], width=image.shape[1]) + 0.5) * scale

  large = _enlarge(image, scale, Image.Resampling.BICUBIC)
  large_labels = _enlarge(labels.astype(np.uint8), scale, Image.Resampling.NEAREST)
  shown = {int(part): to_pixels(centers[part - 1]) for part in np.unique(labels) if part > 0}
  tiles = [large, _mark_centers(overlay(large[None], large_labels[None])[0], shown)]
  if marks:
    tiles.append(_mark_points(large, [(to_pixels(points), mark) for points, mark in marks]))
  return _join(tiles, axis=0)


def _join(tiles: Sequence[np.ndarray], *, axis: int, gap: int = _GAP) -> np.ndarray:
  """Puts pictures of one size side by side or, with axis 0, below each other, on white."""
  padding = [(0, gap if i == axis else 0) for i in range(3)]
  return np.concatenate(
    [*(np.pad(tile, padding, constant_values=255) for tile in tiles[:-1]), tiles[-1]], axis=axis
  )


def _draw(image: np.ndarray, draw: Callable[[ImageDraw.ImageDraw, int], None]) -> np.ndarray:
  """Returns a copy with smooth marks; `draw` gets a canvas and the number of its pixels per image pixel."""
  height, width = image.shape[:2]
  size = (width * _SUPERSAMPLING, height * _SUPERSAMPLING)
  canvas = Image.fromarray(image).resize(size, Image.Resampling.NEAREST)
  draw(ImageDraw.Draw(canvas), _SUPERSAMPLING)
  return np.asarray(canvas.resize((width, height), Image.Resampling.BOX))


def _mark_centers(image: np.ndarray, centers: Mapping[int, np.ndarray]) -> np.ndarray:
  """Draws numbered discs in the parts' colours."""
  colors = part_colors(255)

  def draw(canvas: ImageDraw.ImageDraw, unit: int) -> None:
    radius = 8 * unit
    font = ImageFont.load_default(11 * unit)
    for part, center in centers.items():
      x, y = center * unit
      color = colors[part - 1]
      ink = "white" if color @ (0.299, 0.587, 0.114) < 140 else _INK
      box = (x - radius, y - radius, x + radius, y + radius)
      canvas.ellipse(box, fill=tuple(color.tolist()), outline="white", width=3 * unit // 2)
      canvas.text((x, y), str(part), fill=ink, font=font, anchor="mm")

  return _draw(image, draw)


def _mark_points(image: np.ndarray, marks: Sequence[tuple[np.ndarray, Mark]]) -> np.ndarray:
  """Draws every kind of point with its own mark; points that are NaN are hidden."""

  def draw(canvas: ImageDraw.ImageDraw, unit: int) -> None:
    for points, mark in marks:
      for x, y in points[np.isfinite(points).all(axis=-1)] * unit:
        mark(canvas, x, y, unit)

  return _draw(image, draw)


def _ring(canvas: ImageDraw.ImageDraw, x: float, y: float, unit: int) -> None:
  for radius, width, color in ((6, 4, _INK), (5, 2, _LANDMARK)):
    radius *= unit
    canvas.ellipse((x - radius, y - radius, x + radius, y + radius), outline=color, width=width * unit)


def _cross(canvas: ImageDraw.ImageDraw, x: float, y: float, unit: int) -> None:
  for arm, width, color in ((5, 4, _INK), (4, 2, _PREDICTED)):
    arm *= unit
    for slope in (-1, 1):
      canvas.line((x - arm, y - slope * arm, x + arm, y + slope * arm), fill=color, width=width * unit)


def _swatch(color: np.ndarray) -> Mark:
  def draw(canvas: ImageDraw.ImageDraw, x: float, y: float, unit: int) -> None:
    side = 8 * unit
    canvas.rectangle((x - side, y - side, x + side, y + side), fill=tuple(color.tolist()))

  return draw


def _legend(width: int, items: Sequence[tuple[Mark, str]]) -> np.ndarray:
  """Returns a strip `[lines · _LINE, width, 3]` of marks and what they mean, in as many lines as needed."""
  font = ImageFont.load_default(_FONT * _SUPERSAMPLING)
  lines: list[list[tuple[float, Mark, str]]] = [[]]
  x: float = _GAP
  for mark, text in items:
    length = 20 + font.getlength(text) / _SUPERSAMPLING  # of the mark, a space and the text
    if lines[-1] and x + length > width:
      lines.append([])
      x = _GAP
    lines[-1].append((x, mark, text))
    x += length + 14

  def draw(canvas: ImageDraw.ImageDraw, unit: int) -> None:
    for i, line in enumerate(lines):
      y = (i + 0.5) * _LINE * unit
      for left, mark, text in line:
        mark(canvas, (left + 8) * unit, y, unit)
        canvas.text(((left + 20) * unit, y), text, fill=_INK, font=font, anchor="lm")

  return _draw(np.full((len(lines) * _LINE, width, 3), 255, np.uint8), draw)
