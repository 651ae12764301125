"""The shifted-sum depthwise convolution against XLA's grouped convolution and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from scops_jax.kernels import depthwise, platforms

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


def shifted_sum(x, kernel, stride):
  rows, columns = (depthwise.same_padding(n, kernel.shape[0], stride) for n in x.shape[1:3])
  return depthwise.shifted_sum(x, kernel, stride, (rows, columns))


@pytest.mark.parametrize(("batch", "height", "width", "size", "stride"), CASES)
@pytest.mark.parametrize("function", [shifted_sum, depthwise.depthwise_conv])
def test_value_and_gradients_are_the_grouped_convolutions(function, batch, height, width, size, stride):
  x, kernel = inputs(batch, height, width, size)
  expected, expected_gradients = jax.vjp(lambda *a: grouped_convolution(*a, stride), x, kernel)
  value, gradients = jax.vjp(lambda *a: function(*a, stride=stride), x, kernel)
  assert value.shape == (batch, -(-height // stride), -(-width // stride), 4)
  np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
  direction = np.random.default_rng(1).standard_normal(value.shape).astype(np.float32)
  for gradient, reference in zip(gradients(direction), expected_gradients(direction), strict=True):
    np.testing.assert_allclose(gradient, reference, rtol=1e-4, atol=3e-5)


def test_gradients_are_those_of_finite_differences(x64):
  x, kernel = (a.astype(np.float64) for a in inputs(2, 5, 6, 3))
  check_grads(lambda *a: shifted_sum(*a, 2), (x, kernel), order=1, modes=["fwd", "rev"])


def test_jacobians_and_second_derivatives_of_both_modes_agree(x64):
  x, kernel = (jnp.asarray(a, jnp.float64) for a in inputs(1, 2, 3, 3, channels=2))

  def cubes(x, kernel):
    return jnp.sum(shifted_sum(x, kernel, 2) ** 3)

  @jax.jit
  def jacobians(x, kernel):
    modes = jax.jacfwd, jax.jacrev
    first = [mode(lambda x: shifted_sum(x, kernel, 2))(x) for mode in modes]
    return first, [mode(jax.grad(cubes), 1)(x, kernel) for mode in modes]

  for forward, reverse in jacobians(x, kernel):
    assert abs(reverse).max() > 0.1
    np.testing.assert_allclose(forward, reverse, rtol=1e-9, atol=1e-12)


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
  eager = shifted_sum(x, kernel, 2)
  np.testing.assert_allclose(
    jax.jit(shifted_sum, static_argnums=2)(x, kernel, 2), eager, rtol=1e-5, atol=1e-6
  )
  mapped = jax.vmap(lambda image: shifted_sum(image[None], kernel, 2)[0])(x)
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
  value, gradients = jax.vjp(lambda *a: shifted_sum(*a, 1), x, kernel)
  assert value.dtype == jnp.bfloat16
  assert [g.dtype for g in gradients(value)] == [jnp.bfloat16, jnp.bfloat16]
  np.testing.assert_allclose(
    value.astype(np.float32), grouped_convolution(x, kernel, 1).astype(np.float32), rtol=0.05, atol=0.1
  )


@pytest.mark.parametrize("shape", [(3, 3, 1, 3), (3, 3, 4, 1), (3, 3, 4)])
def test_a_kernel_of_another_shape_raises(shape):
  with pytest.raises(ValueError, match=r"kernel \[k, k, 1, C\]"):
    depthwise.depthwise_conv(jnp.zeros((1, 5, 5, 4)), jnp.zeros(shape))
