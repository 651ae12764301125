"""An independent float64 NumPy reference of the maths, written plainly from the equations; recorded arrays.

Nothing here imports the package under test. Loops over pixels are meant: use it on small arrays.
"""

import colorsys
import math
import pathlib

import numpy as np

GOLDEN = pathlib.Path(__file__).parent / "golden"


def golden(name):
  """Returns the recorded arrays of golden/NAME.npz by key."""
  with np.load(GOLDEN / f"{name}.npz") as arrays:
    return dict(arrays)


def nhwc(array):
  """Moves the channels of a recorded array last."""
  return np.moveaxis(array, 1, -1)


def softmax(logits):
  shifted = np.exp(logits - logits.max(-1, keepdims=True))
  return shifted / shifted.sum(-1, keepdims=True)


def grid(height, width):
  points = np.zeros((height, width, 2))
  for i in range(height):
    for j in range(width):
      points[i, j] = (2 * j / (width - 1) - 1, 2 * i / (height - 1) - 1)
  return points


def densities(probs, epsilon):
  parts = np.asarray(probs, np.float64)[..., 1:] + epsilon
  return parts / parts.sum(axis=(1, 2), keepdims=True)


def part_centers(probs, epsilon=1e-3):
  density = densities(probs, epsilon)
  points = grid(*density.shape[1:3])
  return (density[..., None] * points[None, :, :, None]).sum(axis=(1, 2))


def concentration(probs, epsilon=1e-3):
  density = densities(probs, epsilon)
  points = grid(*density.shape[1:3])
  offsets = points[None, :, :, None] - part_centers(probs, epsilon)[:, None, None]
  return ((offsets**2).sum(-1) * density).sum() / len(density)


def equivariance(logits, target_logits):
  target = softmax(np.asarray(target_logits, np.float64))
  return (target * np.log(target / softmax(np.asarray(logits, np.float64)))).sum(-1).mean()


def orthonormality(basis, epsilon=1e-6):
  total = 0.0
  for k, left in enumerate(np.asarray(basis, np.float64)):
    for m, right in enumerate(np.asarray(basis, np.float64)):
      norms = math.sqrt(left @ left + epsilon) * math.sqrt(right @ right + epsilon)
      total += (left @ right / norms - (k == m)) ** 2
  return total


def background(logits, saliency):
  absent = softmax(np.asarray(logits, np.float64))[..., 0]
  return -np.mean((1 - saliency) * np.log(absent) + saliency * np.log(1 - absent))


def balance(probs, epsilon=1e-3):
  areas = (np.asarray(probs, np.float64)[..., 1:] + epsilon).sum(axis=(1, 2))
  shares = areas / areas.sum(axis=1, keepdims=True)
  return -np.log(shares.shape[1] * shares).mean()


def potts(probs, images):
  probs, images = np.asarray(probs, np.float64), np.asarray(images, np.float64)
  costs = []
  for maps, colors in zip(probs, images, strict=True):
    height, width = maps.shape[:2]
    pairs = [((y, x), (y + 1, x)) for y in range(height - 1) for x in range(width)]
    pairs += [((y, x), (y, x + 1)) for y in range(height) for x in range(width - 1)]
    if not pairs:
      return 0.0
    contrasts = [((colors[u] - colors[v]) ** 2).sum() for u, v in pairs]
    scale = 2 * np.mean(contrasts) or 1.0
    costs += [
      math.exp(-contrast / scale) * (1 - maps[u] @ maps[v])
      for contrast, (u, v) in zip(contrasts, pairs, strict=True)
    ]
  return np.mean(costs)


def semantic_consistency(probs, basis, features, saliency):
  """Returns the loss and its gradients to the parts' probabilities [B, H, W, K] and to the basis."""
  parts = np.asarray(probs, np.float64)[..., 1:]
  basis = np.asarray(basis, np.float64)
  target = np.concatenate([resize(v, *parts.shape[1:3]) for v in features], axis=-1)
  residual = np.asarray(saliency, np.float64)[..., None] * target - parts @ basis
  grad_basis = np.einsum("bhwk,bhwc->kc", parts, residual)
  return (residual**2).mean(), -2 * residual @ basis.T / residual.size, -2 * grad_basis / residual.size


def assigned_semantic_consistency(probs, basis, features, saliency):
  parts, basis = np.asarray(probs, np.float64)[..., 1:], np.asarray(basis, np.float64)
  values = np.concatenate([resize(v, *parts.shape[1:3]) for v in features], axis=-1)
  values *= np.asarray(saliency, np.float64)[..., None]
  error = ((1 - parts.sum(axis=-1)) * (values**2).sum(axis=-1)).sum()
  for k, row in enumerate(basis):
    error += (parts[..., k] * ((values - row) ** 2).sum(axis=-1)).sum()
  return error / (values**2).sum()


def sample(image, x, y, padding="zeros"):
  """Returns the values of an image [H, W, C] at the pixel position (x, y), bilinearly."""
  height, width, channels = image.shape
  if padding == "border":
    x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
  value = np.zeros(channels)
  for row in (math.floor(y), math.floor(y) + 1):
    for column in (math.floor(x), math.floor(x) + 1):
      if 0 <= row < height and 0 <= column < width:
        value += (1 - abs(y - row)) * (1 - abs(x - column)) * image[row, column]
  return value


def warp(images, points, padding="zeros"):
  images = np.asarray(images, np.float64)
  _, height, width, channels = images.shape
  output = np.zeros((*points.shape[:3], channels))
  for b, i, j in np.ndindex(*points.shape[:3]):
    x, y = (points[b, i, j].astype(np.float64) + 1) / 2 * (width - 1, height - 1)
    output[b, i, j] = sample(images[b], x, y, padding)
  return output


def resize(images, height, width):
  images = np.asarray(images, np.float64)
  output = np.zeros((len(images), height, width, images.shape[-1]))
  for b, i, j in np.ndindex(*output.shape[:3]):
    y = i * (images.shape[1] - 1) / max(height - 1, 1)
    x = j * (images.shape[2] - 1) / max(width - 1, 1)
    output[b, i, j] = sample(images[b], x, y)
  return output


def thin_plate(source, height, width):
  """Returns the grid [H, W, 2] of one set of source points [25, 2], by solving the spline's linear system."""
  values = np.linspace(-1, 1, 5)
  lattice = np.array([(x, y) for x in values for y in values])

  def kernel(point):
    distances = np.hypot(*(lattice - point).T)
    return np.array([r * r * math.log(r) if r > 0 else 0.0 for r in distances])

  border = np.column_stack([np.ones(25), lattice])
  system = np.block([[np.array([kernel(p) for p in lattice]), border], [border.T, np.zeros((3, 3))]])
  weights = np.linalg.solve(system, np.concatenate([source, np.zeros((3, 2))]))
  points = grid(height, width)
  output = np.zeros_like(points)
  for i, j in np.ndindex(height, width):
    output[i, j] = np.concatenate([kernel(points[i, j]), [1.0], points[i, j]]) @ weights
  return output


def jitter(image, brightness, contrast, saturation, hue, order):
  """Applies four colour operations to one image [H, W, 3], 0..255, in the given order, pixel by pixel."""
  image = np.asarray(image, np.float64).copy()
  for operation in order:
    grey = image @ (0.299, 0.587, 0.114)
    if operation == 0:
      image = brightness * image
    elif operation == 1:
      image = contrast * image + (1 - contrast) * grey.mean()
    elif operation == 2:
      image = saturation * image + (1 - saturation) * grey[..., None]
    else:
      for i, j in np.ndindex(*image.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*(image[i, j] / 255))
        image[i, j] = np.multiply(colorsys.hsv_to_rgb((h + hue) % 1, s, v), 255)
    image = np.clip(image, 0, 255)
  return image
