"""The shifted-sum depthwise convolution against XLA's grouped convolution and by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from scops_jax.kernels import depthwise, platforms
from scops_jax.kernels.compilation import jit

# Images, height, width, kernel size, stride; 20 images are more than the kernel's gradient unrolls at once.
CASES = [
  (2, 9, 12, 3, 1),
  (2, 9, 12, 5, 1),
  (3, 9, 12, 3, 2),
  (2, 8, 7, 5, 2),
  (20, 5, 4, 3, 2),
  (1, 1, 3, 5, 2),
]


def inputs(batch, height, width, size, channels=4):
  rng = np.random.default_rng(0)
  x = rng.standard_normal((batch, height, width, channels)).astype(np.float32)
  return x, rng.standard_normal((size, size, 1, channels)).astype(np.float32)


def grouped_convolution(x, kernel, stride):
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=x.shape[-1],
  )


@pytest.mark.parametrize(("batch", "height", "width", "size", "stride"), CASES)
@pytest.mark.parametrize("training", [False, True])
def test_value_and_gradients_are_the_grouped_convolutions(training, batch, height, width, size, stride):
  """Both where JAX derives the gradients and where they are written out."""
  x, kernel = inputs(batch, height, width, size)
  expected, expected_gradients = jax.vjp(lambda *a: grouped_convolution(*a, stride), x, kernel)
  direction = np.random.default_rng(1).standard_normal(expected.shape).astype(np.float32)

  def value_and_gradients(x, kernel, direction):
    value, pull_back = jax.vjp(lambda *a: depthwise.depthwise_conv(*a, stride=stride), x, kernel)
    return value, pull_back(direction)

  value, gradients = jit(value_and_gradients, training=training)(x, kernel, direction)
  assert value.shape == (batch, -(-height // stride), -(-width // stride), 4)
  np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
  for gradient, reference in zip(gradients, expected_gradients(direction), strict=True):
    np.testing.assert_allclose(gradient, reference, rtol=1e-4, atol=3e-5)


def test_by_hand():
  x = jnp.arange(1.0, 6.0).reshape(1, 1, 5, 1)
  kernel = jnp.zeros((3, 3, 1, 1)).at[1, :, 0, 0].set(jnp.array([1.0, 10.0, 100.0]))
  np.testing.assert_array_equal(depthwise.depthwise_conv(x, kernel)[0, 0, :, 0], [210, 321, 432, 543, 54])
  np.testing.assert_array_equal(depthwise.depthwise_conv(x, kernel, stride=2)[0, 0, :, 0], [210, 432, 54])


def test_same_padding_puts_the_odd_pixel_after():
  assert depthwise.same_padding(9, 3, 1) == (1, 1)
  assert depthwise.same_padding(9, 5, 2) == (2, 2)
  assert depthwise.same_padding(8, 3, 2) == (0, 1)
  assert depthwise.same_padding(8, 5, 2) == (1, 2)


def test_eager_equals_compiled_and_vmap():
  x, kernel = inputs(2, 6, 5, 3)
  function = functools.partial(depthwise.depthwise_conv, stride=2)
  eager = function(x, kernel)
  np.testing.assert_allclose(jax.jit(function)(x, kernel), eager, rtol=1e-5, atol=1e-6)
  mapped = jax.vmap(lambda image: function(image[None], kernel)[0])(x)
  np.testing.assert_allclose(mapped, eager, rtol=1e-5, atol=1e-6)


def test_a_program_for_every_platform_holds_both_forms():
  x, kernel = inputs(2, 6, 5, 3)
  with platforms.every_platform():
    both = jax.jit(lambda *a: depthwise.depthwise_conv(*a, stride=2))
    np.testing.assert_allclose(both(x, kernel), grouped_convolution(x, kernel, 2), rtol=1e-5, atol=1e-5)
    exported = {
      platform: jax.export.export(both, platforms=[platform])(x, kernel).mlir_module()
      for platform in ("cpu", "cuda", "tpu")
    }
  held = {platform: "stablehlo.convolution" in text for platform, text in exported.items()}
  assert held == {"cpu": False, "cuda": True, "tpu": True}


def test_keeps_bfloat16():
  x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in inputs(2, 6, 5, 3))
  value = depthwise.depthwise_conv(x, kernel)
  gradients = jit(jax.grad(lambda *a: depthwise.depthwise_conv(*a).sum(), (0, 1)), training=True)(x, kernel)
  assert {value.dtype, *(g.dtype for g in gradients)} == {jnp.dtype("bfloat16")}
  np.testing.assert_allclose(
    value.astype(np.float32), grouped_convolution(x, kernel, 1).astype(np.float32), rtol=0.05, atol=0.1
  )


@pytest.mark.parametrize("shape", [(3, 3, 1, 3), (3, 3, 4, 1), (3, 3, 4)])
def test_a_kernel_of_another_shape_raises(shape):
  with pytest.raises(ValueError, match=r"kernel \[k, k, 1, C\]"):
    depthwise.depthwise_conv(jnp.zeros((1, 5, 5, 4)), jnp.zeros(shape))
