"""Draws a folder of animals in the layout of configs/folder.py: quadrupeds or birds of many species.

python -m experiments.own_images.draw_animals --kind=quadrupeds --out=data/quadrupeds --num=1000

The defaults of configs/folder.py were chosen on them: articulated, thin limbs, turned about the vertical,
seen from both sides, some landmarks hidden. The same seed gives the same drawings.
"""

import argparse
import pathlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.own_images.folders import Drawing, write_folder
from scops_jax.data.toy_faces.backgrounds import draw_background, smooth_noise
from scops_jax.data.toy_faces.canvas import Canvas
from scops_jax.data.toy_faces.colours import Colour, jitter, random_colour, shade
from scops_jax.data.toy_faces.shapes import ellipse

Point3 = NDArray[np.float64]  # x forward, y down, z to the animal's left; the body is about 1 long
HEAD, TRUNK, LIMBS, TAIL, WINGS = range(1, 6)


def at(x: float, y: float, z: float) -> Point3:
  """A vector."""
  return np.array([x, y, z], float)


class View:
  """An orthographic camera: turn about the vertical, in-plane roll, scale and shift."""

  def __init__(self, rng: np.random.Generator, size: int, *, turn: float) -> None:
    side = np.pi * rng.integers(0, 2)  # seen from its right or from its left
    yaw, roll = side + np.radians(rng.uniform(-turn, turn)), np.radians(rng.uniform(-15, 15))
    self._yaw = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    self._roll = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
    self._scale = size * rng.uniform(0.42, 0.6)
    self._shift = size * (0.5 + rng.uniform(-0.07, 0.07, 2))

  def depth(self, point: ArrayLike) -> float:
    """Returns the distance from the camera, up to a constant."""
    return float((self._yaw @ np.asarray(point))[2])

  def project(self, points: ArrayLike) -> NDArray[np.float64]:
    """Maps points [N, 3] to pixels [N, 2]."""
    flat = (np.atleast_2d(points) @ self._yaw.T)[:, :2]
    return flat @ self._roll.T * self._scale + self._shift

  def length(self, value: float) -> float:
    """A length in pixels."""
    return value * self._scale


def _chain(
  canvas: Canvas, view: View, joints: list, radii: list[float], *, colour: Colour, part: int
) -> None:
  """Draws a limb or body as discs along the joints, with interpolated radii."""
  at = np.linspace(0, len(joints) - 1, 12 * (len(joints) - 1) + 1)
  known = np.arange(len(joints))
  centres = np.stack([np.interp(at, known, axis) for axis in np.asarray(joints, float).T], axis=1)
  for centre, radius in zip(view.project(centres), np.interp(at, known, radii), strict=True):
    canvas.fill(ellipse(centre, view.length(radius), view.length(radius), 20), colour, part)


def _coat(canvas: Canvas, rng: np.random.Generator, colour: Colour, kind: str) -> None:
  """Draws spots, patches or stripes on the animal only."""
  if kind == "plain":
    return
  before, size = canvas.image.copy(), canvas.size
  mark = shade(colour, 0.45) if np.mean(colour) > 90 else shade(colour, 1.9)
  for _ in range({"spots": 60, "patches": 14, "stripes": 22}[kind]):
    centre, radius = rng.uniform(0, size, 2), size * {"spots": 0.012, "patches": 0.06, "stripes": 0.012}[kind]
    tall = 6.0 if kind == "stripes" else rng.uniform(0.7, 1.3)
    canvas.fill(ellipse(centre, radius * rng.uniform(0.7, 1.4), radius * tall, 16), mark)
  coated = canvas.labels.point(lambda label: 255 * (label in (TRUNK, LIMBS, HEAD)))
  canvas.image.paste(before, mask=coated.point(lambda on: 255 - on))


def draw_quadruped(rng: np.random.Generator, size: int) -> Drawing:
  """A four-legged animal of a random species and pose."""
  canvas, view = Canvas(draw_background(rng, size)), View(rng, size, turn=50)
  colour = random_colour(rng, saturation=(0.05, 0.55), value=(0.25, 0.95))
  belly, leg = rng.uniform(0.13, 0.21), rng.uniform(0.3, 0.55)
  neck, head = rng.uniform(0.12, 0.38), rng.uniform(0.13, 0.2)
  rise = np.radians(rng.uniform(-25, 65))  # of the neck
  shoulder, hip = np.array([0.36, 0.0, 0.0]), at(-0.36, rng.uniform(-0.04, 0.03), 0.0)
  poll = shoulder + neck * at(np.cos(rise), -np.sin(rise), 0) + at(0.04, -0.06, 0)
  nod = np.radians(rng.uniform(-70, 10))
  swing = rng.uniform(-0.35, 0.35)  # of the head, sideways
  muzzle = poll + head * 1.3 * at(np.cos(nod) * np.cos(swing), -np.sin(nod), np.sin(swing))

  def draw_leg(top: Point3, side: int, phase: float, tone: Colour, bend: float) -> Point3:
    start = top + at(0, 0.05, side * belly * 0.55)
    reach = 0.16 * np.sin(phase)
    knee = start + at(0.5 * reach + bend, 0.5 * leg + 0.04, 0)
    hoof = start + at(reach, leg + belly * 0.55 - 0.05 * max(0.0, np.cos(phase)), 0)
    _chain(
      canvas, view, [start, knee, hoof], [belly * 0.42, belly * 0.24, belly * 0.18], colour=tone, part=LIMBS
    )
    return hoof

  gait = rng.uniform(0, 2 * np.pi)
  near = 1 if view.depth([0, 0, 1]) < view.depth([0, 0, -1]) else -1
  hooves: dict[str, Point3] = {}
  for side in (-near, near):
    tone = jitter(shade(colour, 0.72 if side != near else 0.95), rng, 3)
    which = "near" if side == near else "far"
    hooves[f"{which}_hind"] = draw_leg(hip, side, gait + (np.pi if side > 0 else 0), tone, -0.05)
    hooves[f"{which}_front"] = draw_leg(shoulder, side, gait + (0 if side > 0 else np.pi), tone, 0.03)
    if side != near:
      droop = np.radians(rng.uniform(-30, 80))
      length = rng.uniform(0.12, 0.42)
      root = hip + at(-0.1, -0.07, 0)
      tail = root + length * at(-np.cos(droop), np.sin(droop), rng.uniform(-0.4, 0.4))
      middle = (root + tail) / 2 + at(-0.06, -0.03, 0)
      _chain(
        canvas, view, [root, middle, tail], [0.035, 0.03, rng.uniform(0.015, 0.05)], colour=tone, part=TAIL
      )
      spine = [hip, (hip + shoulder) / 2 + at(0, rng.uniform(-0.02, 0.06), 0), shoulder]
      _chain(canvas, view, spine, [belly * 0.95, belly, belly * 0.95], colour=colour, part=TRUNK)
      _chain(
        canvas,
        view,
        [shoulder + at(0.02, -0.04, 0), poll],
        [belly * 0.7, head * 0.5],
        colour=colour,
        part=TRUNK,
      )
  _coat(canvas, rng, colour, rng.choice(["plain", "plain", "spots", "patches", "stripes"]))
  ear_length, ear_spread = rng.uniform(0.05, 0.14), rng.uniform(0.2, 0.7)
  for side in (-near, near):
    if side == near:
      snout = head * rng.uniform(0.25, 0.4)
      _chain(canvas, view, [poll, muzzle], [head * 0.52, snout], colour=colour, part=HEAD)
    base = poll + at(-0.02, -0.05, side * 0.06)
    tip = base + ear_length * at(-0.3, -1.0, side * ear_spread)
    _chain(canvas, view, [base, tip], [0.035, 0.012], colour=shade(colour, 0.8), part=HEAD)
  eye = poll * 0.62 + muzzle * 0.38 + at(0, -0.045, near * head * 0.4)
  canvas.fill(ellipse(view.project(eye)[0], view.length(0.02), view.length(0.02), 12), (15, 12, 10), HEAD)
  nose = view.length(0.035)
  canvas.fill(ellipse(view.project(muzzle)[0], nose, nose, 12), shade(colour, 0.4), HEAD)
  points = {
    "muzzle": muzzle, "poll": poll, "withers": shoulder + at(0, -belly, 0), "rump": hip + at(0, -belly, 0),
    "tail_tip": tail, "near_front_hoof": hooves["near_front"], "near_hind_hoof": hooves["near_hind"],
    "far_front_hoof": hooves["far_front"], "far_hind_hoof": hooves["far_hind"],
  }  # fmt: skip
  return _finish(canvas, rng, {name: view.project(point)[0] for name, point in points.items()})


def draw_bird(rng: np.random.Generator, size: int) -> Drawing:
  """A perching bird of a random species and pose; one in five spreads its wings."""
  canvas, view = Canvas(draw_background(rng, size)), View(rng, size, turn=40)
  back, breast, cap = (random_colour(rng, value=(0.2, 0.95)) for _ in range(3))
  pitch = np.radians(rng.uniform(-5, 65))  # of the body, 0 is level
  ahead, up = at(np.cos(pitch), -np.sin(pitch), 0), at(-np.sin(pitch), -np.cos(pitch), 0)
  fat, neck, head = rng.uniform(0.15, 0.24), rng.uniform(0.05, 0.28), rng.uniform(0.11, 0.16)
  near = 1 if view.depth(at(0, 0, 1)) < view.depth(at(0, 0, -1)) else -1
  front, rear = 0.2 * ahead, -0.3 * ahead
  crown = front + neck * (0.5 * ahead + at(0.15, -0.85, 0)) + at(0.05, -0.1, 0)
  glance = rng.uniform(-0.6, 0.6)
  gaze = at(np.cos(glance), rng.uniform(-0.25, 0.3), np.sin(glance))
  beak = crown + gaze * (head * 0.7 + rng.uniform(0.07, 0.25))
  tail = rear - ahead * rng.uniform(0.15, 0.5) + up * rng.uniform(-0.08, 0.08)
  stance = fat + rng.uniform(0.1, 0.22)
  feet = [at(0.04 * (side > 0), stance, 0.07 * side) - 0.02 * ahead for side in (-1, 1)]
  for foot in feet:
    _chain(canvas, view, [-0.03 * ahead, foot], [0.05, 0.016], colour=shade(cap, 0.6), part=LIMBS)
  fan = rng.uniform(0.04, 0.1)
  _chain(canvas, view, [rear, tail], [0.07, fan], colour=shade(back, 0.8), part=TAIL)
  spread, lift = rng.random() < 0.2, rng.uniform(0.35, 0.55)
  tips = {}
  for side in (-near, near):
    root = 0.12 * ahead + at(0, 0, side * fat * 0.5)
    if spread:
      tips[side] = root + up * lift - ahead * 0.2 + at(0, 0, side * 0.4)
      joints, widths = [root, (root + tips[side]) / 2 + 0.08 * ahead, tips[side]], [0.12, 0.13, 0.03]
    else:
      tips[side] = -0.42 * ahead + up * 0.03 + at(0, 0, side * fat * 0.55)
      elbow = -0.12 * ahead + at(0, 0, side * fat * 0.7)
      joints, widths = [root, elbow, tips[side]], [0.09, 0.1, 0.025]
    if side == near:
      body, flank = [rear, -0.02 * up, front], [rear + 0.05 * up, 0.06 * up, front + 0.03 * up]
      _chain(canvas, view, body, [fat * 0.55, fat, fat * 0.85], colour=breast, part=TRUNK)
      _chain(canvas, view, flank, [fat * 0.5, fat * 0.8, fat * 0.75], colour=back, part=TRUNK)
      _chain(canvas, view, [front, crown], [fat * 0.75, head * 0.8], colour=breast, part=TRUNK)
      _coat(canvas, rng, breast, rng.choice(["plain", "plain", "spots"]))
    _chain(canvas, view, joints, widths, colour=jitter(shade(back, 0.7), rng), part=WINGS)
  _chain(canvas, view, [crown, beak], [0.04, 0.008], colour=shade(cap, 0.5), part=HEAD)
  radius = view.length(head)
  canvas.fill(ellipse(view.project(crown)[0], radius, radius, 24), cap, HEAD)
  eye = crown + gaze * head * 0.5 + at(0, -0.03, near * head * 0.5)
  canvas.fill(ellipse(view.project(eye)[0], view.length(0.022), view.length(0.022), 12), (10, 10, 10), HEAD)
  points = {
    "beak": beak, "eye": eye, "crown": crown + at(0, -head, 0), "breast": front - up * fat * 0.7,
    "back": up * fat * 0.85, "wing_tip": tips[near], "tail_tip": tail, "foot": feet[(near + 1) // 2],
  }  # fmt: skip
  return _finish(canvas, rng, {name: view.project(point)[0] for name, point in points.items()})


def _finish(canvas: Canvas, rng: np.random.Generator, points: dict[str, NDArray]) -> Drawing:
  """Adds light and noise to the picture, and marks landmarks outside it as hidden."""
  size, y = canvas.size, np.linspace(-1, 1, canvas.size)[:, None, None]
  light = (
    1 - rng.uniform(0, 0.25) * y + 0.08 * smooth_noise(rng, size, 6) + 0.04 * smooth_noise(rng, size, 40)
  )
  image = canvas.colours() * light + rng.normal(0, 4, (size, size, 3))
  inside = {name: bool(((p > 0) & (p < size - 1)).all()) for name, p in points.items()}
  landmarks = {name: (float(p[0]), float(p[1]), inside[name]) for name, p in points.items()}
  mask = np.asarray(canvas.person(), np.uint8)
  return Drawing(image.clip(0, 255).astype(np.uint8), mask, canvas.parts(), landmarks)


KINDS = {"quadrupeds": draw_quadruped, "birds": draw_bird}


def main() -> None:
  """Writes images/, saliency/, parts/ and landmarks.csv."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--kind", choices=sorted(KINDS), required=True)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--num", type=int, default=1000)
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args()
  rngs = (np.random.default_rng((arguments.seed, index)) for index in range(arguments.num))
  draw = KINDS[arguments.kind]
  write_folder(arguments.out, (draw(rng, int(rng.integers(128, 193))) for rng in rngs))


if __name__ == "__main__":
  main()
