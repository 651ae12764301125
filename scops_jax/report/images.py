"""The pictures of the report: test images under layers of parts that can be hidden, and a card per part."""

import math
from html import escape
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from scops_jax.report.figures import pixel_positions
from scops_jax.report.gallery import Gallery
from scops_jax.report.markup import bar, data_uri, encoded, number, toggle

# Shares of the foreground below which a part is nearly unused and above which it dominates the others.
_LEAST_SHARE, _LARGEST_SHARE = 0.01, 0.5
UNUSED, DOMINATING = "is nearly unused", "dominates"


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
      f' src="{_png_uri(Image.fromarray(gallery.appearance[i]))}">'
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
    toggle(
      f"part-{i}",
      f'<i class="swatch"></i><span class="word">Part&nbsp;</span>{i}',
      style=f"--color:{color_name(color)}",
    )
    for i, color in enumerate(colors, 1)
  )


def has_masks(gallery: Gallery) -> bool:
  """Returns whether the foreground that is compared with is more than the whole of every image."""
  return not gallery.foreground.all()


def tiles(gallery: Gallery, colors: np.ndarray) -> str:
  """Returns the pictures, each with the mask that its foreground is compared with, the worst first."""
  errors = np.where(np.isnan(gallery.errors), -np.inf, gallery.errors)
  return "\n".join(_tile(gallery, i, colors) for i in np.argsort(-errors, kind="stable"))


def _tile(gallery: Gallery, i: int, colors: np.ndarray) -> str:
  error = gallery.errors[i]
  scored = not math.isnan(error)
  shown = picture(gallery, i, colors) + (_mask(gallery.foreground[i]) if has_masks(gallery) else "")
  return tile(
    shown,
    index=gallery.indices[i],
    name=gallery.name(i),
    error=error if scored else None,
    caption=number(error, percent=True) if scored else "not scored",
  )


def tile(pictures: str, *, index: int, name: str, error: float | None, caption: str) -> str:
  """Returns pictures side by side above a name; `error` is what they are ordered by."""
  title, shown = escape(name), escape(PurePosixPath(name).name)
  return (
    f'<figure class="tile" data-index="{index}" data-error="{"" if error is None else error}">'
    f'<div class="pictures">{pictures}</div>'
    f'<figcaption><span class="name" title="{title}">{shown}</span><span>{caption}</span>'
    "</figcaption></figure>"
  )


def picture(gallery: Gallery, i: int, colors: np.ndarray) -> str:
  """Returns an image under a layer for each of its parts, and its marks."""
  labels = gallery.labels[i]
  height, width = labels.shape
  layers = "".join(
    f'<img class="part-{part}" alt="" src="{_layer(labels == part, colors[part - 1])}">'
    for part in np.unique(labels)
    if part > 0
  )
  return (
    f'<div class="picture" style="aspect-ratio:{width}/{height}">'
    f'<img alt="test image {escape(gallery.name(i))}" src="{data_uri(gallery.images[i], "image/jpeg")}">'
    f'<div class="layers">{layers}</div>{_marks(gallery, i, colors)}</div>'
  )


def _mask(foreground: np.ndarray) -> str:
  """Returns the picture of a mask, white on black."""
  height, width = foreground.shape
  uri = _png_uri(Image.fromarray(foreground))
  return (
    f'<div class="picture mask" style="aspect-ratio:{width}/{height}"><img alt="its mask" src="{uri}"></div>'
  )


def _layer(mask: np.ndarray, color: np.ndarray) -> str:
  """Returns a picture that has the colour where the mask is True and is transparent elsewhere."""
  picture = Image.fromarray(mask.astype(np.uint8)).convert("P")
  picture.putpalette([0, 0, 0, *color.tolist()])
  return _png_uri(picture, bits=1, transparency=0)


def _png_uri(picture: Image.Image, **options: int) -> str:
  return data_uri(encoded(picture, "PNG", **options), "image/png")


def _marks(gallery: Gallery, i: int, colors: np.ndarray) -> str:
  """Returns the SVG of an image's landmarks and part centres, in pixels of its label map."""
  height, width = gallery.labels[i].shape
  unit = min(height, width) / 100

  def pixels(points: np.ndarray) -> np.ndarray:
    """Returns the positions `[n, 2]` of points that are not NaN; 0 is the picture's edge."""
    found = pixel_positions(points, height=height, width=width) + 0.5
    return found[np.isfinite(found).all(axis=1)]

  groups = []
  if gallery.landmarks is not None:
    rings = [_circle(x, y, 2.2 * unit) for x, y in pixels(gallery.landmarks[i])]
    groups.append(("annotated", rings))
  if gallery.predicted is not None:
    arm = 1.9 * unit
    crosses = [
      f'<path d="M{x - arm:.2f} {y - arm:.2f}l{2 * arm:.2f} {2 * arm:.2f}m0 {-2 * arm:.2f}'
      f'l{-2 * arm:.2f} {2 * arm:.2f}"/>'
      for x, y in pixels(gallery.predicted[i])
    ]
    groups.append(("predicted", crosses))
  centers = pixels(np.nan_to_num(gallery.centers[i]))
  discs = [
    _circle(
      centers[part - 1, 0],
      centers[part - 1, 1],
      3 * unit,
      f'class="part-{part}" fill="{color_name(colors[part - 1])}"',
    )
    for part in np.unique(gallery.labels[i])
    if part > 0
  ]
  groups.append(("centers", discs))
  shapes = "".join(f'<g class="{name}">{"".join(group)}</g>' for name, group in groups)
  return f'<svg class="marks" viewBox="0 0 {width} {height}" aria-hidden="true">{shapes}</svg>'


def _circle(x: float, y: float, radius: float, attributes: str = "") -> str:
  return f'<circle {attributes} cx="{x:.2f}" cy="{y:.2f}" r="{radius:.2f}"/>'
