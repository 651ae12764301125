"""Figures and animations of the studies, small enough to be committed."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from experiments.losses.scene import NUM_PARTS, Scene
from experiments.losses.studies import Course, Variables
from scops_jax import geometry, warp
from scops_jax.report.figures import pixel_positions
from scops_jax.report.palette import part_colors
from scops_jax.storage.files import replacing

_SIDE = 128  # of a part map in a picture, pixels
_GAP = 4  # between maps, pixels
_COLOURS = 96  # of a picture's palette
_FRAME_MS = 120
_LAST_MS = 1500
_DPI = 90

Draw = Callable[[Variables, Scene], np.ndarray]


def part_map(logits: np.ndarray, image: np.ndarray | None = None, *, centers: bool = False) -> np.ndarray:
  """Returns logits [S, S, K+1] as a picture: at each pixel the mean of the parts' colours, white for none.

  Args:
    logits: of one image.
    image: drawn below in grey, uint8 [P, P, 3], or None.
    centers: whether the part centres are marked.

  Returns:
    uint8 [128, 128, 3].
  """
  probs = np.asarray(jax.nn.softmax(geometry.resize_bilinear(logits[None], _SIDE, _SIDE)))
  colors = np.concatenate([np.full((1, 3), 255), part_colors(NUM_PARTS)])
  picture = probs[0] @ colors
  if image is not None:
    grey = np.asarray(Image.fromarray(image).convert("L").resize((_SIDE, _SIDE)), np.float64)[..., None]
    picture = 0.7 * picture + 0.3 * grey
  if centers:
    points = pixel_positions(geometry.part_centers(probs)[0], height=_SIDE, width=_SIDE)
    y, x = np.mgrid[:_SIDE, :_SIDE]
    for (column, row), color in zip(points, colors[1:], strict=True):
      distance = np.hypot(x - column, y - row)
      picture = np.where((distance < 7)[..., None], 20, picture)
      picture = np.where((distance < 5)[..., None], color, picture)
  return np.rint(picture).astype(np.uint8)


def side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
  """Returns pictures of one height in a row, on white."""
  gap = np.full((pictures[0].shape[0], _GAP, 3), 255, np.uint8)
  return np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], axis=1)


def first_image(variables: Variables, scene: Scene) -> np.ndarray:
  """Draws the first image's part map."""
  return part_map(variables.logits[0], scene.images[0])


def transformed(variables: Variables, scene: Scene) -> np.ndarray:
  """Draws the transformed image's part map, and what it should be: the first image's, transformed."""
  target = warp.warp(variables.logits[:1], scene.grid)[0]
  return side_by_side(
    [part_map(logits, scene.warped_image, centers=True) for logits in (variables.warped_logits[0], target)]
  )


def gram(variables: Variables, scene: Scene) -> np.ndarray:
  """Draws the cosines between the parts' rows of the basis: white 0, black 1."""
  rows = np.maximum(np.asarray(variables.basis), 0)
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  cells = np.rint(255 * (1 - rows @ rows.T)).clip(0, 255).astype(np.uint8)
  return np.repeat(np.kron(cells, np.ones((_SIDE // NUM_PARTS,) * 2, np.uint8))[..., None], 3, axis=-1)


def all_maps(variables: Variables, scene: Scene) -> np.ndarray:
  """Draws the part maps of the first image, its transformed version and the second image."""
  return side_by_side(
    [
      part_map(variables.logits[0], scene.images[0]),
      part_map(variables.warped_logits[0], scene.warped_image),
      part_map(variables.logits[1], scene.images[1]),
    ]
  )


def gradient_field(gradient: np.ndarray) -> np.ndarray:
  """Returns where the loss pushes: -∂L/∂x as a picture for each channel, red up, blue down, white nothing.

  Args:
    gradient: [H, W, C]; all channels have one scale.
  """
  push = -np.asarray(gradient, np.float64)
  scale = np.quantile(np.abs(push), 0.995) or 1.0
  pictures = []
  for channel in np.moveaxis(push, -1, 0):
    colored = colormaps["RdBu_r"](0.5 + 0.5 * np.clip(channel / scale, -1, 1))[..., :3]
    picture = Image.fromarray(np.rint(255 * colored).astype(np.uint8))
    pictures.append(np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.NEAREST)))
  return side_by_side(pictures)


def study_figure(
  path: Path,
  course: Course,
  scene: Scene,
  draw: Draw,
  *,
  name: str,
  moments: Sequence[int],
  field: np.ndarray,
) -> None:
  """Writes what an optimisation looks like: before, on the way, after; the loss; the gradient at the start.

  Args:
    path: the PNG.
    course: of the optimisation.
    scene: its inputs.
    draw: makes a picture of variables.
    name: of the loss in `course.terms`, or "total".
    moments: which kept variables to show.
    field: a picture of the gradient.
  """
  steps = len(next(iter(course.terms.values()))) // (len(course.variables.basis) - 1)
  figure = Figure(figsize=(10.2, 4.3), layout="constrained")
  upper, lower = figure.subfigures(2, 1, height_ratios=(1.15, 1))
  axes = upper.subplots(1, len(moments) + 1, width_ratios=[1.15] * len(moments) + [1])
  for each, moment in zip(axes, moments, strict=False):
    _show(each, draw(_at(course, moment), scene), f"step {moment * steps}" if moment else "start")
  axes[-1].plot(course.terms[name], color="tab:blue")
  axes[-1].set_title("the loss over the steps", fontsize=9)
  axes[-1].tick_params(labelsize=7)
  axes[-1].spines[["top", "right"]].set_visible(False)
  _show(lower.subplots(), field, "where its gradient pushes at the start: red up, blue down")
  _write(path, figure)


def grid_figure(path: Path, pictures: Mapping[str, Sequence[np.ndarray]], *, columns: Sequence[str]) -> None:
  """Writes a PNG of named rows of pictures under the columns' titles."""
  height, width = next(iter(pictures.values()))[0].shape[:2]
  cell = 1.55 * width / height
  figure = Figure(figsize=(1.5 + cell * len(columns), 0.35 + 1.6 * len(pictures)), layout="constrained")
  axes = figure.subplots(len(pictures), len(columns), squeeze=False)
  for row, (name, cells) in zip(axes, pictures.items(), strict=True):
    for each, picture, title in zip(row, cells, columns, strict=True):
      _show(each, picture, title if row is axes[0] else "")
    row[0].set_ylabel(name, fontsize=9)
  _write(path, figure)


def animation(path: Path, course: Course, scene: Scene, draw: Draw) -> None:
  """Writes a GIF of all kept variables that repeats and rests on the last."""
  frames = [Image.fromarray(draw(_at(course, i), scene)) for i in range(len(course.variables.basis))]
  palette = Image.fromarray(np.concatenate([np.asarray(frame) for frame in frames])).quantize(32)
  small = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
  durations = [_FRAME_MS] * (len(small) - 1) + [_LAST_MS]
  with replacing(path) as temporary:
    small[0].save(
      temporary,
      format="GIF",
      save_all=True,
      append_images=small[1:],
      duration=durations,
      loop=0,
      optimize=True,
    )


def _at(course: Course, moment: int) -> Variables:
  return jax.tree.map(lambda array: array[moment], course.variables)


def _show(axes: Axes, picture: np.ndarray, title: str) -> None:
  axes.imshow(picture)
  axes.set_title(title, fontsize=9)
  axes.set(xticks=[], yticks=[])
  axes.spines[:].set_visible(False)


def _write(path: Path, figure: Figure) -> None:
  """Writes a figure as a PNG of few colours."""
  file = io.BytesIO()
  figure.savefig(file, format="png", dpi=_DPI)
  picture = Image.open(file).convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
  with replacing(path) as temporary:
    picture.save(temporary, format="PNG", optimize=True)
