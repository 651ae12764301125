"""The head's coordinate frame, and outlines to draw in it."""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Points = NDArray[np.float64]  # [N, 2], (x, y)


@dataclass(frozen=True)
class Head:
  """Pose and shape of a head.

  Its own frame: origin between the ears, half its width is 1, y down, z towards the viewer.
  """

  centre: tuple[float, float]  # pixels
  scale: float  # pixels per unit
  roll: float  # radians, clockwise in the image
  yaw: float  # radians, positive turns the face to the image's right
  pitch: float  # radians, positive turns it down
  top: float  # height of the skull above the origin
  chin: float  # height of the chin below it
  jaw: float  # exponent of the lower outline: small is square, large is pointed

  def surface(self, points: ArrayLike, bulge: ArrayLike = 0.0) -> Points:
    """Pixels of points on the front of the turned head, `bulge` units above an ellipsoid."""
    u, v = np.asarray(points, np.float64).T
    z = 0.9 * np.sqrt(np.maximum(0.0, 1 - u * u - v * v / 2.25)) + bulge
    (sin_yaw, cos_yaw), (sin_pitch, cos_pitch) = self._turn
    return self._to_pixels(u * cos_yaw + z * sin_yaw, v * cos_pitch + (z * cos_yaw - u * sin_yaw) * sin_pitch)

  def plane(self, points: ArrayLike, z: float = 0.0) -> Points:
    """Pixels of points in a plane at depth z, which does not narrow when the head turns."""
    u, v = np.asarray(points, np.float64).T
    return self._to_pixels(u + z * self._turn[0][0], v + z * self._turn[1][0])

  def outline(self, start: float = 0.0, stop: float = 360.0, grow: float = 1.0) -> Points:
    """Points of the silhouette in the head's frame, between two angles (degrees, 0 right, 90 chin)."""
    t = np.deg2rad(np.linspace(start, stop, max(3, round(abs(stop - start) / 8))))
    x, y = np.cos(t), np.sin(t)
    lower = np.maximum(y, 0.0)
    x = np.where(y > 0, np.sign(x) * np.abs(x) ** self.jaw, x) + 0.22 * np.sin(self.yaw) * lower**2
    return grow * np.stack([x, np.where(y > 0, self.chin, self.top) * y], axis=-1)

  def to_head(self, x: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
    """The head-frame coordinates of pixels; the inverse of `plane` at z = 0."""
    x, y = (x - self.centre[0]) / self.scale, (y - self.centre[1]) / self.scale
    cos, sin = np.cos(self.roll), np.sin(self.roll)
    return x * cos + y * sin, y * cos - x * sin

  @cached_property
  def _turn(self) -> tuple[tuple[float, float], tuple[float, float]]:
    """Sine and cosine of yaw and of pitch."""
    return (math.sin(self.yaw), math.cos(self.yaw)), (math.sin(self.pitch), math.cos(self.pitch))

  def _to_pixels(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> Points:
    cos, sin = self.scale * math.cos(self.roll), self.scale * math.sin(self.roll)
    pixels = np.empty((len(x), 2))
    pixels[:, 0] = self.centre[0] + x * cos - y * sin
    pixels[:, 1] = self.centre[1] + x * sin + y * cos
    return pixels


@lru_cache
def _unit_circle(count: int) -> Points:
  t = np.linspace(0, 2 * np.pi, count, endpoint=False)
  return np.stack([np.cos(t), np.sin(t)], axis=-1)


def ellipse(centre: ArrayLike, radius_x: float, radius_y: float, count: int = 24) -> Points:
  """Points of an ellipse."""
  return np.asarray(centre) + _unit_circle(count) * (radius_x, radius_y)


def curve(points: ArrayLike, steps: int = 6) -> Points:
  """An open Catmull-Rom curve through points."""
  p = np.asarray(points, np.float64)
  p = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
  t = (np.arange(steps) / steps)[:, None]
  a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
  path = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
  return np.concatenate([path.reshape(-1, 2), p[-2:-1]])


def mirrored(points: ArrayLike, side: int) -> Points:
  """The points as they are for the image's right (side 1), mirrored for its left (side -1)."""
  return np.asarray(points, np.float64) * (side, 1)


def between(line: ArrayLike, other: ArrayLike) -> Points:
  """The outline of the area between two lines that run the same way."""
  return np.concatenate([np.asarray(line, np.float64), np.asarray(other, np.float64)[::-1]])
