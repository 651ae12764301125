"""Sums over all axes but the last, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scops_jax.models.reductions import channel_sum


def test_by_hand():
  np.testing.assert_array_equal(
    channel_sum(jnp.asarray([[[1.0, 10.0], [2.0, 20.0]], [[3.0, 30.0], [4.0, 40.0]]])), [10, 100]
  )


@pytest.mark.parametrize(
  "shape", [(5,), (1, 3), (7, 3), (2, 5, 4), (2, 33, 17, 8), (3, 2, 5, 3, 4), (2, 0, 3, 4)]
)
@pytest.mark.parametrize("compile_", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_is_the_sum(shape, compile_):
  x = np.random.default_rng(0).gamma(1.0, size=shape).astype(np.float32)
  found = compile_(channel_sum)(x)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, x.sum(tuple(range(x.ndim - 1)), np.float64), rtol=1e-6)


def test_large_sums_keep_their_digits():
  x = np.random.default_rng(0).gamma(1.0, size=(1, 513, 257, 4)).astype(np.float32)
  np.testing.assert_allclose(channel_sum(x), x.sum((0, 1, 2), np.float64), rtol=1e-6)


def test_bfloat16_is_summed_in_float32():
  x = jnp.ones((2, 40, 30, 3), jnp.bfloat16)  # bfloat16 would stop at 256
  found = channel_sum(x)
  assert found.dtype == jnp.bfloat16
  np.testing.assert_array_equal(found, jnp.full(3, 2400, jnp.bfloat16))


def test_gradient_is_one_everywhere():
  weights = jnp.asarray([2.0, -1.0, 0.5])
  gradient = jax.grad(lambda x: channel_sum(x) @ weights)(jnp.ones((2, 5, 4, 3)))
  np.testing.assert_array_equal(gradient, jnp.broadcast_to(weights, gradient.shape))


def test_vmap_sums_each():
  x = np.random.default_rng(0).standard_normal((4, 2, 5, 3)).astype(np.float32)
  np.testing.assert_allclose(jax.vmap(channel_sum)(x), x.sum((1, 2)), rtol=1e-5, atol=1e-6)
