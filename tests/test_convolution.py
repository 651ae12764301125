"""The convolution's value and gradients against XLA's own, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from scops_jax.kernels import platforms
from scops_jax.kernels.compilation import jit
from scops_jax.kernels.convolution import conv

# Kernel size, stride, dilation, channels in and out; few of either, or many of both.
CASES = [
  (3, 1, 1, 20, 5),
  (3, 2, 1, 20, 5),
  (3, 1, 2, 17, 3),
  (3, 1, 2, 20, 18),
  (3, 2, 1, 20, 18),
  (7, 2, 1, 3, 4),
  (1, 1, 1, 20, 5),
  (1, 2, 1, 20, 5),
]


def reference(x, kernel, *, padding, stride, dilation):
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    padding,
    rhs_dilation=(dilation, dilation),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    precision=lax.Precision.HIGHEST,
  )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("training", [False, True])
def test_value_and_gradients_are_xlas(case, symmetric, training):
  """Both where JAX derives the gradients and where they are written out."""
  size, stride, dilation, channels, outputs = case
  rng = np.random.default_rng(0)
  x = rng.standard_normal((2, 9, 12, channels)).astype(np.float32)
  kernel = rng.standard_normal((size, size, channels, outputs)).astype(np.float32)
  before = dilation * (size // 2)
  pair = (before, before if symmetric else max(before - 1, 0))
  options = {"padding": (pair, pair), "stride": stride, "dilation": dilation}
  expected, expected_gradients = jax.vjp(lambda *a: reference(*a, **options), x, kernel)
  direction = rng.standard_normal(expected.shape).astype(np.float32)

  def value_and_gradients(x, kernel, direction):
    value, pull_back = jax.vjp(lambda *a: conv(*a, **options), x, kernel)
    return value, pull_back(direction)

  value, gradients = jit(value_and_gradients, training=training)(x, kernel, direction)
  np.testing.assert_allclose(value, expected, rtol=1e-5, atol=2e-5)
  for gradient, wanted in zip(gradients, expected_gradients(direction), strict=True):
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_rounded_once():
  rng = np.random.default_rng(0)
  x, kernel = (jnp.asarray(rng.standard_normal(n), jnp.bfloat16) for n in ((1, 5, 6, 20), (3, 3, 20, 5)))
  options = {"padding": ((1, 1), (1, 1)), "stride": 1, "dilation": 1}
  exact = reference(x.astype(jnp.float32), kernel.astype(jnp.float32), **options)
  found = conv(x, kernel, **options)
  assert found.dtype == jnp.bfloat16
  np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=2**-8, atol=1e-3)


def test_the_kernels_gradient_by_hand():
  x = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])[None, :, :, None]
  kernel = jnp.zeros((3, 3, 1, 1))
  gradient = jax.grad(lambda k: conv(x, k, padding=((1, 1), (1, 1)))[0, 0, 0, 0])(kernel)
  # The output at the top left reads the whole image with the taps from the middle on.
  np.testing.assert_array_equal(gradient[..., 0, 0], [[0, 0, 0], [0, 1, 2], [0, 3, 4]])


def test_bfloat16_stays():
  x, kernel = jnp.ones((1, 4, 5, 20), jnp.bfloat16), jnp.ones((3, 3, 20, 2), jnp.bfloat16)
  gradient = jax.grad(lambda *a: conv(*a, padding=((1, 1), (1, 1))).sum(), (0, 1))
  value, gradients = conv(x, kernel, padding=((1, 1), (1, 1))), jit(gradient, training=True)(x, kernel)
  assert {value.dtype, *(g.dtype for g in gradients)} == {jnp.dtype("bfloat16")}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere XLA keeps its own order")
def test_gradient_of_two_passes_holds_little_more_than_their_maps():
  layers, shape = 8, (2, 16, 16, 32)
  kernels = [jnp.zeros((size, size, 32, 32)) for size in [3, 1] * (layers // 2)]

  def loss(kernels, both):
    total = 0.0
    for x in both:
      for kernel in kernels:
        pad = kernel.shape[0] // 2
        x = jax.nn.relu(conv(x, kernel, padding=((pad, pad), (pad, pad))))
      total += jnp.square(x).sum()
    return total

  images = [jnp.zeros(shape)] * 2
  gradient = jit(jax.grad(loss), training=True)
  compiled = gradient.lower(kernels, images).compile()
  held = compiled.memory_analysis().temp_size_in_bytes / images[0].nbytes
  # A map of every layer and pass. 26 where kernels' gradients wait for the other pass.
  assert 2 * layers - 2 <= held <= 2 * layers + 6


def test_a_gpu_gets_no_product_of_every_second_pixel():
  """XLA's compiler for GPUs crashed on it, so DeepLab's step could not be compiled (jax 0.11.2)."""
  x, kernel = jnp.ones((1, 9, 9, 4)), jnp.ones((1, 1, 4, 6))

  def total(x, kernel):
    return conv(x, kernel, padding=((0, 0), (0, 0)), stride=2).sum()

  with platforms.targeting("cuda"):
    traced = jax.jit(jax.grad(total, argnums=(0, 1))).trace(x, kernel)
  program = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert "stablehlo.convolution" in program
  assert "stablehlo.dot" not in program
