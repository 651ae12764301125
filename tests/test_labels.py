"""Labels at any size, compared with resizing all maps and taking the likeliest channel."""

import numpy as np
import pytest

from scops_jax import geometry
from scops_jax.prediction import labels


def label_pixels(probs, *, height, width):
  return labels.label_pixels(probs, probs.argmax(-1).astype(np.uint8), height=height, width=width)


def soft_maps(height, width, channels=4, seed=0):
  """Smooth maps with large uniform regions and some mixed squares."""
  rng = np.random.default_rng(seed)
  coarse = rng.standard_normal((4, 5, channels)) * 3
  rows = geometry.interpolation_matrix(4, height)
  columns = geometry.interpolation_matrix(5, width)
  logits = np.einsum("Hh,Ww,hwc->HWc", rows, columns, coarse)
  probs = np.exp(logits)
  return probs / probs.sum(-1, keepdims=True)


def resized(probs, height, width):
  rows = geometry.interpolation_matrix(probs.shape[0], height)
  columns = geometry.interpolation_matrix(probs.shape[1], width)
  return np.einsum("Hh,Ww,hwc->HWc", rows, columns, probs)


@pytest.mark.parametrize(
  ("height", "width"), [(16, 20), (97, 61), (40, 20), (7, 9), (16, 300), (1, 1), (2, 1), (31, 39)]
)
def test_labels_areas_and_means_are_those_of_the_resized_maps(height, width, monkeypatch):
  monkeypatch.setattr(labels, "_CHUNK", 100)  # several chunks
  probs = soft_maps(16, 20)
  full = resized(probs, height, width)
  expected = full.argmax(-1)
  result = label_pixels(probs, height=height, width=width)
  assert result.labels.dtype == np.uint8
  np.testing.assert_array_equal(result.labels, expected)
  np.testing.assert_array_equal(result.areas, np.bincount(expected.ravel(), minlength=4))
  for label in range(4):
    pixels = full[..., label][expected == label]
    mean = pixels.mean() if pixels.size else np.nan
    np.testing.assert_allclose(result.mean_probs[label], mean, rtol=1e-12)


def test_noise_in_float32():
  probs = np.random.default_rng(1).dirichlet(np.ones(9), (12, 11)).astype(np.float32)
  full = resized(probs.astype(np.float64), 50, 64)
  result = label_pixels(probs, height=50, width=64)
  chosen = np.take_along_axis(full, result.labels[..., None].astype(int), -1)[..., 0]
  # Rounding decides between channels that are equally likely.
  np.testing.assert_allclose(chosen, full.max(-1), atol=1e-6)
  assert (result.labels != full.argmax(-1)).mean() < 1e-3


def test_by_hand():
  # Two columns; the part's probability falls from 0.9 to 0.2, below 0.5 from 4/7 of the way on.
  probs = np.zeros((2, 2, 2))
  probs[..., 1] = [[0.9, 0.2], [0.9, 0.2]]
  probs[..., 0] = 1 - probs[..., 1]
  result = label_pixels(probs, height=3, width=8)
  assert result.labels.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]] * 3
  assert result.areas.tolist() == [12, 12]
  # Pixel i has 0.9 - 0.1 i.
  np.testing.assert_allclose(result.mean_probs, [(0.5 + 0.6 + 0.7 + 0.8) / 4, (0.9 + 0.8 + 0.7 + 0.6) / 4])


def test_a_label_without_pixels_has_no_mean():
  probs = np.zeros((3, 3, 3))
  probs[..., 2] = 1
  for size in (3, 10):
    result = label_pixels(probs, height=size, width=size)
    assert result.areas.tolist() == [0, 0, size * size]
    np.testing.assert_array_equal(result.mean_probs, [np.nan, np.nan, 1])


def test_255_parts():
  probs = np.zeros((2, 2, 256), np.float32)
  probs[..., 255] = 1
  assert (label_pixels(probs, height=5, width=4).labels == 255).all()


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 3), (4, 4, 257), (2, 4, 4, 3)])
def test_other_shapes_raise(shape):
  with pytest.raises(ValueError, match="expected probs"):
    label_pixels(np.zeros(shape), height=4, width=4)


def test_an_empty_size_raises():
  with pytest.raises(ValueError, match="at least 1"):
    label_pixels(np.zeros((2, 2, 2)), height=0, width=4)
