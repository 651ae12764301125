"""Random and related colours of the drawn faces."""

import colorsys
from typing import TypeVar

import numpy as np

Colour = tuple[int, int, int]
T = TypeVar("T")


def random_colour(
  rng: np.random.Generator, saturation: tuple = (0.05, 0.7), value: tuple = (0.25, 0.95)
) -> Colour:
  """A random colour: hue, and saturation and value between their bounds, are uniform."""
  rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
  return tuple(round(255 * c) for c in rgb)  # type: ignore[return-value]


def shade(colour: Colour, factor: float) -> Colour:
  """A darker (factor < 1) or lighter (> 1) colour."""
  target = 0.0 if factor < 1 else 255.0
  amount = min(1.0, abs(1 - factor))
  return tuple(round(c + (target - c) * amount) for c in colour)  # type: ignore[return-value]


def mix(a: Colour, b: Colour, amount: float) -> Colour:
  """A blend of two colours: a for amount 0, b for 1."""
  return tuple(round(x + (y - x) * amount) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def jitter(colour: Colour, rng: np.random.Generator, deviation: float = 8.0) -> Colour:
  """The colour with a random change of each channel."""
  values = np.clip(np.asarray(colour) + rng.normal(0, deviation, 3), 0, 255)
  return tuple(int(v) for v in values)  # type: ignore[return-value]


def choice(rng: np.random.Generator, options: dict[T, float]) -> T:
  """One key of {option: probability weight}."""
  weights = np.asarray(list(options.values()), np.float64)
  return list(options)[int(rng.choice(len(weights), p=weights / weights.sum()))]
