"""Hair, hats and glasses of the drawn faces."""

from dataclasses import dataclass

import numpy as np

from scops_jax.data.toy_faces.canvas import ACCESSORY, HAIR, Canvas
from scops_jax.data.toy_faces.colours import Colour, choice, jitter, random_colour, shade
from scops_jax.data.toy_faces.shapes import Head, Points, between, curve, ellipse, mirrored

_COLOURS: dict[Colour, float] = {
  (38, 28, 26): 4,  # black
  (74, 46, 30): 4,  # dark brown
  (120, 76, 42): 3,  # brown
  (206, 166, 96): 3,  # blond
  (164, 74, 34): 2,  # red
  (176, 174, 172): 1.5,  # grey
  (196, 70, 130): 0.4,  # dyed
  (60, 110, 170): 0.4,
}
_STYLES: dict[str, float] = {
  "short": 3,
  "side_part": 3,
  "bangs": 2,
  "long": 4,
  "bob": 3,
  "curly": 2,
  "spiky": 1,
  "bun": 1,
  "receding": 1,
  "bald": 0.7,
}
_HATS: dict[str, float] = {"none": 8, "beanie": 0.5, "cap": 0.5, "brim": 0.5}
_GLASSES: dict[str, float] = {"none": 8, "round": 0.8, "square": 0.8, "sun": 0.2}

# The line where forehead and hair meet, from the left temple to the right, on the head's surface: x and y of
# its points. Styles that are not listed have that of "short"; "long" and "bob" choose one.
_HAIRLINES = {
  "short": (
    [-0.98, -0.93, -0.72, -0.3, 0.3, 0.72, 0.93, 0.98],
    [0.0, -0.4, -0.72, -0.86, -0.86, -0.72, -0.4, 0.0],
  ),
  "side_part": (
    [-0.98, -0.95, -0.8, -0.55, -0.2, 0.4, 0.93, 0.98],
    [0.0, -0.3, -0.6, -0.9, -0.74, -0.55, -0.3, 0.1],
  ),
  "bangs": (
    [-0.98, -0.93, -0.7, -0.3, 0.0, 0.3, 0.7, 0.93, 0.98],
    [0.2, -0.2, -0.42, -0.5, -0.46, -0.5, -0.42, -0.2, 0.2],
  ),
  "middle": (
    [-0.98, -0.93, -0.75, -0.3, 0.0, 0.3, 0.75, 0.93, 0.98],
    [0.3, -0.1, -0.5, -0.85, -1.0, -0.85, -0.5, -0.1, 0.3],
  ),
  "receding": (
    [-0.98, -0.92, -0.66, -0.2, 0.2, 0.66, 0.92, 0.98],
    [-0.1, -0.5, -0.95, -1.02, -1.02, -0.95, -0.5, -0.1],
  ),
}


@dataclass(frozen=True)
class Hair:
  """How a head's hair is worn."""

  style: str
  colour: Colour
  hairline: Points  # on the head's surface
  volume: float  # thickness over the skull, units
  hat: str

  @property
  def is_long(self) -> bool:
    """Whether it falls beside the face."""
    return self.style in ("long", "bob")

  @classmethod
  def sample(cls, rng: np.random.Generator) -> "Hair":
    """Draws a style, colour and perhaps a hat."""
    style, hat = choice(rng, _STYLES), choice(rng, _HATS)
    line = style
    if style in ("long", "bob"):
      line = str(rng.choice(np.array(["middle", "bangs", "side_part"])))
    x, y = np.asarray(_HAIRLINES.get(line, _HAIRLINES["short"]))
    hairline = np.stack([x, y + rng.uniform(-0.08, 0.06)], -1)
    if rng.random() < 0.5:
      hairline = mirrored(hairline, -1)[::-1]
    return cls(style, jitter(choice(rng, _COLOURS), rng), hairline, rng.uniform(0.1, 0.22), hat)

  def draw_back(self, rng: np.random.Generator, canvas: Canvas, head: Head) -> None:
    """The hair behind neck and shoulders."""
    dark = shade(self.colour, 0.78)
    if self.is_long:
      length = rng.uniform(1.9, 2.8) if self.style == "long" else rng.uniform(0.9, 1.35)
      width = rng.uniform(1.15, 1.4)
      end = width * rng.uniform(0.8, 1.1)
      side = [(width, 0.2), (width * 1.04, 0.6 * length), (end, length), (0.3, length * 1.02)]
      crown = head.outline(190, 350, 1 + self.volume)
      shape = np.concatenate([crown, between(side, mirrored(side, -1))])
      canvas.fill(curve(head.plane(shape, -0.25), 3), dark, HAIR)
    elif self.style == "curly":
      _draw_curls(rng, canvas, head.plane(head.outline(150, 390, 1.1), -0.2), head.scale, dark)
    elif self.style == "bun" and self.hat == "none":
      bun = ellipse((rng.uniform(-0.15, 0.15), -head.top - 0.25), 0.42, 0.38)
      canvas.fill(head.plane(bun, -0.4), dark, HAIR)

  def draw_locks(self, rng: np.random.Generator, canvas: Canvas, head: Head) -> None:
    """The hair that falls beside the face, over ears and shoulders."""
    if not self.is_long:
      return
    length = rng.uniform(1.5, 2.3) if self.style == "long" else rng.uniform(0.75, 1.1)
    for side in (-1, 1):
      outer = [(1.0, -0.7), (1.16, 0.0), (1.22, 0.5 * length), (1.1, length)]
      inner = [(0.85, 0.9 * length), (0.86, 0.4), (0.8, -0.3)]
      lock = mirrored(outer + inner, side)
      canvas.fill(curve(head.plane(lock, -0.1), 4), self.colour, HAIR)
      for offset in (0.05, 0.13, 0.2):
        strand = mirrored([(0.9 + offset, -0.4), (0.93 + offset, 0.3), (0.88 + offset, 0.85 * length)], side)
        canvas.stroke(curve(head.plane(strand, -0.1)), shade(self.colour, 0.8), 0.6, opacity=0.6)

  def draw_front(self, rng: np.random.Generator, canvas: Canvas, head: Head) -> None:
    """The hair over the skull, down to the hairline."""
    if self.style == "bald":
      return
    line = curve(head.surface(self.hairline), 5)
    crown = head.outline(364, 176)
    fade = 1 - np.abs(np.linspace(-1, 1, len(crown)))  # thickest on top, thin at the temples
    crown *= 1.03 + self.volume * fade[:, None] ** 0.4
    if self.style == "spiky":
      crown[2:-2:2] *= rng.uniform(1.08, 1.2, (len(crown[2:-2:2]), 1))
    outer = head.plane(crown, -0.1)
    canvas.fill(np.concatenate([line, outer]), self.colour, HAIR)
    if self.style == "curly":
      inner = 0.78 * outer[3:-3:2] + 0.22 * line.mean(axis=0)
      _draw_curls(rng, canvas, outer, head.scale, self.colour)
      _draw_curls(rng, canvas, inner, 0.85 * head.scale, self.colour)
    else:
      _draw_strands(rng, canvas, line, outer[::-1], self.colour)

  def draw_beard(self, rng: np.random.Generator, canvas: Canvas, head: Head) -> None:
    """A beard along the jaw with a moustache, or the moustache alone."""
    if rng.random() < 0.6:
      jaw = head.plane(head.outline(12, 168, 1.02))
      inner = [(-0.9, 0.25), (-0.72, 0.6), (-0.36, 0.66), (0, 0.66), (0.36, 0.66), (0.72, 0.6), (0.9, 0.25)]
      shape = np.concatenate([jaw, curve(head.surface(inner))])
    else:
      upper = [(-0.36, 0.82), (-0.2, 0.64), (0, 0.62), (0.2, 0.64), (0.36, 0.82)]
      lower = [(0.18, 0.76), (0, 0.73), (-0.18, 0.76)]
      shape = curve(head.surface(upper + lower, 0.05))
    canvas.fill(shape, shade(self.colour, 0.9), HAIR)

  def draw_hat(self, rng: np.random.Generator, canvas: Canvas, head: Head) -> None:
    """A woollen hat, a cap with a visor, or a hat with a brim."""
    if self.hat == "none":
      return
    colour = random_colour(rng, (0.2, 0.8), (0.2, 0.85))
    edge = [(-0.99, -0.25), (-0.75, -0.52), (-0.3, -0.64), (0.3, -0.64), (0.75, -0.52), (0.99, -0.25)]
    line = curve(head.surface(edge, 0.06))
    dome = head.plane(head.outline(366, 174, 1.16), -0.05)
    canvas.fill(np.concatenate([line, dome]), colour, ACCESSORY)
    for rib in range(2, len(dome) - 2, 3):
      ends = np.stack([line[rib * len(line) // len(dome)], dome[-rib]])
      canvas.stroke(ends, shade(colour, 0.8), 0.8, opacity=0.6)
    if self.hat == "beanie":
      band = between(line, curve(head.surface(np.asarray(edge) - (0, 0.26), 0.14)))
      canvas.fill(band, shade(colour, 1.2), ACCESSORY)
    elif self.hat == "cap":
      tip = [(0.85, -0.62), (0.6, -0.42), (0.0, -0.34), (-0.6, -0.42), (-0.85, -0.62)]
      visor = np.concatenate([line[3:-3], curve(head.plane(tip, 1.35))])
      canvas.fill(visor, shade(colour, 0.7), ACCESSORY)
    else:
      canvas.fill(head.plane(ellipse((0, -0.62), 1.75, 0.3), 0.1), shade(colour, 0.9), ACCESSORY)
      canvas.fill(head.plane(head.outline(352, 188, 1.08) * (1, 0.95) - (0, 0.2)), colour, ACCESSORY)
      ribbon = [(-1.05, -0.62), (0, -0.48), (1.05, -0.62), (1.05, -0.82), (0, -0.68), (-1.05, -0.82)]
      canvas.fill(head.plane(ribbon, 0.1), shade(colour, 0.55), ACCESSORY)


def draw_glasses(rng: np.random.Generator, canvas: Canvas, head: Head, eyes: Points) -> None:
  """Frames around both eyes (head-surface coordinates), sometimes with dark lenses."""
  kind = choice(rng, _GLASSES)
  if kind == "none":
    return
  frame = random_colour(rng, (0.1, 0.6), (0.1, 0.45))
  width = max(0.9, 0.05 * head.scale)
  exponent, height = (0.5, 0.24) if kind == "square" else (1.0, 0.28)
  ring = ellipse((0, 0), 1, 1)
  shape = np.sign(ring) * np.abs(ring) ** exponent * (0.31, height)
  for side, centre in zip((-1, 1), eyes, strict=True):
    rim = head.surface(centre + np.asarray((0, 0.03)) + shape, 0.1)
    if kind == "sun":
      canvas.fill(rim, (30, 30, 40), ACCESSORY, opacity=0.85)
    else:
      canvas.fill(rim, (225, 235, 245), opacity=0.15)
    canvas.stroke(np.concatenate([rim, rim[:2]]), frame, width, ACCESSORY)
    if side * head.yaw > 0.2:  # the far arm is behind the head
      continue
    hinge, ear = head.surface(centre[None] + [(side * 0.31, 0)], 0.1), head.plane([(side * 0.98, 0.0)], -0.1)
    canvas.stroke(np.concatenate([hinge, ear]), frame, width, ACCESSORY)
  bridge = np.asarray([eyes[0] + (0.3, 0), [0, -0.02], eyes[1] - (0.3, 0)])
  canvas.stroke(curve(head.surface(bridge, 0.12)), frame, width, ACCESSORY)


def _draw_curls(rng: np.random.Generator, canvas: Canvas, path: Points, scale: float, colour: Colour) -> None:
  for point in path:
    radius = scale * rng.uniform(0.17, 0.3)
    curl = ellipse(point + rng.normal(0, 0.06 * scale, 2), radius, radius, 12)
    canvas.fill(curl, shade(colour, rng.uniform(0.82, 1.15)), HAIR)


def _draw_strands(
  rng: np.random.Generator, canvas: Canvas, line: Points, outer: Points, colour: Colour
) -> None:
  """Strokes from the hairline to the outline, lighter and darker than the hair."""
  for t in rng.uniform(0.06, 0.94, 22):
    a, b = line[int(t * len(line))], outer[int(t * len(outer))]
    tone = shade(colour, rng.uniform(0.65, 1.3))
    ends = np.stack([a + 0.1 * (b - a), a + rng.uniform(0.5, 0.95) * (b - a)])
    canvas.stroke(ends, tone, rng.uniform(0.5, 1.2), opacity=0.5)
