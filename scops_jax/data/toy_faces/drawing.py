"""Draws one cartoon face "in the wild" with its landmarks, parts and saliency, from a random generator."""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from scops_jax.data.toy_faces.backgrounds import draw_background, smooth_noise
from scops_jax.data.toy_faces.canvas import CLOTHES, EYES, FACE, MOUTH, NECK, NOSE, Canvas
from scops_jax.data.toy_faces.colours import Colour, choice, jitter, mix, random_colour, shade
from scops_jax.data.toy_faces.hair import Hair, draw_glasses
from scops_jax.data.toy_faces.shapes import Head, Points, between, curve, ellipse, mirrored

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
_IRISES: dict[Colour, float] = {
  (84, 54, 32): 4,
  (58, 98, 150): 2,
  (78, 118, 72): 1.5,
  (120, 88, 44): 1.5,
  (110, 120, 130): 1,
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
  head, hair = _sample_head(rng, size), Hair.sample(rng)
  skin = jitter(choice(rng, _SKINS), rng, 5.0)
  hair.draw_back(rng, canvas, head)
  _draw_body(rng, canvas, head, skin)
  _draw_head_shape(rng, canvas, head, skin, hair)
  eyes = draw_eyes(rng, canvas, head, skin, hair)
  if not (hair.is_long or hair.style == "bun") and rng.random() < 0.15:
    hair.draw_beard(rng, canvas, head)
  nose = _draw_nose(rng, canvas, head, skin)
  mouth = _draw_mouth(rng, canvas, head, skin)
  hair.draw_front(rng, canvas, head)
  draw_glasses(rng, canvas, head, eyes)
  hair.draw_hat(rng, canvas, head)
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
  x, y = head.plane([(0, head.chin + rng.uniform(0.15, 0.38))], -0.35)[0]
  body = replace(head, centre=(x, y), roll=0.4 * head.roll, yaw=0.0, pitch=0.0)
  width, half = rng.uniform(1.7, 2.3), rng.uniform(0.5, 0.68)
  throat, neckline = rng.uniform(0.15, 0.8), rng.uniform(0.15, 0.5)
  tone = shade(skin, 0.9)
  chest = curve([(-1.2, 0.5), (-half, 0.0), (half, 0.0), (1.2, 0.5), (0, throat + 0.6)])
  canvas.fill(body.plane(chest), tone, NECK)
  under_head = head.plane([(-half, 0.3), (half, 0.3)], -0.3)
  on_body = body.plane([(half * 1.2, 0.1), (0, throat + 0.2), (-half * 1.2, 0.1)])
  canvas.fill(np.concatenate([under_head, on_body]), tone, NECK)
  shadow = ellipse((0, head.chin - 0.05), half * 1.1, 0.4)
  canvas.fill(head.plane(shadow, -0.15), shade(skin, 0.55), opacity=0.35)
  cloth = random_colour(rng, (0.1, 0.85), (0.15, 0.95))
  collar = curve(
    [(-half - neckline, 0.02), (-half, 0.2), (0, throat), (half, 0.2), (half + neckline, 0.02)], 5
  )
  right = [(1.2, 0.2), (width * 0.9, 0.5), (width, 1.1), (width * 1.1, 9.0)]
  outline = np.concatenate([collar, between(right, mirrored(right, -1))])
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
  canvas.stroke(body.plane(collar), shade(cloth, 0.65), 0.07 * head.scale, CLOTHES)


def _draw_head_shape(rng: np.random.Generator, canvas: Canvas, head: Head, skin: Colour, hair: Hair) -> None:
  """Ears, locks of hair, the skull with blush and freckles."""
  for side in (-1, 1):
    canvas.fill(head.plane(ellipse((side * 1.02, 0.14), 0.17, 0.3), -0.25), shade(skin, 0.93), FACE)
    canvas.fill(head.plane(ellipse((side * 1.05, 0.14), 0.09, 0.2), -0.25), shade(skin, 0.72), opacity=0.6)
  hair.draw_locks(rng, canvas, head)
  canvas.fill(head.plane(head.outline()), skin, FACE)
  blush = mix(skin, (225, 80, 80), 0.6)
  strength = rng.uniform(0.05, 0.3)
  for side in (-1, 1):
    for radius in (0.26, 0.19, 0.12):
      cheek = ellipse((side * 0.52, 0.48), radius, 0.7 * radius)
      canvas.fill(head.surface(cheek), blush, opacity=strength / 2)
  if rng.random() < 0.12:
    for u, v in rng.uniform((-0.6, 0.25), (0.6, 0.5), (18, 2)):
      canvas.fill(head.surface(ellipse((u, v), 0.022, 0.022, 6)), shade(skin, 0.65), opacity=0.7)


def draw_eyes(rng: np.random.Generator, canvas: Canvas, head: Head, skin: Colour, hair: Hair) -> Points:
  """Both eyes and brows; returns the eyes' centres on the head's surface, [2, 2]."""
  spacing, height = rng.uniform(0.42, 0.48), rng.uniform(-0.04, 0.08)
  width, upper, lower = rng.uniform(0.23, 0.29), rng.uniform(0.13, 0.2), rng.uniform(0.09, 0.14)
  iris, radius = choice(rng, _IRISES), rng.uniform(0.115, 0.145)
  gaze = np.asarray((rng.uniform(-0.07, 0.07), rng.uniform(-0.025, 0.025)))
  tilt = rng.uniform(-0.15, 0.2)
  lashes = shade(mix(hair.colour, (20, 15, 15), 0.7), 0.9)
  brow_height, arch, thickness = rng.uniform(0.27, 0.34), rng.uniform(0.02, 0.1), rng.uniform(0.03, 0.07)
  # Shapes are in the eye's own coordinates, x outwards.
  x = np.linspace(-1, 1, 13)
  lid = np.stack([width * x, -upper * (1 - x**2)], -1)
  floor = np.stack([width * x, lower * (1 - x**2)], -1)
  brow = np.asarray([(-0.9, 0.04), (-0.2, -arch), (0.4, -arch), (1.15, 0.05)]) * (width * 1.15, 1)
  brow = curve(brow - (0, brow_height))
  taper = np.linspace(1.2, 0.5, len(brow))[:, None] * (0, thickness)
  centres = np.asarray([(-spacing, height), (spacing, height)])
  for side, centre in zip((-1, 1), centres, strict=True):

    def place(points: Points, side: int = side, centre: Points = centre) -> Points:
      """From the eye's coordinates to pixels; the tilt raises the outer corner."""
      return head.surface(centre + mirrored(points - tilt * points[:, :1] * (0, 1), side))

    canvas.fill(place(between(lid, floor) * 1.25), shade(skin, 0.8), EYES, opacity=0.5)
    canvas.fill(place(between(lid, floor)), (244, 244, 240), EYES)
    look = gaze * (side, 1)
    for colour, size in ((shade(iris, 0.7), 1.0), (iris, 0.8), ((12, 10, 12), 0.5)):
      disc = ellipse(look, size * radius, size * radius)
      bound = np.maximum(0.0, 1 - (disc[:, 0] / width) ** 2)
      disc[:, 1] = np.clip(disc[:, 1], -upper * bound, lower * bound)
      canvas.fill(place(disc), colour, EYES)
    canvas.fill(place(ellipse(look + np.asarray((0.03 * side, -0.04)), 0.025, 0.025, 8)), (255, 255, 255))
    canvas.stroke(place(lid * (1.05, 1.0)), lashes, max(0.8, 0.05 * head.scale), EYES)
    canvas.stroke(place(floor), shade(skin, 0.6), 0.6, EYES, opacity=0.7)
    canvas.fill(place(between(brow - taper, brow + taper)), shade(hair.colour, 0.75), EYES)
  return centres


def _draw_nose(rng: np.random.Generator, canvas: Canvas, head: Head, skin: Colour) -> Points:
  """The nose; returns the pixels of its tip, [1, 2]."""
  width, tip = rng.uniform(0.15, 0.23), rng.uniform(0.42, 0.5)
  outline = [(-0.05, 0.05), (-0.07, 0.25), (-width, tip), (-0.6 * width, tip + 0.1), (0, tip + 0.12)]
  bulge = np.asarray([0.0, 0.08, 0.1, 0.12, 0.2])
  shape = between(outline, mirrored(outline, -1)[:-1])
  pixels = curve(head.surface(shape, np.concatenate([bulge, bulge[-2::-1]])), 4)
  canvas.fill(pixels, shade(skin, 0.9), NOSE, opacity=0.7)
  side = -1 if head.yaw > 0 else 1  # the nose's side that is in view; the other is in shade
  bridge = [(-side * 0.08, 0.06), (-side * 0.1, 0.26), (-side * width, tip)]
  canvas.stroke(curve(head.surface(bridge, [0, 0.08, 0.1])), shade(skin, 0.7), 0.05 * head.scale, opacity=0.7)
  left_wing = [(-width, tip - 0.02), (-0.7 * width, tip + 0.1)]
  wings = curve(np.concatenate([left_wing, [(0, tip + 0.12)], mirrored(left_wing, -1)[::-1]]))
  canvas.stroke(head.surface(wings, 0.12), shade(skin, 0.62), max(0.7, 0.04 * head.scale), NOSE, opacity=0.8)
  for x in (-0.5, 0.5):
    nostril = ellipse((x * width, tip + 0.07), 0.22 * width, 0.03, 10)
    canvas.fill(head.surface(nostril, 0.13), shade(skin, 0.4), NOSE, opacity=0.8)
  for radius in (0.08, 0.05):
    gleam = ellipse((-side * 0.02, tip - 0.04), radius, radius, 12)
    canvas.fill(head.surface(gleam, 0.25), (255, 250, 240), opacity=0.22)
  return head.surface([(0, tip)], 0.25)


def _draw_mouth(rng: np.random.Generator, canvas: Canvas, head: Head, skin: Colour) -> Points:
  """The mouth, open or closed; returns the pixels of its corners, [2, 2]."""
  half, height = rng.uniform(0.31, 0.39), rng.uniform(0.78, 0.86)
  smile, full = rng.uniform(-0.04, 0.12), rng.uniform(0.08, 0.12)
  gap = rng.uniform(0.06, 0.22) if rng.random() < 0.45 else 0.0
  x = np.linspace(-1, 1, 17)
  rim = np.maximum(0.0, 1 - x**2)
  middle = height - smile * x**2 + 0.5 * smile
  bow = 1 - 0.35 * np.exp(-((x / 0.18) ** 2))

  def line(offset: NDArray) -> Points:
    return np.stack([half * x, middle + offset], -1)

  upper_in, lower_in = line(-0.25 * gap * rim), line(0.75 * gap * rim)
  upper, lower = line(-(0.25 * gap + full * bow) * rim**0.7), line((0.75 * gap + 1.3 * full) * rim**0.8)
  lips = mix(shade(skin, 0.85), (190, 40, 60), rng.uniform(0.35, 0.75))
  place = head.surface
  canvas.fill(place(between(upper, lower), 0.04), lips, MOUTH)
  canvas.fill(place(between(upper, upper_in), 0.04), shade(lips, 0.85), MOUTH)
  gleam = ellipse((0, height + 0.75 * gap + 0.75 * full), 0.4 * half, 0.25 * full, 12)
  canvas.fill(place(gleam, 0.05), shade(lips, 1.4), opacity=0.5)
  if gap:
    canvas.fill(place(between(upper_in, lower_in), 0.02), (70, 20, 28), MOUTH)
    teeth = line((-0.25 * gap + np.minimum(0.09, 0.5 * gap)) * rim)
    canvas.fill(place(between(upper_in, teeth) * (0.9, 1), 0.02), (246, 244, 236), MOUTH)
    if gap > 0.13:
      tongue = ellipse((0, height + 0.6 * gap), 0.45 * half, 0.14 * gap, 12)
      canvas.fill(place(tongue, 0.02), (196, 84, 92), MOUTH)
  else:
    canvas.stroke(place(upper_in, 0.04), shade(lips, 0.45), max(0.7, 0.04 * head.scale), MOUTH)
  below = height + full + gap
  chin = curve([(-0.16, below + 0.13), (0, below + 0.16), (0.16, below + 0.13)])
  canvas.stroke(place(chin), shade(skin, 0.7), 0.7, opacity=0.5)
  return place([(-half, middle[0]), (half, middle[-1])], 0.03)


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
