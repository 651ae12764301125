"""Weights from a formula, with which the recorded activations of the networks were computed.

Element i (row-major) of tensor j of a state dict is a number u(i, j) in [-1, 1], scaled according to the kind
of tensor. Computed in float64, rounded to float32.
"""

import json

import numpy as np

from tests import oracle


def architecture(name):
  """Returns the entries of a network's state dict in order: "key", "shape", and "visits" of parameters."""
  return json.loads((oracle.GOLDEN / "state_dict_keys.json").read_text(encoding="utf-8"))[name]


def fill(shapes, rule, *, constants, seed):
  """Returns a state dict of float32 arrays.

  Args:
    shapes: shape by key of the floating-point tensors, in the order of the state dict.
    rule: "sin", u = sin(a i + b j + c), or "hash", u from an integer hash of i and j.
    constants: (a, b, c) of "sin".
    seed: of "hash".
  """
  arrays = {}
  for j, (key, shape) in enumerate(shapes.items()):
    i = np.arange(int(np.prod(shape)), dtype=np.uint32)
    if rule == "sin":
      a, b, c = constants
      u = np.sin(a * i + b * j + c)
    else:
      u = _hash(i, j, seed) / 2.0**31 - 1
    arrays[key] = _scaled(u, key, shape, rule).astype(np.float32).reshape(shape)
  return arrays


def _hash(i, j, seed):
  """Mixes 32-bit integers; products wrap around."""
  h = i * np.uint32(2654435761) + np.uint32((40503 * j + seed) % 2**32)
  h ^= h >> np.uint32(16)
  h *= np.uint32(2246822519)
  h ^= h >> np.uint32(13)
  h *= np.uint32(3266489917)
  h ^= h >> np.uint32(16)
  return h


def _scaled(u, key, shape, rule):
  if len(shape) > 1:
    fan_in = np.prod(shape[1:])
    return u / np.sqrt(fan_in) if rule == "sin" else u * np.sqrt(6 / fan_in)
  if key.endswith("running_var"):
    return 1 + 0.5 * abs(u)
  return 1 + 0.1 * u if key.endswith("weight") else 0.1 * u
