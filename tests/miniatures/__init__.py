"""Writers of the published collections' layouts in miniature, with the faults that real copies have."""

import io

import numpy as np
from PIL import Image


def pixels(height, width, seed):
  """A textured colour picture `[height, width, 3]` with an ellipse in it."""
  rng = np.random.default_rng(seed)
  rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
  colors = rng.uniform(0, 255, (3, 3))
  ramp = colors[0] * (rows[..., None] + 1) / 2 + colors[1] * (1 - rows[..., None]) / 2
  texture = rng.uniform(-60, 60, (height, width, 3))
  picture = np.where((rows**2 + columns**2 < 0.5)[..., None], colors[2], ramp) + texture
  return np.clip(picture, 0, 255).astype(np.uint8)


def encoded(array, kind="JPEG"):
  """A picture file's bytes."""
  stream = io.BytesIO()
  Image.fromarray(array).save(stream, kind)
  return stream.getvalue()


def soft_mask(height, width):
  """A saliency map `[height, width]` with values between 0 and 255."""
  rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
  return np.clip(510 * (1 - rows**2 - columns**2), 0, 255).astype(np.uint8)


def write(path, content):
  """Writes bytes or lines; lines end as given."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
