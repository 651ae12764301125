"""Labels at any size, compared with resizing all maps and taking the likeliest channel."""

import numpy as np
import pytest

from scops_jax.prediction import labels
from scops_jax.prediction.labels import label_pixels, resize_maps


def soft_maps(height, width, channels=4, seed=0):
  """Smooth maps that sum to 1."""
  probs = np.exp(3 * np.random.default_rng(seed).standard_normal((4, 5, channels)))
  return resize_maps(probs / probs.sum(-1, keepdims=True), height, width)


@pytest.mark.parametrize(
  ("height", "width"), [(16, 20), (97, 61), (40, 20), (7, 9), (16, 300), (1, 1), (2, 1), (31, 39)]
)
def test_labels_areas_and_means_are_those_of_the_resized_maps(height, width, monkeypatch):
  monkeypatch.setattr(labels, "_BAND", 100)  # several bands
  probs = soft_maps(16, 20)
  full = resize_maps(probs, height, width)
  result = label_pixels(probs, height=height, width=width)
  assert result.labels.dtype == np.uint8
  chosen = np.take_along_axis(full, result.labels[..., None].astype(int), -1)[..., 0]
  # Rounding decides between channels that are equally likely.
  np.testing.assert_allclose(chosen, full.max(-1), atol=1e-6)
  np.testing.assert_array_equal(result.areas, np.bincount(result.labels.ravel(), minlength=4))
  for label in range(4):
    pixels = chosen[result.labels == label]
    mean = pixels.mean() if pixels.size else np.nan
    np.testing.assert_allclose(result.mean_probs[label], mean, rtol=1e-5)


def test_by_hand():
  # Two columns with a part of 0.9 and 0.2. Pixel i of 8 lies at (i + 1/2) / 4 - 1/2, but at
  # least at 0 and at most at 1.
  probs = np.zeros((2, 2, 2))
  probs[..., 1] = [[0.9, 0.2], [0.9, 0.2]]
  probs[..., 0] = 1 - probs[..., 1]
  expected = [0.9, 0.9, 0.8125, 0.6375, 0.4625, 0.2875, 0.2, 0.2]
  np.testing.assert_allclose(resize_maps(probs, 3, 8)[0, :, 1], expected, atol=1e-6)
  result = label_pixels(probs, height=3, width=8)
  assert result.labels.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]] * 3
  assert result.areas.tolist() == [12, 12]
  means = [1 - np.mean(expected[4:]), np.mean(expected[:4])]
  np.testing.assert_allclose(result.mean_probs, means, atol=1e-6)


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
