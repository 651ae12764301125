"""The colour jitter against recorded and reference values."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scops_jax import appearance
from scops_jax.config import default_config
from tests import oracle

IMAGES = np.random.default_rng(0).uniform(0, 255, (3, 4, 6, 3)).astype(np.float32)


def test_matches_the_recipe_on_bytes():
  recorded = oracle.golden("color_jitter")
  factors = np.stack([recorded[name] for name in ("brightness", "contrast", "saturation")], axis=1)
  jitter = appearance.ColorJitter(
    factors.astype(np.float32), recorded["hue"].astype(np.float32), recorded["order"]
  )
  images = oracle.nhwc(recorded["quantised_uint8"]).astype(np.float32)
  difference = abs(jax.jit(appearance.apply_jitter)(images, jitter) - oracle.nhwc(recorded["jittered_uint8"]))
  # The recording rounds to 8 bits after each operation, its hue and saturation channels included.
  assert difference.max() < 10
  assert difference.mean() < 1.5


def test_every_order_matches_the_reference():
  orders = np.array(list(itertools.permutations(range(4))))
  rng = np.random.default_rng(1)
  images = rng.uniform(0, 255, (24, 3, 4, 3)).astype(np.float32)
  factors = rng.uniform(0.6, 1.4, (24, 3)).astype(np.float32)
  hue = rng.uniform(-0.5, 0.5, 24).astype(np.float32)
  jittered = jax.jit(appearance.apply_jitter)(images, appearance.ColorJitter(factors, hue, orders))
  for i, order in enumerate(orders):
    expected = oracle.jitter(images[i], *factors[i].astype(float), float(hue[i]), order)
    np.testing.assert_allclose(jittered[i], expected, atol=5e-3, err_msg=str(order))


def test_neutral_jitter_changes_nothing():
  options = default_config().appearance
  options.update(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
  images = np.concatenate([IMAGES, np.zeros_like(IMAGES[:1]), np.full_like(IMAGES[:1], 255)])
  jittered = jax.jit(lambda x: appearance.jitter_colors(jax.random.key(0), x, options))(images)
  np.testing.assert_allclose(jittered, images, atol=1e-3)


def test_draws_keep_their_ranges_and_use_every_order():
  options = default_config().appearance
  factors, hue, order = jax.jit(lambda key: appearance.sample_jitter(key, 4000, options))(jax.random.key(0))
  for column, spread in enumerate((0.3, 0.3, 0.2)):
    values = np.asarray(factors[:, column])
    assert 1 - spread - 1e-6 <= values.min() < 1 - 0.98 * spread
    assert 1 + 0.98 * spread < values.max() <= 1 + spread + 1e-6
  assert 0.196 < abs(np.asarray(hue)).max() <= 0.2
  orders, counts = np.unique(order, axis=0, return_counts=True)
  assert len(orders) == 24
  assert counts.min() > 0.7 * 4000 / 24


def test_factors_are_never_negative():
  options = default_config().appearance
  options.brightness = 3.0
  assert appearance.sample_jitter(jax.random.key(0), 100, options).factors.min() == 0.0


def test_eager_compiled_and_mapped_agree():
  options = default_config().appearance

  def jitter(key, images):
    return appearance.jitter_colors(key, images, options)

  key = jax.random.key(1)
  eager = jitter(key, IMAGES)
  assert eager.shape == IMAGES.shape
  assert eager.min() >= 0
  assert eager.max() <= 255
  np.testing.assert_allclose(jax.jit(jitter)(key, IMAGES), eager, atol=1e-2)
  np.testing.assert_allclose(jax.jit(jax.vmap(jitter))(key[None], IMAGES[None])[0], eager, atol=1e-2)


def test_bfloat16_images_keep_their_dtype():
  options = default_config().appearance
  jitter = jax.jit(lambda x: appearance.jitter_colors(jax.random.key(0), x, options))
  jittered = jitter(jnp.asarray(IMAGES, jnp.bfloat16))
  assert jittered.dtype == jnp.bfloat16
  assert np.isfinite(jittered.astype(jnp.float32)).all()


def test_bad_input_is_named():
  with pytest.raises(ValueError, match=r"images must be \[B, H, W, 3\].*\(3, 4, 6, 1\)"):
    appearance.jitter_colors(jax.random.key(0), IMAGES[..., :1], default_config().appearance)
  with pytest.raises(TypeError, match=r"images must be a floating-point .* uint8"):
    appearance.jitter_colors(jax.random.key(0), IMAGES.astype(np.uint8), default_config().appearance)
