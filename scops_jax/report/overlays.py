"""Part overlays: colours with outlines over an image, numbered centres, a legend, a contact sheet."""

import functools
import math
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from scops_jax.errors import printable
from scops_jax.report.palette import part_colors

PALETTE = np.concatenate([np.zeros((1, 3), np.uint8), part_colors(255)]).tobytes()  # of index maps
_SMALLEST = 300  # pixels; images whose longer side is shorter are enlarged, so that marks are legible
_INK, _PAPER = (40, 40, 40), (255, 255, 255)
_SUPERSAMPLING = 4  # of marks, for smooth rims
_TILE = 260  # of a contact sheet: longest side of a picture, pixels
_COLUMNS = 6  # of a contact sheet, at most
_GAP = 12  # pixels


def display_size(width: int, height: int) -> tuple[int, int]:
  """Returns the (width, height) of an image's overlay: its own, or a multiple of it if it is small."""
  scale = -(-_SMALLEST // max(width, height))
  return width * scale, height * scale


def draw_overlay(
  image: Image.Image,
  labels: NDArray[np.uint8],
  centers: NDArray[np.floating],
  *,
  names: Sequence[str] = (),
  shown: Collection[int] | None = None,
  opacity: float = 0.5,
  numbers: bool = True,
  legend: bool = True,
) -> Image.Image:
  """Draws the parts of an image.

  Args:
    image: RGB; it is resized to the labels.
    labels: `[H, W]`, 0 = background, k = part k.
    centers: `[K, 2]` (x, y) of parts 1..K, in pixels of the labels. A part without pixels has no mark.
    names: of parts 1..K for the legend; empty: numbers only.
    shown: the parts that are drawn; None: all.
    opacity: of the colours, 0 to 1; outlines are opaque.
    numbers: whether the centres are marked with the parts' numbers.
    legend: whether a legend is added below the image.

  Returns:
    RGB, as large as the labels, plus the legend's height.
  """
  height, width = labels.shape
  if image.size != (width, height):
    image = image.resize((width, height), Image.Resampling.BICUBIC)
  parts = range(1, len(centers) + 1) if shown is None else sorted(shown)
  unit = _unit(width, height)
  colors = Image.fromarray(labels)
  colors.putpalette(PALETTE)
  picture = Image.composite(
    colors.convert("RGB"), image, _mask(labels, parts, opacity, line=max(1, unit // 8))
  )
  if numbers:
    areas = colors.histogram()
    for part in (part for part in parts if areas[part]):
      mark = _mark(part, unit)
      x, y = (round(float(value) - mark.width / 2) for value in centers[part - 1])
      picture.paste(mark, (x, y), mark)
  if not legend:
    return picture
  strip = draw_legend(tuple(parts), tuple(names), width, unit)
  return _stack([picture, strip])


@functools.lru_cache(maxsize=64)
def draw_legend(parts: tuple[int, ...], names: tuple[str, ...], width: int, unit: int) -> Image.Image:
  """Returns a legend: a mark and a name for each part, in as many rows as it takes.

  Args:
    parts: numbers of parts.
    names: of parts 1..K; empty: the marks' numbers are enough.
    width: of the legend, pixels.
    unit: size of text, pixels.
  """
  font = _font(round(1.25 * unit))
  marks = {part: _mark(part, unit) for part in parts}
  texts = {part: f"part {part}" if not names else names[part - 1] for part in parts}
  gap = unit // 2
  cell = max((marks[p].width + gap + math.ceil(font.getlength(texts[p])) for p in parts), default=0) + 2 * gap
  columns = max(1, min(len(parts), (width - gap) // max(1, cell)))
  row_height = 2 * unit + gap
  rows = -(-len(parts) // columns)
  strip = Image.new("RGB", (width, rows * row_height + 2 * gap if parts else 0), _PAPER)
  draw = ImageDraw.Draw(strip)
  for index, part in enumerate(parts):
    row, column = divmod(index, columns)
    x, y = gap + column * cell, gap + row * row_height
    strip.paste(marks[part], (x, y + (row_height - marks[part].height) // 2), marks[part])
    draw.text(
      (x + marks[part].width + gap, y + row_height / 2), texts[part], font=font, fill=_INK, anchor="lm"
    )
  return strip


def contact_sheet(
  pictures: Sequence[Image.Image], captions: Sequence[str], *, legend: tuple[int, tuple[str, ...]], title: str
) -> Image.Image:
  """Returns one picture of many, in rows, each above its caption.

  Args:
    pictures: RGB.
    captions: one for each; cut where they are too long.
    legend: K, and the parts' names or ().
    title: the first line.
  """
  columns = min(_COLUMNS, len(pictures))
  text = _TILE // 18  # height of captions, pixels
  font, line = _font(text), text + _GAP
  width = max(columns * (_TILE + _GAP) + _GAP, 2 * (_TILE + _GAP) + _GAP)
  row_height = _TILE + line + _GAP
  rows = -(-len(pictures) // columns)
  sheet = Image.new("RGB", (width, line + _GAP + rows * row_height), _PAPER)
  draw = ImageDraw.Draw(sheet)
  draw.text((_GAP, _GAP), _fitting(title, _font(text + 2), width - 2 * _GAP), font=_font(text + 2), fill=_INK)
  for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
    row, column = divmod(index, columns)
    x, y = _GAP + column * (_TILE + _GAP), line + _GAP + row * row_height
    tile = picture.copy()
    tile.thumbnail((_TILE, _TILE), Image.Resampling.LANCZOS)
    sheet.paste(tile, (x + (_TILE - tile.width) // 2, y + (_TILE - tile.height) // 2))
    shown = _fitting(printable(caption), font, _TILE)  # a file name may hold a line break
    draw.text((x + _TILE / 2, y + _TILE + _GAP / 2), shown, font=font, fill=_INK, anchor="mt")
  num_parts, names = legend
  return _stack([sheet, draw_legend(tuple(range(1, num_parts + 1)), names, width, text)])


def thumbnail_size(width: int, height: int) -> tuple[int, int]:
  """Returns the (width, height) of a contact sheet's picture of an image."""
  scale = _TILE / max(width, height)
  return max(1, round(width * scale)), max(1, round(height * scale))


def _unit(width: int, height: int) -> int:
  """Returns the size of text and marks on an image, in pixels."""
  return max(7, round(0.023 * math.sqrt(width * height)))


def _mask(labels: NDArray[np.uint8], parts: Collection[int], opacity: float, *, line: int) -> Image.Image:
  """Returns the colours' opacity at each pixel; a part's outline, `line` pixels wide, lies inside of it."""
  inside, outline = bytearray(256), bytearray(256)
  for part in parts:
    inside[part], outline[part] = round(255 * opacity), 255 if opacity > 0 else 0
  data = labels.tobytes()
  alpha = np.frombuffer(bytearray(data.translate(inside)), np.uint8).reshape(labels.shape)
  edge = np.zeros(labels.shape, np.bool_)
  for axis in (0, 1):
    later, sooner = np.swapaxes(labels, 0, axis)[line:], np.swapaxes(labels, 0, axis)[:-line]
    differ, view = later != sooner, np.swapaxes(edge, 0, axis)
    view[line:] |= differ
    view[:-line] |= differ
  np.copyto(alpha, np.frombuffer(data.translate(outline), np.uint8).reshape(labels.shape), where=edge)
  return Image.fromarray(alpha)


@functools.lru_cache(maxsize=512)
def _mark(part: int, unit: int) -> Image.Image:
  """Returns a disk of the part's colour with its number, RGBA."""
  size = 2 * unit * _SUPERSAMPLING
  rim = max(1, size // 16)
  r, g, b = (int(value) for value in part_colors(255)[part - 1])
  mark = Image.new("RGBA", (size, size), (r, g, b, 0))
  draw = ImageDraw.Draw(mark)
  draw.ellipse((0, 0, size - 1, size - 1), fill=_INK)
  draw.ellipse((rim // 2, rim // 2, size - 1 - rim // 2, size - 1 - rim // 2), fill=_PAPER)
  draw.ellipse((2 * rim, 2 * rim, size - 1 - 2 * rim, size - 1 - 2 * rim), fill=(r, g, b))
  ink = _PAPER if 0.299 * r + 0.587 * g + 0.114 * b < 140 else _INK
  text = str(part)
  font = _font(round(size * (0.56 if len(text) < 3 else 0.4)))
  draw.text((size / 2, size / 2), text, font=font, fill=ink, anchor="mm")
  return mark.resize((2 * unit, 2 * unit), Image.Resampling.LANCZOS)


@functools.lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
  font = ImageFont.load_default(size)
  assert isinstance(font, ImageFont.FreeTypeFont)
  return font


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
  """Returns the text, cut if it is wider."""
  if font.getlength(text) <= width:
    return text
  while text and font.getlength(text + "…") > width:
    text = text[:-1]
  return text + "…"


def _stack(pictures: Sequence[Image.Image]) -> Image.Image:
  """Returns pictures of one width below each other."""
  result = Image.new("RGB", (pictures[0].width, sum(picture.height for picture in pictures)), _PAPER)
  top = 0
  for picture in pictures:
    result.paste(picture, (0, top))
    top += picture.height
  return result
