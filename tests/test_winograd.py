"""The convolution in tiles against the direct sum, in value, gradients and accuracy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scops_jax.kernels import convolution, platforms, winograd
from scops_jax.kernels.convolution import conv


def direct(x, kernel, dilation):
  """The sum over taps in float64."""
  x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
  height, width = x.shape[1:3]
  padded = np.pad(x, ((0, 0), (dilation, dilation), (dilation, dilation), (0, 0)))
  return sum(
    padded[:, i * dilation : i * dilation + height, j * dilation : j * dilation + width] @ kernel[i, j]
    for i in range(3)
    for j in range(3)
  )


def drawn(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("dilation", [1, 2, 4, 5])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 4), (8, 9), (5, 17)])
def test_is_the_direct_sum(size, dilation):
  x, kernel = drawn(2, *size, 3), drawn(3, 3, 3, 4, seed=1)
  np.testing.assert_allclose(
    winograd.conv_3x3(x, kernel, dilation=dilation), direct(x, kernel, dilation), rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize("dilation", [1, 2, 4])
@pytest.mark.parametrize("size", [(1, 1), (7, 4), (8, 9)])
def test_gradients_are_those_of_the_direct_sum(size, dilation):
  x, kernel, gradient = drawn(2, *size, 3), drawn(3, 3, 3, 4, seed=1), drawn(2, *size, 4, seed=2)
  _, pull_back = jax.vjp(lambda *a: winograd.conv_3x3(*a, dilation=dilation), x, kernel)
  by_autodiff = pull_back(gradient)
  written = (
    winograd.input_gradient(gradient, kernel, dilation=dilation),
    winograd.kernel_gradient(x, gradient, dilation=dilation),
  )
  for found, expected in zip(written, by_autodiff, strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)


def test_one_pixel_by_hand():
  x = jnp.zeros((1, 4, 5, 1)).at[0, 1, 3].set(2)
  kernel = jnp.arange(1.0, 10).reshape(3, 3, 1, 1)
  # The output left above the pixel reads it with the last tap.
  expected = [[0, 0, 18, 16, 14], [0, 0, 12, 10, 8], [0, 0, 6, 4, 2], [0, 0, 0, 0, 0]]
  np.testing.assert_array_equal(winograd.conv_3x3(x, kernel, dilation=1)[0, :, :, 0], expected)


def test_is_as_exact_as_the_direct_sum_in_float32():
  x, kernel = drawn(1, 17, 17, 256), drawn(3, 3, 256, 64, seed=1)
  exact = direct(x, kernel, 2)
  in_tiles = np.abs(winograd.conv_3x3(x, kernel, dilation=2) - exact).max() / np.abs(exact).max()
  assert in_tiles < 2e-6


@pytest.fixture
def few_products_suffice(monkeypatch):
  monkeypatch.setattr(convolution, "_MANY_PRODUCTS", 1 << 21)


@pytest.mark.usefixtures("few_products_suffice")
@pytest.mark.parametrize(
  ("channels", "options"),
  [
    (64, {"padding": ((1, 1), (1, 1))}),
    (64, {"padding": ((2, 2), (2, 2)), "dilation": 2}),
    # Not in tiles:
    (64, {"padding": ((1, 1), (1, 1)), "stride": 2}),
    (64, {"padding": ((1, 1), (1, 2))}),
    (32, {"padding": ((1, 1), (1, 1))}),
  ],
)
def test_conv_in_tiles_or_not_and_its_gradients_are_xlas(channels, options):
  x, kernel = drawn(2, 9, 12, channels), drawn(3, 3, channels, 72, seed=1)
  choice = options["padding"], options.get("stride", 1), options.get("dilation", 1)
  value, pull_back = jax.vjp(lambda *a: convolution._conv_in_training(*a, *choice), x, kernel)
  expected, expected_pull_back = jax.vjp(lambda *a: convolution._conv(*a, *choice), x, kernel)
  np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-4)
  gradient = drawn(*value.shape, seed=2)
  for found, wanted in zip(pull_back(gradient), expected_pull_back(gradient), strict=True):
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("few_products_suffice")
def test_a_program_for_every_platform_holds_both_forms():
  x, kernel = drawn(1, 8, 9, 64), drawn(3, 3, 64, 64, seed=1)
  with platforms.every_platform():
    both = jax.jit(lambda *a: conv(*a, padding=((1, 1), (1, 1))))
    np.testing.assert_allclose(both(x, kernel), direct(x, kernel, 1), rtol=1e-4, atol=1e-4)
    convolves = {
      platform: "stablehlo.convolution"
      in jax.export.export(both, platforms=[platform])(x, kernel).mlir_module()
      for platform in ("cpu", "cuda", "tpu")
    }
  assert convolves == {"cpu": False, "cuda": True, "tpu": True}
