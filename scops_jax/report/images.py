"""The pictures of the report: test images under layers of parts that can be hidden, and a card per part."""

import math

import numpy as np
from PIL import Image

from scops_jax.report.figures import pixel_positions
from scops_jax.report.gallery import Gallery
from scops_jax.report.markup import bar, data_uri, number, png_uri

# Shares of the foreground below which a part is nearly unused and above which it dominates the others.
_LEAST_SHARE, _LARGEST_SHARE = 0.01, 0.5
UNUSED, DOMINATING = "nearly unused", "dominates"


def color_name(color: np.ndarray) -> str:
  """Returns a `[3]` uint8 colour in CSS."""
  return "#" + bytes(color).hex()


def part_cards(gallery: Gallery, fractions: list[float], colors: np.ndarray) -> str:
  """Returns a list item for every part: its mean appearance and its share of the foreground."""
  items = []
  largest = max(*fractions, 1e-9)
  for i, (fraction, color) in enumerate(zip(fractions, colors, strict=True)):
    flag = part_flag(fraction)
    items.append(
      f'<li style="--color:{color_name(color)}">'
      f'<img class="appearance" width="64" height="64" alt="mean appearance of part {i + 1}"'
      f' src="{png_uri(Image.fromarray(gallery.appearance[i]))}">'
      f'<div><b><i class="swatch"></i>Part {i + 1}<span>{number(fraction, percent=True)}</span></b>'
      f"{bar(fraction / largest, style='part')}"
      f'<span class="faint">on {gallery.num_present[i]:,} of {gallery.num_test:,} images</span>'
      + (f'<span class="flag">{flag}</span>' if flag else "")
      + "</div></li>"
    )
  return "\n".join(items)


def part_flag(fraction: float) -> str:
  """Returns what is wrong with a part of this share of the foreground, or nothing."""
  if fraction < _LEAST_SHARE:
    return UNUSED
  return DOMINATING if fraction > _LARGEST_SHARE else ""


def part_buttons(colors: np.ndarray) -> str:
  """Returns a button for every part that shows and hides it."""
  return "\n".join(
    f'<button type="button" class="toggle" aria-pressed="true" data-shows="part-{i}"'
    f' style="--color:{color_name(color)}"><i class="swatch"></i>'
    f'<span class="word">Part&nbsp;</span>{i}</button>'
    for i, color in enumerate(colors, 1)
  )


def tiles(gallery: Gallery, colors: np.ndarray) -> str:
  """Returns the pictures, the worst first."""
  errors = np.where(np.isnan(gallery.errors), -np.inf, gallery.errors)
  return "\n".join(_tile(gallery, i, colors) for i in np.argsort(-errors, kind="stable"))


def _tile(gallery: Gallery, i: int, colors: np.ndarray) -> str:
  labels, error, index = gallery.labels[i], gallery.errors[i], gallery.indices[i]
  height, width = labels.shape
  layers = "".join(
    f'<img class="part-{part}" alt="" src="{_layer(labels == part, colors[part - 1])}">'
    for part in np.unique(labels)
    if part > 0
  )
  scored = not math.isnan(error)
  return (
    f'<figure class="tile" data-index="{index}" data-error="{error if scored else ""}">'
    f'<div class="picture" style="aspect-ratio:{width}/{height}">'
    f'<img alt="test image {index}" src="{data_uri(gallery.images[i], "image/jpeg")}">'
    f'<div class="layers">{layers}</div>{_marks(gallery, i, colors)}</div>'
    f"<figcaption><span>{index}</span><span>{number(error, percent=True) if scored else 'not scored'}</span>"
    "</figcaption></figure>"
  )


def _layer(mask: np.ndarray, color: np.ndarray) -> str:
  """Returns a picture that has the colour where the mask is True and is transparent elsewhere."""
  picture = Image.fromarray(mask.astype(np.uint8)).convert("P")
  picture.putpalette([0, 0, 0, *color.tolist()])
  return png_uri(picture, bits=1, transparency=0)


def _marks(gallery: Gallery, i: int, colors: np.ndarray) -> str:
  """Returns the SVG of an image's part centres and landmarks, in pixels of its label map."""
  height, width = gallery.labels[i].shape
  unit = min(height, width) / 100

  def to_pixels(points: np.ndarray) -> np.ndarray:
    """Returns positions in the picture; 0 is its edge."""
    return pixel_positions(points, height=height, width=width) + 0.5

  groups = []
  if gallery.landmarks is not None:
    rings = [_ring(x, y, 2.2 * unit) for x, y in to_pixels(gallery.landmarks[i]) if np.isfinite(x)]
    groups.append(_two_strokes("annotated", rings))
  if gallery.predicted is not None:
    crosses = [_cross(x, y, 1.9 * unit) for x, y in to_pixels(gallery.predicted[i]) if np.isfinite(x)]
    groups.append(_two_strokes("predicted", crosses))
  present = [part for part in np.unique(gallery.labels[i]) if part > 0]
  centers = to_pixels(gallery.centers[i])
  discs = "".join(
    f'<circle class="part-{part}" cx="{centers[part - 1, 0]:.1f}" cy="{centers[part - 1, 1]:.1f}"'
    f' r="{3 * unit:.2f}" fill="{color_name(colors[part - 1])}"><title>part {part}</title></circle>'
    for part in present
  )
  groups.append(f'<g class="centers">{discs}</g>')
  return f'<svg class="marks" viewBox="0 0 {width} {height}" aria-hidden="true">{"".join(groups)}</svg>'


def _two_strokes(name: str, shapes: list[str]) -> str:
  """Returns lines with a dark rim, which can be seen on any picture."""
  path = "".join(shapes)
  return f'<g class="{name}"><path class="rim" d="{path}"/><path d="{path}"/></g>'


def _ring(x: float, y: float, radius: float) -> str:
  arc = f"a{radius:.2f} {radius:.2f} 0 1 0"
  return f"M{x - radius:.2f} {y:.2f}{arc} {2 * radius:.2f} 0{arc} {-2 * radius:.2f} 0"


def _cross(x: float, y: float, arm: float) -> str:
  left, top, length = x - arm, y - arm, 2 * arm
  return f"M{left:.2f} {top:.2f}l{length:.2f} {length:.2f}m{-length:.2f} 0l{length:.2f} {-length:.2f}"
