"""The dense CRF against its exact O(N²) form, and what must hold whatever the approximation."""

import jax.numpy as jnp
import numpy as np
import pytest

from scops_jax.dense_crf import REFERENCE_SIZE, dense_crf

HEIGHT, WIDTH, CHANNELS = 20, 24, 4
OPTIONS = {
  "num_iterations": 4,
  # Standard deviations of 1 and 6 pixels at this size.
  "smoothness_sigma": 1.0 * REFERENCE_SIZE / WIDTH,
  "appearance_sigma": 6.0 * REFERENCE_SIZE / WIDTH,
}


def exact_crf(
  probs,
  image,
  *,
  num_iterations,
  smoothness_sigma,
  appearance_sigma,
  smoothness_weight=3.0,
  appearance_weight=10.0,
  color_sigma=13.0,
  **approximation,
):
  """Mean field with full kernel matrices, float64, of one image [H, W, K+1]; written from the equations."""
  del approximation
  height, width, channels = probs.shape
  scale = max(height, width) / REFERENCE_SIZE
  points = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1).reshape(-1, 2)
  colors = image.reshape(-1, 3).astype(np.float64)

  def squared(x):
    return ((x[:, None] - x) ** 2).sum(-1)

  def normalized(kernel):
    root = np.sqrt(kernel.sum(1))
    return kernel / root[:, None] / root

  smooth = normalized(np.exp(-squared(points) / (2 * (smoothness_sigma * scale) ** 2)))
  appearance = normalized(
    np.exp(-squared(points) / (2 * (appearance_sigma * scale) ** 2) - squared(colors) / (2 * color_sigma**2))
  )
  unary = np.log(np.maximum(probs.reshape(-1, channels).astype(np.float64), 1e-5))
  marginals = np.exp(unary) / np.exp(unary).sum(1, keepdims=True)
  for _ in range(num_iterations):
    scores = unary + smoothness_weight * smooth @ marginals + appearance_weight * appearance @ marginals
    marginals = np.exp(scores - scores.max(1, keepdims=True))
    marginals /= marginals.sum(1, keepdims=True)
  return marginals.reshape(probs.shape)


def softmax(logits):
  exps = np.exp(logits - logits.max(-1, keepdims=True))
  return exps / exps.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def scenes():
  """Three images, uncertain probabilities that follow four regions, and the regions.

  Four noisy colours that are the regions'; colours that change steadily and say nothing; one colour.
  """
  rng = np.random.default_rng(0)
  rows, columns = np.mgrid[:HEIGHT, :WIDTH]
  labels = (rows > 9 + 3 * np.sin(columns / 4)).astype(int) + 2 * (columns > 13)
  palette = np.array([[200, 60, 50], [40, 90, 200], [90, 180, 70], [220, 210, 190]])
  noisy = palette[labels] + rng.normal(0, 6, (HEIGHT, WIDTH, 3))
  steady = np.stack([6 * rows, 6 * columns, 3 * (rows + columns)], -1)
  images = np.clip(np.stack([noisy, steady, np.full_like(steady, 130)]), 0, 255).astype(np.uint8)
  logits = rng.normal(0, 1.2, (3, HEIGHT, WIDTH, CHANNELS)) + 1.2 * np.eye(CHANNELS)[labels]
  return images, softmax(logits).astype(np.float32), labels


def errors(found, expected):
  """Returns the mean absolute error of the probabilities and the fraction of pixels whose label differs."""
  return np.abs(found - expected).mean(), (found.argmax(-1) != expected.argmax(-1)).mean()


def test_the_smoothness_term_is_exact_up_to_its_truncation(scenes):
  images, probs, _ = scenes
  options = OPTIONS | {"appearance_weight": 0.0}
  found = dense_crf(probs, images, **options)
  np.testing.assert_allclose(found[0], exact_crf(probs[0], images[0], **options), atol=2e-4)


def test_the_appearance_term_comes_close_to_the_exact_one(scenes):
  images, probs, labels = scenes
  found = np.asarray(dense_crf(probs, images, **OPTIONS))
  noisy, steady, constant = (
    errors(found[i], exact_crf(probs[i], images[i], **OPTIONS)) for i in range(len(images))
  )
  # Mean error of the probabilities, fraction of other labels. Next to none where few colours stand for all:
  assert max(noisy) < 1e-4
  # The spatial part alone:
  assert max(constant) < 0.005
  # 64 of 480 colours, all different:
  assert max(steady) < 0.01
  # And it is worth having: the regions of the image come out.
  assert (probs[0].argmax(-1) != labels).mean() > 0.3
  assert (found[0].argmax(-1) != labels).mean() < 0.02


def test_results_do_not_depend_on_the_order_of_images_or_labels(scenes):
  images, probs, _ = scenes
  found = np.asarray(dense_crf(probs, images, **OPTIONS))
  rolled = dense_crf(np.roll(probs, 1, 0), np.roll(images, 1, 0), **OPTIONS)
  np.testing.assert_allclose(rolled, np.roll(found, 1, 0), atol=1e-5)
  order = [2, 0, 3, 1]
  np.testing.assert_allclose(dense_crf(probs[..., order], images, **OPTIONS), found[..., order], atol=1e-5)


def test_certain_probabilities_and_different_colours_stay_finite(scenes):
  _, probs, labels = scenes
  certain = np.broadcast_to(np.eye(CHANNELS, dtype=np.float32)[labels], probs.shape)
  unlike = np.random.default_rng(1).integers(0, 256, (3, HEIGHT, WIDTH, 3)).astype(np.uint8)
  for given in (certain, probs):
    found = np.asarray(dense_crf(given, unlike, **OPTIONS))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(-1), 1.0, atol=1e-5)
  # Nothing in the image speaks against what is certain.
  found = dense_crf(certain, unlike, **OPTIONS)
  np.testing.assert_array_equal(found.argmax(-1), np.broadcast_to(labels, probs.shape[:3]))


def test_one_part_eager_equals_jit_and_the_dtype_is_kept():
  rng = np.random.default_rng(0)
  probs = softmax(rng.normal(size=(2, 5, 3, 2))).astype(np.float16)
  images = rng.uniform(0, 255, (2, 5, 3, 3)).astype(np.float32)
  options = {"num_iterations": 1, "num_colors": 4}
  found = dense_crf(probs, images, **options)
  assert found.dtype == np.float16
  eager = dense_crf.__wrapped__(jnp.asarray(probs), jnp.asarray(images), **options)
  np.testing.assert_allclose(found, eager, atol=1e-3)


@pytest.mark.parametrize(
  ("probs", "images", "options", "error", "message"),
  [
    (np.ones((1, 4, 6, 3), int), None, {}, TypeError, "floating-point"),
    (np.ones((1, 4, 6, 1), np.float32), None, {}, ValueError, "K >= 1"),
    (None, np.zeros((1, 6, 4, 3), np.uint8), {}, ValueError, "images must be"),
    (None, np.zeros((1, 4, 6, 3), np.int32), {}, ValueError, "int32"),
    (None, None, {"num_iterations": 0}, ValueError, "num_iterations=0"),
    (None, None, {"appearance_weight": -1.0}, ValueError, "must not be negative"),
    (None, None, {"color_sigma": 0.0}, ValueError, "must be positive"),
  ],
)
def test_bad_arguments_raise(probs, images, options, error, message):
  probs = np.full((1, 4, 6, 3), 1 / 3, np.float32) if probs is None else probs
  images = np.zeros((1, 4, 6, 3), np.uint8) if images is None else images
  with pytest.raises(error, match=message):
    dense_crf(probs, images, **options)
