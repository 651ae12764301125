"""Coordinates, part centres and resizing against hand-computed, recorded and reference values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from scops_jax import geometry
from tests import oracle


def random_probs(shape=(2, 6, 9, 4), seed=0):
  logits = 3 * np.random.default_rng(seed).standard_normal(shape)
  return oracle.softmax(logits).astype(np.float32)


def one_hot(height, width, row, column):
  """One part (and background) whose mass is all at one pixel."""
  probs = np.zeros((1, height, width, 2), np.float32)
  probs[..., 0] = 1
  probs[0, row, column] = (0, 1)
  return probs


def test_coordinate_grid_by_hand():
  expected = [[[-1, -1], [0, -1], [1, -1]], [[-1, 1], [0, 1], [1, 1]]]
  np.testing.assert_array_equal(geometry.coordinate_grid(2, 3), expected)
  np.testing.assert_array_equal(geometry.coordinate_grid(1, 2), [[[-1, 0], [1, 0]]])


def test_coordinate_grid_rejects_an_empty_axis():
  with pytest.raises(ValueError, match="at least 1, got 0 and 3"):
    geometry.coordinate_grid(0, 3)


def test_center_of_one_pixel_is_its_coordinate():
  center = geometry.part_centers(one_hot(5, 9, 3, 2), epsilon=0.0)
  np.testing.assert_allclose(center, [[[-0.5, 0.5]]], atol=1e-7)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", ["sq", "empty"])
def test_centers_match_the_release(case):
  recorded = oracle.golden("centers")
  size = recorded[f"{case}_pred"].shape[-1]
  stretch = size / (size - 1)  # the release's coordinates end one cell early
  logits = jnp.asarray(oracle.nhwc(recorded[f"{case}_pred"]), jnp.float64)
  centers, pullback = jax.vjp(lambda x: geometry.part_centers(jax.nn.softmax(x)), logits)
  gradient = pullback(jnp.asarray(recorded[f"{case}_cot_centers_norm"], jnp.float64) / stretch)[0]
  exact = geometry.part_centers(jax.nn.softmax(logits), epsilon=0.0)
  np.testing.assert_allclose(centers + 1, (recorded[f"{case}_centers_norm"] + 1) * stretch, rtol=1e-9)
  np.testing.assert_allclose((exact + 1) / 2 * (size - 1), recorded[f"{case}_centers_pixel"], rtol=1e-9)
  recorded_gradient = oracle.nhwc(recorded[f"{case}_grad_pred"])
  np.testing.assert_allclose(gradient, recorded_gradient, rtol=1e-5, atol=1e-7 * abs(recorded_gradient).max())


@pytest.mark.parametrize("epsilon", [0.0, 1e-3])
def test_centers_match_the_reference_on_a_rectangle(epsilon):
  probs = random_probs()
  expected = oracle.part_centers(probs, epsilon)
  np.testing.assert_allclose(geometry.part_centers(probs, epsilon=epsilon), expected, atol=1e-6)
  np.testing.assert_allclose(jax.jit(geometry.part_centers)(probs), oracle.part_centers(probs), atol=1e-6)


def test_centers_under_vmap_equal_a_loop():
  probs = np.stack([random_probs(seed=s) for s in range(3)])
  looped = [geometry.part_centers(p) for p in probs]
  np.testing.assert_allclose(jax.vmap(geometry.part_centers)(probs), looped, atol=1e-6)


def test_centers_of_bfloat16_are_summed_in_float32():
  probs = jnp.asarray(random_probs(), jnp.bfloat16)
  centers = geometry.part_centers(probs)
  assert centers.dtype == jnp.float32
  np.testing.assert_allclose(centers, geometry.part_centers(probs.astype(jnp.float32)), atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_center_gradient_by_finite_differences():
  probs = jnp.asarray(random_probs(), jnp.float64)
  check_grads(jax.jit(geometry.part_centers), (probs,), order=1, modes=["rev"])


@pytest.mark.parametrize("epsilon", [0.0, 1e-3])
def test_an_empty_part_lies_in_the_middle_with_finite_gradient(epsilon):
  probs = jnp.zeros((1, 4, 6, 3)).at[..., 0].set(1.0)

  def total(probs):
    return geometry.part_centers(probs, epsilon=epsilon).sum()

  np.testing.assert_allclose(geometry.part_centers(probs, epsilon=epsilon), np.zeros((1, 2, 2)), atol=1e-6)
  assert np.isfinite(jax.jit(jax.grad(total))(probs)).all()


def test_centers_follow_shift_mirror_and_part_order():
  left = geometry.part_centers(one_hot(5, 9, 2, 3), epsilon=0.0)
  right = geometry.part_centers(one_hot(5, 9, 2, 4), epsilon=0.0)
  np.testing.assert_allclose(right - left, [[[0.25, 0.0]]], atol=1e-7)
  probs = random_probs()
  centers = geometry.part_centers(probs)
  np.testing.assert_allclose(geometry.part_centers(probs[:, :, ::-1]), centers * np.array([-1, 1]), atol=1e-6)
  np.testing.assert_allclose(
    geometry.part_centers(probs[..., [0, 3, 1, 2]]), centers[:, [2, 0, 1]], atol=1e-6
  )


def test_centers_reject_bad_input():
  with pytest.raises(ValueError, match=r"probs .*\[B, H, W, K\+1\] .*got shape \(4, 4, 3\)"):
    geometry.part_centers(np.ones((4, 4, 3), np.float32))
  with pytest.raises(ValueError, match=r"K >= 1 parts, got shape \(1, 4, 4, 1\)"):
    geometry.part_centers(np.ones((1, 4, 4, 1), np.float32))
  with pytest.raises(TypeError, match="probs must be a floating-point array"):
    geometry.part_centers(np.ones((1, 4, 4, 3), np.int32))


def test_interpolation_positions_by_hand():
  cells, fractions = geometry.interpolation_positions(3, 5)
  np.testing.assert_array_equal(cells, [0, 0, 1, 1, 1])  # the last one has a next cell too
  np.testing.assert_array_equal(fractions, [0, 0.5, 0, 0.5, 1])
  for size, new_size in ((1, 3), (4, 1)):
    cells, fractions = geometry.interpolation_positions(size, new_size)
    np.testing.assert_array_equal(cells + fractions, np.zeros(new_size))
  np.testing.assert_array_equal(
    geometry.interpolation_weights(np.array([0.25, 2.0]), 3), [[0.75, 0.25, 0], [0, 0, 1]]
  )


def test_resize_by_hand():
  x = jnp.array([0.0, 2.0, 10.0]).reshape(1, 1, 3, 1)
  np.testing.assert_allclose(geometry.resize_bilinear(x, 1, 5).ravel(), [0, 1, 2, 6, 10], atol=1e-6)
  np.testing.assert_allclose(geometry.resize_bilinear(x, 2, 2).reshape(2, 2), [[0, 10], [0, 10]], atol=1e-6)
  np.testing.assert_allclose(geometry.resize_bilinear(x, 1, 1).ravel(), [0], atol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", ["up_sq", "up_odd", "up_rect"])
def test_resize_matches_the_release(case):
  recorded = {
    name: oracle.nhwc(array) for name, array in oracle.golden("grid_sample").items() if case in name
  }
  height, width = recorded[f"{case}_out"].shape[1:3]

  def resize(x):
    return geometry.resize_bilinear(x, height, width)

  output, pullback = jax.vjp(resize, jnp.asarray(recorded[f"{case}_in"], jnp.float64))
  gradient = pullback(jnp.asarray(recorded[f"{case}_cot"], jnp.float64))[0]
  np.testing.assert_allclose(output, recorded[f"{case}_out"], rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(gradient, recorded[f"{case}_grad"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [(7, 11), (3, 4), (5, 1), (1, 9)])
def test_resize_matches_the_reference(size):
  x = np.random.default_rng(0).standard_normal((2, 5, 4, 3)).astype(np.float32)
  expected = oracle.resize(x, *size)
  np.testing.assert_allclose(geometry.resize_bilinear(x, *size), expected, atol=1e-6)
  np.testing.assert_allclose(
    jax.jit(geometry.resize_bilinear, static_argnums=(1, 2))(x, *size), expected, atol=1e-6
  )


def test_resize_keeps_dtype_size_and_corners():
  x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 4, 6, 2)), jnp.bfloat16)
  assert geometry.resize_bilinear(x, 9, 9).dtype == jnp.bfloat16
  np.testing.assert_array_equal(geometry.resize_bilinear(x, 4, 6), x)
  np.testing.assert_array_equal(geometry.resize_bilinear(x, 9, 5)[:, ::8, ::4], x[:, ::3, ::5])


def test_resize_rejects_bad_input():
  with pytest.raises(ValueError, match=r"x must be .*\[B, h, w, C\]"):
    geometry.resize_bilinear(np.ones((4, 4, 3), np.float32), 2, 2)
  with pytest.raises(ValueError, match="at least 1, got 2 and 0"):
    geometry.resize_bilinear(np.ones((1, 4, 4, 3), np.float32), 2, 0)
  with pytest.raises(TypeError, match="floating-point"):
    geometry.resize_bilinear(np.ones((1, 4, 4, 3), np.uint8), 2, 2)
