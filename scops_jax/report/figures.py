"""Pictures of test images with their parts and landmarks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from PIL import Image

from scops_jax.report.palette import part_colors
from scops_jax.storage.files import replacing

_OPACITY = 0.55  # of part colours over an image
_COLUMNS = 8  # images side by side
_TILE = 160  # least width of a picture in a figure, pixels
_GAP = 6  # between pictures, pixels
_LEGEND = (160, 28)  # width and height of an entry of the legend, pixels
_DPI = 100
_INK = "#282828"  # text and the rims of marks
_RIM = withStroke(linewidth=3.5, foreground=_INK)
_MARKS: dict[str, dict[str, Any]] = {
  "annotated landmark": {"marker": "o", "s": 50, "facecolor": "none", "edgecolor": "white"},
  "predicted landmark": {"marker": "x", "s": 35, "color": "#ffdd33"},
}


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

  With landmarks a third row shows annotated landmarks as rings and predicted ones as crosses, without those
  outside their image.

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
  height, width = labels.shape[1:]
  scale = -(-_TILE // width)
  large = _enlarge(images, scale, Image.Resampling.BICUBIC)
  parts = overlay(large, _enlarge(labels.astype(np.uint8), scale, Image.Resampling.NEAREST))
  annotated = landmarks is not None or predicted is not None
  stacks = [large, parts, *([large] if annotated else [])]
  canvas, corners = _montage(stacks)
  canvas_height, canvas_width = canvas.shape[:2]
  legend_columns = max(1, canvas_width // _LEGEND[0])
  legend_height = _LEGEND[1] * -(-(num_parts + 2) // legend_columns)
  total_height = canvas_height + legend_height
  figure = Figure(figsize=(canvas_width / _DPI, total_height / _DPI), dpi=_DPI)
  axes = figure.add_axes((0, legend_height / total_height, 1, canvas_height / total_height))
  axes.set_axis_off()
  axes.imshow(canvas, extent=(0, canvas_width, canvas_height, 0), interpolation="nearest", aspect="auto")
  axes.autoscale(False)

  def positions(points: np.ndarray, picture: int) -> np.ndarray:
    pixels = (pixel_positions(points, height=height, width=width) + 0.5) * scale
    return pixels + corners[:, None] + (0, picture * (scale * height + _GAP))

  colors = part_colors(num_parts) / 255
  handles: list[Any] = []
  for i, (color, points) in enumerate(zip(colors, positions(centers, 1).transpose(1, 0, 2), strict=True), 1):
    ink = "white" if color @ (0.299, 0.587, 0.114) < 0.55 else _INK
    present = points[(labels == i).any(axis=(1, 2))]
    axes.scatter(present[:, 0], present[:, 1], s=130, color=color, edgecolor="white", zorder=i + 1)
    for x, y in present:
      axes.text(x, y, str(i), color=ink, fontsize=8, ha="center", va="center_baseline", zorder=i + 1)
    handles.append(Patch(color=color, label=f"part {i}"))
  for (meaning, style), points in zip(_MARKS.items(), (landmarks, predicted), strict=True):
    if points is not None:
      inside = np.where((np.abs(points) <= 1).all(axis=-1, keepdims=True), points, np.nan)
      x, y = positions(inside, 2).reshape(-1, 2).T
      handles.append(axes.scatter(x, y, linewidth=1.5, path_effects=[_RIM], label=meaning, **style))
  figure.legend(handles=handles, loc="lower left", ncols=legend_columns, frameon=False, fontsize=10)
  with replacing(path) as temporary:
    figure.savefig(temporary, format="png", dpi=_DPI)


def _check_images(images: np.ndarray, labels: np.ndarray) -> None:
  if images.dtype != np.uint8 or not np.issubdtype(labels.dtype, np.integer):
    raise TypeError(f"images must be uint8 and labels integers, got {images.dtype} and {labels.dtype}")
  if images.ndim != 4 or images.shape[3] != 3 or not len(images) or labels.shape != images.shape[:3]:
    raise ValueError(
      f"images must be [B, H, W, 3] with B > 0 and labels [B, H, W], got {images.shape} and {labels.shape}"
    )
  if labels.min() < 0 or labels.max() > 255:
    raise ValueError(f"labels must be in 0 .. 255, got {labels.min()} .. {labels.max()}")


def _montage(stacks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """Arranges pictures `[N, h, w, 3]`, those of an image below each other, images side by side, on white.

  Returns:
    The picture, and the top left corner (x, y) `[N, 2]` of each image's uppermost picture.
  """
  count, height, width = stacks[0].shape[:3]
  block = len(stacks) * (height + _GAP)
  row, column = np.divmod(np.arange(count), _COLUMNS)
  corners = _GAP + np.stack([column * (width + _GAP), row * (block + 2 * _GAP)], axis=1)
  right, bottom = corners.max(axis=0)
  canvas = np.full((bottom + block, right + width + _GAP, 3), 255, np.uint8)
  for i, (x, y) in enumerate(corners):
    for k, pictures in enumerate(stacks):
      top = y + k * (height + _GAP)
      canvas[top : top + height, x : x + width] = pictures[i]
  return canvas, corners


def _enlarge(pictures: np.ndarray, scale: int, resampling: Image.Resampling) -> np.ndarray:
  height, width = pictures.shape[1:3]
  size = (width * scale, height * scale)
  return np.stack([np.asarray(Image.fromarray(picture).resize(size, resampling)) for picture in pictures])
