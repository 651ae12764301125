"""Eyes, brows, nose and mouth of the drawn faces, and where their landmarks are."""

import numpy as np
from numpy.typing import NDArray

from scops_jax.data.toy_faces.canvas import (
  EYES,
  MOUTH,
  NOSE,
  Canvas,
  Colour,
  Head,
  Points,
  choice,
  curve,
  ellipse,
  mirrored,
  mix,
  shade,
)
from scops_jax.data.toy_faces.hair import Hair

_IRISES: dict[Colour, float] = {
  (84, 54, 32): 4,
  (58, 98, 150): 2,
  (78, 118, 72): 1.5,
  (120, 88, 44): 1.5,
  (110, 120, 130): 1,
}


def draw_eyes(rng: np.random.Generator, canvas: Canvas, head: Head, skin: Colour, hair: Hair) -> Points:
  """Both eyes and brows; returns the eyes' centres on the head's surface, [2, 2]."""
  spacing, height = rng.uniform(0.42, 0.48), rng.uniform(-0.04, 0.08)
  width, upper, lower = rng.uniform(0.23, 0.29), rng.uniform(0.13, 0.2), rng.uniform(0.09, 0.14)
  iris_colour, radius = choice(rng, _IRISES), rng.uniform(0.115, 0.145)
  gaze = np.asarray((rng.uniform(-0.07, 0.07), rng.uniform(-0.025, 0.025)))
  tilt = rng.uniform(-0.15, 0.2)
  lashes = shade(mix(hair.colour, (20, 15, 15), 0.7), 0.9)
  brow_height, arch, thickness = rng.uniform(0.27, 0.34), rng.uniform(0.02, 0.1), rng.uniform(0.03, 0.07)
  centres = np.asarray([(-spacing, height), (spacing, height)])
  for side, centre in zip((-1, 1), centres, strict=True):

    def place(points: Points, side: int = side, centre: Points = centre) -> Points:
      """From the eye's own coordinates (x outwards) to pixels; the outer corner is raised by the tilt."""
      return head.surface(
        centre + mirrored(points - np.stack([0 * points[:, 0], tilt * points[:, 0]], -1), side)
      )

    x = np.linspace(-1, 1, 13)
    lid = np.stack([width * x, -upper * (1 - x**2)], -1)
    floor = np.stack([width * x, lower * (1 - x**2)], -1)
    canvas.fill(place(np.concatenate([lid, floor[::-1]]) * 1.25), shade(skin, 0.8), EYES, opacity=0.5)
    canvas.fill(place(np.concatenate([lid, floor[::-1]])), (244, 244, 240), EYES)
    look = gaze * (side, 1)
    for colour, size in (
      (shade(iris_colour, 0.7), radius),
      (iris_colour, 0.8 * radius),
      ((12, 10, 12), 0.5 * radius),
    ):
      disc = ellipse(look, size, size)
      bound = np.maximum(0.0, 1 - (disc[:, 0] / width) ** 2)
      disc[:, 1] = np.clip(disc[:, 1], -upper * bound, lower * bound)
      canvas.fill(place(disc), colour, EYES)
    canvas.fill(place(ellipse(look + np.asarray((0.03 * side, -0.04)), 0.025, 0.025, 8)), (255, 255, 255))
    canvas.stroke(place(lid * (1.05, 1.0)), lashes, max(0.8, 0.05 * head.scale), EYES)
    canvas.stroke(place(floor), shade(skin, 0.6), 0.6, EYES, opacity=0.7)
    brow = np.asarray([(-0.9, 0.04), (-0.2, -arch), (0.4, -arch), (1.15, 0.05)]) * (width * 1.15, 1)
    brow = curve(brow - (0, brow_height))
    taper = np.linspace(1.2, 0.5, len(brow))[:, None] * (0, thickness)
    canvas.fill(place(np.concatenate([brow - taper, (brow + taper)[::-1]])), shade(hair.colour, 0.75), EYES)
  return centres


def draw_nose(rng: np.random.Generator, canvas: Canvas, head: Head, skin: Colour) -> Points:
  """The nose; returns the pixels of its tip, [1, 2]."""
  width, tip = rng.uniform(0.15, 0.23), rng.uniform(0.42, 0.5)
  outline = [(-0.05, 0.05), (-0.07, 0.25), (-width, tip), (-0.6 * width, tip + 0.1), (0, tip + 0.12)]
  bulge = np.asarray([0.0, 0.08, 0.1, 0.12, 0.2])
  shape = np.concatenate([outline, mirrored(outline, -1)[-2::-1]])
  heights = np.concatenate([bulge, bulge[-2::-1]])
  pixels = curve(head.surface(shape, heights), 4)
  canvas.fill(pixels, shade(skin, 0.9), NOSE, opacity=0.7)
  side = -1 if head.yaw > 0 else 1  # the side turned to us is in view, the other in shade
  bridge = [(-side * 0.08, 0.06), (-side * 0.1, 0.26), (-side * width, tip)]
  canvas.stroke(curve(head.surface(bridge, [0, 0.08, 0.1])), shade(skin, 0.7), 0.05 * head.scale, opacity=0.7)
  wings = curve(
    [
      (-width, tip - 0.02),
      (-0.7 * width, tip + 0.1),
      (0, tip + 0.12),
      (0.7 * width, tip + 0.1),
      (width, tip - 0.02),
    ]
  )
  canvas.stroke(head.surface(wings, 0.12), shade(skin, 0.62), max(0.7, 0.04 * head.scale), NOSE, opacity=0.8)
  for x in (-0.5, 0.5):
    nostril = ellipse((x * width, tip + 0.07), 0.22 * width, 0.03, 10)
    canvas.fill(head.surface(nostril, 0.13), shade(skin, 0.4), NOSE, opacity=0.8)
  for radius in (0.08, 0.05):
    canvas.fill(
      head.surface(ellipse((-side * 0.02, tip - 0.04), radius, radius, 12), 0.25),
      (255, 250, 240),
      opacity=0.22,
    )
  return head.surface([(0, tip)], 0.25)


def draw_mouth(rng: np.random.Generator, canvas: Canvas, head: Head, skin: Colour) -> Points:
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
  canvas.fill(place(np.concatenate([upper, lower[::-1]]), 0.04), lips, MOUTH)
  canvas.fill(place(np.concatenate([upper, upper_in[::-1]]), 0.04), shade(lips, 0.85), MOUTH)
  canvas.fill(
    place(ellipse((0, height + 0.75 * gap + 0.75 * full), 0.4 * half, 0.25 * full, 12), 0.05),
    shade(lips, 1.4),
    opacity=0.5,
  )
  if gap:
    canvas.fill(place(np.concatenate([upper_in, lower_in[::-1]]), 0.02), (70, 20, 28), MOUTH)
    teeth = line((-0.25 * gap + np.minimum(0.09, 0.5 * gap)) * rim)
    canvas.fill(place(np.concatenate([upper_in, teeth[::-1]]) * (0.9, 1), 0.02), (246, 244, 236), MOUTH)
    if gap > 0.13:
      canvas.fill(
        place(ellipse((0, height + 0.6 * gap), 0.45 * half, 0.14 * gap, 12), 0.02), (196, 84, 92), MOUTH
      )
  else:
    canvas.stroke(place(upper_in, 0.04), shade(lips, 0.45), max(0.7, 0.04 * head.scale), MOUTH)
  chin = curve(
    [(-0.16, height + full + gap + 0.13), (0, height + full + gap + 0.16), (0.16, height + full + gap + 0.13)]
  )
  canvas.stroke(place(chin), shade(skin, 0.7), 0.7, opacity=0.5)
  return place([(-half, middle[0]), (half, middle[-1])], 0.03)
