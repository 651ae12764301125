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
_COLOURS = 256  # of a picture's palette
_FRAME_MS = 120
_LAST_MS = 1500
_DPI = 90

_CHANNELS = 96  # of the basis in a picture
_COLOUR_NAMES = ("red", "green", "yellow", "blue")  # the first of report.palette

Views = Mapping[str, np.ndarray]  # pictures by their titles
Draw = Callable[[Variables, Scene], Views]


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


def first_image(variables: Variables, scene: Scene) -> Views:
  """Draws the first image's part map."""
  return {"": part_map(variables.logits[0], scene.images[0])}


def transformed(variables: Variables, scene: Scene) -> Views:
  """Draws the transformed image's part map, and the first image's, transformed, which it should be."""
  target = warp.warp(variables.logits[:1], scene.grid)[0]
  return {
    "f(T(image))": part_map(variables.warped_logits[0], scene.warped_image, centers=True),
    "T(f(image))": part_map(target, scene.warped_image, centers=True),
  }


def gram(variables: Variables, scene: Scene) -> Views:
  """Draws the cosines between the parts' rows of the basis: white 0, black 1."""
  rows = np.maximum(np.asarray(variables.basis), 0)
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  cells = np.rint(255 * (1 - rows @ rows.T)).clip(0, 255).astype(np.uint8)
  large = np.kron(cells, np.ones((_SIDE // NUM_PARTS,) * 2, np.uint8))
  return {"cosines of W": np.repeat(large[..., None], 3, axis=-1)}


def all_maps(variables: Variables, scene: Scene) -> Views:
  """Draws the part maps of the first image, its transformed version and the second image."""
  return {
    "first image": part_map(variables.logits[0], scene.images[0]),
    "transformed": part_map(variables.warped_logits[0], scene.warped_image),
    "second image": part_map(variables.logits[1], scene.images[1]),
  }


def part_fields(gradient: np.ndarray) -> Views:
  """Returns the gradient field of logits [S, S, K+1], a picture for each channel."""
  names = ["background", *(f"part {k}, {color}" for k, color in enumerate(_COLOUR_NAMES, 1))]
  return dict(zip(names, gradient_field(gradient), strict=True))


def basis_field(gradient: np.ndarray) -> Views:
  """Returns the gradient field of some channels of a basis [K, C], a row for each part."""
  (field,) = gradient_field(gradient[:, :_CHANNELS, None], size=(6 * _CHANNELS, 16 * NUM_PARTS))
  return {f"the first {_CHANNELS} channels of the {NUM_PARTS} parts": field}


def gradient_field(gradient: np.ndarray, *, size: tuple[int, int] = (_SIDE, _SIDE)) -> list[np.ndarray]:
  """Returns where the loss pushes: -∂L/∂x as a picture for each channel, red up, blue down, white nothing.

  Args:
    gradient: [H, W, C]; all channels have one scale.
    size: width and height of a picture, pixels.
  """
  push = -np.asarray(gradient, np.float64)
  scale = np.quantile(np.abs(push), 0.995) or 1.0
  pictures = []
  for channel in np.moveaxis(push, -1, 0):
    colored = colormaps["RdBu_r"](0.5 + 0.5 * np.clip(channel / scale, -1, 1))[..., :3]
    picture = Image.fromarray(np.rint(255 * colored).astype(np.uint8))
    pictures.append(np.asarray(picture.resize(size, Image.Resampling.NEAREST)))
  return pictures


def study_figure(
  path: Path, course: Course, scene: Scene, draw: Draw, *, name: str, moments: Sequence[int], fields: Views
) -> None:
  """Writes what an optimisation looks like: before, on the way, after; the loss; the gradient at the start.

  Args:
    path: the PNG.
    course: of the optimisation.
    scene: its inputs.
    draw: makes pictures of variables.
    name: of the loss in `course.terms`.
    moments: which kept variables to show.
    fields: pictures of the gradient.
  """
  steps = len(course.terms[name]) // (len(course.variables.basis) - 1)
  shown = [draw(_at(course, moment), scene) for moment in moments]
  figure = Figure(figsize=(10.2, 2.1 * len(shown[0]) + 2.1), layout="constrained")
  upper, lower = figure.subfigures(2, 1, height_ratios=(2.1 * len(shown[0]) + 0.2, 2.1))
  grid = upper.add_gridspec(len(shown[0]), len(moments) + 1)
  for column, (moment, views) in enumerate(zip(moments, shown, strict=True)):
    for row, (title, picture) in enumerate(views.items()):
      axes = upper.add_subplot(grid[row, column])
      when = f"step {moment * steps}" if moment else "start"
      _show(axes, picture, when if row == 0 else "", side=title if column == 0 else "")
  axes = upper.add_subplot(grid[0, -1])
  axes.plot(course.terms[name], color="tab:blue")
  axes.set_title("the loss over the steps", fontsize=9)
  axes.tick_params(labelsize=7)
  axes.spines[["top", "right"]].set_visible(False)
  lower.suptitle("where the gradient pushes at the start: red up, blue down", fontsize=9)
  for axes, (title, picture) in zip(
    lower.subplots(1, len(fields), squeeze=False)[0], fields.items(), strict=True
  ):
    _show(axes, picture, title)
  _write(path, figure)


def grid_figure(path: Path, pictures: Mapping[str, Sequence[np.ndarray]], *, columns: Sequence[str]) -> None:
  """Writes a PNG of named rows of pictures under the columns' titles."""
  height, width = next(iter(pictures.values()))[0].shape[:2]
  cell = 1.55 * width / height
  figure = Figure(figsize=(1.5 + cell * len(columns), 0.35 + 1.6 * len(pictures)), layout="constrained")
  axes = figure.subplots(len(pictures), len(columns), squeeze=False)
  for i, (name, cells) in enumerate(pictures.items()):
    for j, (picture, title) in enumerate(zip(cells, columns, strict=True)):
      _show(axes[i, j], picture, "" if i else title, side="" if j else name)
  _write(path, figure)


def animation(path: Path, course: Course, scene: Scene, draw: Draw) -> None:
  """Writes a GIF of all kept variables that repeats and rests on the last."""
  moments = range(len(course.variables.basis))
  frames = [Image.fromarray(side_by_side(list(draw(_at(course, i), scene).values()))) for i in moments]
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


def _show(axes: Axes, picture: np.ndarray, title: str, *, side: str = "") -> None:
  axes.imshow(picture)
  axes.set_ylabel(side, fontsize=9)
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
