"""Batch normalisation of several passes in one batch, as GPUs and TPUs have it, against one at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scops_jax.kernels import compilation
from scops_jax.kernels.batch_norm import normalize_passes
from scops_jax.kernels.platforms import targeting
from scops_jax.models.layers import BatchNorm

EPSILON = 1e-5


def arrays(passes=2, mean=3.0):
  rng = np.random.default_rng(0)
  x = rng.normal(mean, 2.0, (3 * passes, 5, 4, 6)).astype(np.float32)
  x[::passes] *= 2.0  # the first pass's moments differ
  scale, bias = rng.normal(1.0, 0.3, (2, 6)).astype(np.float32)
  return x, scale, bias


def by_hand(x, scale, bias, passes):
  """Each pass alone, in two passes over its values."""
  y = jnp.zeros_like(x)
  for number in range(passes):
    values = x[number::passes]
    mean = values.mean((0, 1, 2))
    variance = jnp.square(values - mean).mean((0, 1, 2))
    y = y.at[number::passes].set((values - mean) / jnp.sqrt(variance + EPSILON) * scale + bias)
  return y


@pytest.mark.parametrize("passes", [1, 2, 3])
@pytest.mark.parametrize("training", [False, True])
def test_values_and_gradients_are_those_of_each_pass_alone(passes, training):
  x, scale, bias = arrays(passes)
  weight = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
  shift = np.full(6, 2.5, np.float32)

  def found(x, scale, bias):
    return jnp.sum(weight * jnp.sin(normalize_passes(x, scale, bias, shift, EPSILON, passes, None)[0]))

  def expected(x, scale, bias):
    return jnp.sum(weight * jnp.sin(by_hand(x, scale, bias, passes)))

  compiled = compilation.jit(jax.value_and_grad(found, (0, 1, 2)), training=training)
  value, gradients = compiled(x, scale, bias)
  wanted, wanted_gradients = jax.jit(jax.value_and_grad(expected, (0, 1, 2)))(x, scale, bias)
  assert value == pytest.approx(float(wanted), rel=1e-4)
  for a, b in zip(gradients, wanted_gradients, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_the_shift_keeps_the_digits_of_a_variance_far_from_zero():
  x, scale, bias = arrays(mean=3e4)
  for shift, close in ((3e4, True), (0.0, False)):
    _, _, variance = normalize_passes(x, scale, bias, np.full(6, shift, np.float32), EPSILON, 2, None)
    wanted = np.float64(x[1::2]).var((0, 1, 2))
    assert np.allclose(variance[1], wanted, rtol=1e-3) == close


def test_bfloat16_has_moments_in_float32():
  x, scale, bias = arrays()
  rounded = jnp.asarray(x, jnp.bfloat16)
  shift = np.zeros(6, np.float32)
  y, mean, variance = normalize_passes(rounded, scale, bias, shift, EPSILON, 2, None)
  assert (y.dtype, mean.dtype, variance.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
  values = np.float64(rounded)
  for number in (0, 1):
    np.testing.assert_allclose(mean[number], values[number::2].mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(variance[number], values[number::2].var((0, 1, 2)), rtol=1e-4)
  np.testing.assert_allclose(
    np.float32(y), by_hand(np.float32(rounded), scale, bias, 2), rtol=0.01, atol=0.01
  )


def test_the_layer_moves_its_running_statistics_by_each_pass_in_turn():
  x, _, _ = arrays()
  layer = BatchNorm()
  variables = layer.init(jax.random.key(0), x, train=False)
  apply = functools.partial(layer.apply, train=True, mutable=["batch_stats"])
  first, updates = apply(variables, x[0::2])
  second, updates = apply({**variables, **updates}, x[1::2])
  with targeting("tpu"):
    both, found = apply(variables, x, passes=2)
  np.testing.assert_allclose(both[0::2], first, atol=1e-4)
  np.testing.assert_allclose(both[1::2], second, atol=1e-4)
  for name, expected in updates["batch_stats"].items():
    np.testing.assert_allclose(found["batch_stats"][name], expected, rtol=1e-4)
