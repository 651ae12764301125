"""Sums over all axes but the last, against NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scops_jax.kernels.compilation import jit
from scops_jax.kernels.reductions import add_bias, channel_sum

in_training = functools.partial(jit, training=True)


def test_by_hand():
  np.testing.assert_array_equal(
    channel_sum(jnp.asarray([[[1.0, 10.0], [2.0, 20.0]], [[3.0, 30.0], [4.0, 40.0]]])), [10, 100]
  )


@pytest.mark.parametrize(
  "shape", [(5,), (1, 3), (7, 3), (2, 5, 4), (2, 33, 17, 8), (3, 2, 5, 3, 4), (2, 0, 3, 4)]
)
@pytest.mark.parametrize("compile_", [lambda f: f, jax.jit, in_training], ids=["eager", "jit", "training"])
def test_is_the_sum(shape, compile_):
  x = np.random.default_rng(0).gamma(1.0, size=shape).astype(np.float32)
  found = compile_(channel_sum)(x)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, x.sum(tuple(range(x.ndim - 1)), np.float64), rtol=1e-6)


def test_large_sums_keep_their_digits():
  x = np.random.default_rng(0).gamma(1.0, size=(1, 513, 257, 4)).astype(np.float32)
  np.testing.assert_allclose(in_training(channel_sum)(x), x.sum((0, 1, 2), np.float64), rtol=1e-6)


@pytest.mark.parametrize("compile_", [jax.jit, in_training], ids=["jit", "training"])
def test_bfloat16_is_summed_in_float32(compile_):
  x = jnp.ones((2, 40, 30, 3), jnp.bfloat16)  # bfloat16 would stop at 256
  found = compile_(channel_sum)(x)
  assert found.dtype == jnp.bfloat16
  np.testing.assert_array_equal(found, jnp.full(3, 2400, jnp.bfloat16))


@pytest.mark.parametrize("compile_", [jax.jit, in_training], ids=["jit", "training"])
def test_gradient_is_one_everywhere(compile_):
  weights = jnp.asarray([2.0, -1.0, 0.5])
  gradient = compile_(jax.grad(lambda x: channel_sum(x) @ weights))(jnp.ones((2, 5, 4, 3)))
  np.testing.assert_array_equal(gradient, jnp.broadcast_to(weights, gradient.shape))


@pytest.mark.parametrize("compile_", [jax.jit, in_training], ids=["jit", "training"])
def test_vmap_sums_each(compile_):
  x = np.random.default_rng(0).standard_normal((4, 2, 5, 3)).astype(np.float32)
  np.testing.assert_allclose(compile_(jax.vmap(channel_sum))(x), x.sum((1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("compile_", [lambda f: f, jax.jit, in_training], ids=["eager", "jit", "training"])
@pytest.mark.parametrize("shape", [(7, 3), (2, 9, 5, 4)])
def test_bias_is_added_and_its_gradient_is_the_channels_sum(shape, compile_):
  rng = np.random.default_rng(0)
  x, weight = rng.standard_normal((2, *shape)).astype(np.float32)
  bias = rng.standard_normal(shape[-1:]).astype(np.float32)
  np.testing.assert_array_equal(compile_(add_bias)(x, bias), x + bias)
  gradients = compile_(jax.grad(lambda x, bias: jnp.vdot(add_bias(x, bias), weight), (0, 1)))(x, bias)
  np.testing.assert_array_equal(gradients[0], weight)
  expected = weight.sum(tuple(range(weight.ndim - 1)), np.float64)
  np.testing.assert_allclose(gradients[1], expected, rtol=1e-5, atol=1e-6)
