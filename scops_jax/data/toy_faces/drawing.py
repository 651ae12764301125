"""Draws one cartoon face "in the wild" with its landmarks, parts and saliency, from a random generator."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from scops_jax.data.toy_faces.backgrounds import draw_background, random_colour, smooth_noise
from scops_jax.data.toy_faces.canvas import (
  CLOTHES,
  FACE,
  NECK,
  Canvas,
  Colour,
  Head,
  choice,
  curve,
  ellipse,
  jitter,
  mirrored,
  mix,
  shade,
)
from scops_jax.data.toy_faces.features import draw_eyes, draw_mouth, draw_nose
from scops_jax.data.toy_faces.hair import (
  Hair,
  draw_back_hair,
  draw_beard,
  draw_front_hair,
  draw_glasses,
  draw_hat,
  draw_locks,
  sample_hair,
)

LANDMARK_NAMES = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")  # sides of the image
_SKINS: dict[Colour, float] = {
  (250, 220, 196): 3,
  (240, 198, 164): 3,
  (226, 176, 136): 3,
  (198, 142, 98): 2,
  (152, 102, 68): 2,
  (108, 70, 48): 2,
  (80, 52, 38): 1,
}


@dataclass(frozen=True)
class FaceDrawing:
  """One example of toy_faces."""

  image: NDArray[np.uint8]  # [H, W, 3]
  saliency: NDArray[np.uint8]  # [H, W], 0..255: the person, soft and slightly wrong at the edge
  landmarks: NDArray[np.float32]  # [5, 2], (x, y) in pixels; an integer is a pixel's centre
  visible: NDArray[np.bool_]  # [5], inside the image
  parts: NDArray[np.uint8]  # [H, W], index into PART_NAMES


def draw_face(rng: np.random.Generator, size: int = 128) -> FaceDrawing:
  """Draws a face; the same generator state gives the same arrays."""
  canvas = Canvas(draw_background(rng, size))
  head, hair = _sample_head(rng, size), sample_hair(rng)
  skin = jitter(choice(rng, _SKINS), rng, 5.0)
  draw_back_hair(rng, canvas, head, hair)
  _draw_body(rng, canvas, head, skin)
  _draw_head_shape(rng, canvas, head, skin, hair)
  eyes = draw_eyes(rng, canvas, head, skin, hair)
  if hair.style not in ("long", "bob", "bun") and rng.random() < 0.15:
    draw_beard(rng, canvas, head, hair)
  nose = draw_nose(rng, canvas, head, skin)
  mouth = draw_mouth(rng, canvas, head, skin)
  draw_front_hair(rng, canvas, head, hair)
  draw_glasses(rng, canvas, head, eyes)
  draw_hat(rng, canvas, head, hair)
  landmarks = np.concatenate([head.surface(eyes), nose, mouth]).astype(np.float32)
  visible = np.all((landmarks >= -0.5) & (landmarks < size - 0.5), axis=-1)
  person = canvas.person()
  image = _photograph(rng, canvas.colours(), person, head)
  return FaceDrawing(image, _saliency(rng, person), landmarks, visible, canvas.parts())


def draw_numbered_face(key: tuple[int, ...]) -> FaceDrawing:
  """The face of a key, such as (seed, split, index): the same numbers give the same pixels."""
  return draw_face(np.random.default_rng(key))


def _sample_head(rng: np.random.Generator, size: int) -> Head:
  scale = rng.uniform(29.0, 42.0) * size / 128
  reach = 0.16 if rng.random() < 0.8 else 0.23  # sometimes the head leaves the image
  x, y = 0.5 + rng.uniform(-reach, reach), 0.46 + rng.uniform(-reach, reach) * 0.8
  return Head(
    centre=(x * size, y * size),
    scale=scale,
    roll=np.deg2rad(rng.uniform(-30, 30)),
    yaw=np.deg2rad(rng.uniform(-16, 16)),
    pitch=np.deg2rad(rng.uniform(-8, 8)),
    top=rng.uniform(1.18, 1.36),
    chin=rng.uniform(1.15, 1.42),
    jaw=rng.uniform(0.7, 1.15),
  )


def _draw_body(rng: np.random.Generator, canvas: Canvas, head: Head, skin: Colour) -> None:
  """Neck, shoulders and clothes; the body leans less than the head."""
  base = head.plane([(0, head.chin + rng.uniform(0.15, 0.38))], -0.35)[0]
  body = Head(tuple(base), head.scale, 0.4 * head.roll, 0.0, 0.0, head.top, head.chin, head.jaw)
  width, half = rng.uniform(1.7, 2.3), rng.uniform(0.5, 0.68)
  throat, neckline = rng.uniform(0.15, 0.8), rng.uniform(0.15, 0.5)
  neck = np.concatenate(
    [
      head.plane([(-half, 0.3), (half, 0.3)], -0.3),
      body.plane([(half * 1.2, 0.1), (0, throat + 0.2), (-half * 1.2, 0.1)]),
    ]
  )
  tone = shade(skin, 0.9)
  canvas.fill(
    body.plane(curve([(-1.2, 0.5), (-half, 0.0), (half, 0.0), (1.2, 0.5), (0, throat + 0.6)])), tone, NECK
  )
  canvas.fill(neck, tone, NECK)
  canvas.fill(
    head.plane(ellipse((0, head.chin - 0.05), half * 1.1, 0.4), -0.15), shade(skin, 0.55), opacity=0.35
  )
  cloth = random_colour(rng, (0.1, 0.85), (0.15, 0.95))
  collar = [(-half - neckline, 0.02), (-half, 0.2), (0, throat), (half, 0.2), (half + neckline, 0.02)]
  right = [(1.2, 0.2), (width * 0.9, 0.5), (width, 1.1), (width * 1.1, 9.0)]
  collar_line = curve(collar, 5)
  outline = np.concatenate([collar_line, right, mirrored(right, -1)[::-1]])
  canvas.fill(body.plane(outline), cloth, CLOTHES)
  trim = random_colour(rng)
  if rng.random() < 0.35:
    for v in np.arange(1.0, 4.0, rng.uniform(0.35, 0.6)):
      canvas.stroke(body.plane([(-width * 0.94, v), (width * 0.94, v)]), trim, 0.13 * head.scale)
  elif rng.random() < 0.5:
    canvas.stroke(body.plane([(0, throat), (0, 6.0)]), shade(cloth, 0.6), 0.05 * head.scale)
    for side in (-1, 1):
      lapel = mirrored([(half + 0.1, 0.0), (half * 0.5, 0.9), (0.05, throat), (half, 0.2)], side)
      canvas.fill(body.plane(lapel), mix(cloth, trim, 0.5), CLOTHES)
  canvas.stroke(body.plane(collar_line), shade(cloth, 0.65), 0.07 * head.scale, CLOTHES)


def _draw_head_shape(rng: np.random.Generator, canvas: Canvas, head: Head, skin: Colour, hair: Hair) -> None:
  """Ears, locks of hair, the skull with blush and freckles."""
  for side in (-1, 1):
    canvas.fill(head.plane(ellipse((side * 1.02, 0.14), 0.17, 0.3), -0.25), shade(skin, 0.93), FACE)
    canvas.fill(head.plane(ellipse((side * 1.05, 0.14), 0.09, 0.2), -0.25), shade(skin, 0.72), opacity=0.6)
  draw_locks(rng, canvas, head, hair)
  canvas.fill(head.plane(head.outline()), skin, FACE)
  blush = mix(skin, (225, 80, 80), 0.6)
  strength = rng.uniform(0.05, 0.3)
  for side in (-1, 1):
    for radius in (0.26, 0.19, 0.12):
      canvas.fill(
        head.surface(ellipse((side * 0.52, 0.48), radius, 0.7 * radius)), blush, opacity=strength / 2
      )
  if rng.random() < 0.12:
    for u, v in rng.uniform((-0.6, 0.25), (0.6, 0.5), (18, 2)):
      canvas.fill(head.surface(ellipse((u, v), 0.022, 0.022, 6)), shade(skin, 0.65), opacity=0.7)


def _photograph(
  rng: np.random.Generator, pixels: NDArray[np.float32], person: Image.Image, head: Head
) -> NDArray[np.uint8]:
  """Lights the person, then adds the camera's exposure, colour cast, blur and noise."""
  size = person.width
  u, v = head.to_head(*np.meshgrid(*[np.arange(size, dtype=np.float32)] * 2))
  normal_x, normal_y = np.clip(u / 1.15, -1, 1), np.clip(v / 1.5, -1, 1)
  normal_z = np.sqrt(np.maximum(0, 1 - normal_x**2 - normal_y**2))
  angle, strength = rng.uniform(-np.pi, 0), rng.uniform(0.15, 0.5)
  light = 0.65 * (normal_x * math.cos(angle) + normal_y * math.sin(angle)) + 0.75 * normal_z - 0.45
  lit = pixels * (1 + (strength / 255) * np.asarray(person) * light)[..., None]
  image = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8)).point(_camera_response(rng))
  blur = rng.uniform(0, 0.8)
  image = image.filter(ImageFilter.GaussianBlur(blur)) if blur > 0.3 else image
  noise = rng.standard_normal((size, size, 3), np.float32) * np.float32(rng.uniform(0.5, 5.5))
  return np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)


def _camera_response(rng: np.random.Generator) -> list[int]:
  """Exposure, colour cast and gamma as Pillow's look-up table: 256 entries for each of R, G, B."""
  cast = rng.normal(1.0, 0.05, (3, 1)) * rng.uniform(0.8, 1.2)
  response = np.clip(cast * np.arange(256) / 255, 0, 1) ** rng.uniform(0.85, 1.15)
  return np.round(255 * response).astype(int).ravel().tolist()


def _saliency(rng: np.random.Generator, person: Image.Image) -> NDArray[np.uint8]:
  """The person's silhouette as a detector gives it: soft, its edge off by a pixel or two in places."""
  soft = np.asarray(person.filter(ImageFilter.GaussianBlur(1.8)), np.float32) / 255
  wrong = np.clip(0.18 * smooth_noise(rng, person.width, 9)[..., 0], -0.32, 0.32)
  return np.round(255 / (1 + np.exp(-9.0 * (soft - 0.5 + wrong)))).astype(np.uint8)
