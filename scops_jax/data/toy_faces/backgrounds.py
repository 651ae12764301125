"""Textured backgrounds for the drawn faces."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from scops_jax.data.toy_faces.colours import random_colour, shade


def draw_background(rng: np.random.Generator, size: int) -> Image.Image:
  """A random scene, wall or texture, RGB, size × size."""
  draw = rng.choice(np.array([_clouds, _landscape, _lights, _stripes, _tiles, _shelves]))
  image = draw(rng, size)
  blur = rng.uniform(0, 1.8)
  return image.filter(ImageFilter.GaussianBlur(blur)) if blur > 0.3 else image


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> NDArray[np.float32]:
  """Noise with about `cells` blobs per side, [size, size, 1]; its deviation is about 1 before smoothing."""
  coarse = rng.standard_normal((cells + 3, cells + 3)).astype(np.float32)
  return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))[..., None]


def _clouds(rng: np.random.Generator, size: int) -> Image.Image:
  """A wall or cloth: a colour gradient with blobs of several sizes."""
  a, b = np.asarray(random_colour(rng)), np.asarray(random_colour(rng))
  angle = rng.uniform(0, 2 * np.pi)
  y, x = np.mgrid[0:size, 0:size] / size - 0.5
  ramp = (0.5 + x * np.cos(angle) + y * np.sin(angle))[..., None]
  texture = sum(amount * smooth_noise(rng, size, n) for n, amount in ((3, 25), (9, 14), (30, 8)))
  return Image.fromarray(np.clip(a + (b - a) * ramp + texture, 0, 255).astype(np.uint8))


def _landscape(rng: np.random.Generator, size: int) -> Image.Image:
  """Sky, hills and trees."""
  sky = np.asarray((rng.integers(90, 190), rng.integers(150, 215), rng.integers(200, 250)))
  ramp = np.linspace(0, 1, size)[:, None, None]
  pixels = np.broadcast_to(sky + (255 - sky) * 0.7 * ramp, (size, size, 3))
  image = Image.fromarray((pixels + 6 * smooth_noise(rng, size, 5)).clip(0, 255).astype(np.uint8))
  draw = ImageDraw.Draw(image)
  for depth in range(3):
    base, ground = size * rng.uniform(0.35 + 0.15 * depth, 0.6 + 0.15 * depth), rng.integers(60, 170, 3)
    colour = (int(ground[0] * 0.7), int(ground[1]), int(ground[2] * 0.5))
    x = np.arange(0, size + 1, 4)
    y = base + size * 0.06 * np.sin(x / size * rng.uniform(3, 14) + rng.uniform(0, 6))
    draw.polygon([(0, size), *zip(x.tolist(), y.tolist(), strict=True), (size, size)], fill=colour)
    for _ in range(rng.integers(0, 7)):
      cx, cy, r = rng.uniform(0, size), base + rng.uniform(-8, 4), rng.uniform(4, 14)
      draw.ellipse((cx - r, cy - 1.3 * r, cx + r, cy + r), fill=shade(colour, rng.uniform(0.6, 1.1)))
  return image


def _lights(rng: np.random.Generator, size: int) -> Image.Image:
  """Out-of-focus lights in front of a dim scene."""
  image = Image.new("RGB", (size, size), random_colour(rng, value=(0.1, 0.5)))
  draw = ImageDraw.Draw(image, "RGBA")
  for _ in range(rng.integers(10, 35)):
    (x, y), r = rng.uniform(0, size, 2), rng.uniform(2, 14)
    draw.ellipse(
      (x - r, y - r, x + r, y + r), fill=(*random_colour(rng, value=(0.5, 1.0)), int(rng.integers(50, 170)))
    )
  return image


def _stripes(rng: np.random.Generator, size: int) -> Image.Image:
  """Slanted stripes of two or three colours."""
  palette = np.asarray([random_colour(rng) for _ in range(rng.integers(2, 4))])
  angle, period = rng.uniform(0, np.pi), rng.uniform(10, 40)
  y, x = np.mgrid[0:size, 0:size]
  index = ((x * np.cos(angle) + y * np.sin(angle)) / period * len(palette)).astype(int) % len(palette)
  return Image.fromarray((palette[index] + 8 * smooth_noise(rng, size, 12)).clip(0, 255).astype(np.uint8))


def _tiles(rng: np.random.Generator, size: int) -> Image.Image:
  """A brick or tile wall."""
  mortar, brick = random_colour(rng), random_colour(rng)
  image = Image.new("RGB", (size, size), mortar)
  draw = ImageDraw.Draw(image)
  height, width, gap = rng.uniform(8, 22), rng.uniform(14, 40), rng.uniform(1, 2.5)
  for row in range(int(size / height) + 1):
    for column in range(-1, int(size / width) + 1):
      x, y = (column + 0.5 * (row % 2)) * width, row * height
      draw.rectangle((x, y, x + width - gap, y + height - gap), fill=shade(brick, rng.uniform(0.8, 1.15)))
  return image


def _shelves(rng: np.random.Generator, size: int) -> Image.Image:
  """Shelves with books, or a skyline of boxes."""
  image = Image.new("RGB", (size, size), random_colour(rng, value=(0.2, 0.6)))
  draw = ImageDraw.Draw(image)
  rows = int(rng.integers(2, 5))
  for row in range(rows):
    bottom, x = size * (row + 1) / rows, rng.uniform(-6, 6)
    while x < size:
      width, height = rng.uniform(4, 13), size / rows * rng.uniform(0.45, 0.95)
      draw.rectangle((x, bottom - height, x + width - 1, bottom), fill=random_colour(rng))
      x += width + (rng.uniform(4, 20) if rng.random() < 0.12 else 0)
    draw.rectangle((0, bottom - 2, size, bottom), fill=(90, 70, 50))
  return image
