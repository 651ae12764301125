"""HTML that the sections of the report share."""

import base64
import io
import math

from PIL import Image


def number(value: float | None, *, percent: bool = False) -> str:
  """Returns a number for people, with three significant digits, or an en dash for None."""
  if value is None:
    return "–"
  if percent:
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"
  if not math.isfinite(value):
    return str(value)
  if abs(value) >= 1000:
    return f"{value:,.0f}"
  if value == 0 or abs(value) >= 1e-3:
    return f"{value:.3g}"
  mantissa, exponent = f"{value:.1e}".split("e")
  return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def bar(fraction: float | None, *, style: str = "") -> str:
  """Returns a horizontal bar of which a fraction is filled; `style` is the class of the filled part."""
  width = min(max(fraction, 0.0), 1.0) if fraction is not None and math.isfinite(fraction) else 0.0
  return f'<span class="bar"><i class="{style}" style="width:{100 * width:.2f}%"></i></span>'


def toggle(shows: str, content: str, *, style: str = "") -> str:
  """Returns a pressed button that shows and hides the elements of the class `shows`."""
  return (
    f'<button type="button" class="toggle" aria-pressed="true" data-shows="{shows}" style="{style}">'
    f"{content}</button>"
  )


def data_uri(content: bytes, mime_type: str) -> str:
  """Returns a data URI, which contains the file itself."""
  return f"data:{mime_type};base64,{base64.b64encode(content).decode('ascii')}"


def encoded(picture: Image.Image, form: str, **options: int) -> bytes:
  """Returns the file of a picture, "PNG" or "JPEG"; the options are Pillow's."""
  file = io.BytesIO()
  picture.save(file, format=form, optimize=True, **options)
  return file.getvalue()
