"""Linear functions with a transpose of their own."""

import jax
import jax.numpy as jnp
import numpy as np

from scops_jax.kernels.transposition import linear_call

MATRIX = np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32)
X = np.array([1.0, -2.0], np.float32)


def product(matrix, x):
  """Returns matrix · x; its written transpose is ten times the true one, which shows that it is used."""

  def function(residuals, arguments):
    return (residuals[0] @ arguments[0],)

  def transposed(residuals, cotangents):
    return (10 * residuals[0].T @ cotangents[0],)

  return linear_call(function, transposed, (matrix,), (x,))[0]


def test_value_and_tangent_are_the_functions_and_the_gradient_is_the_written_one():
  cotangent = np.array([1.0, 2.0, 3.0], np.float32)
  for call in (product, jax.jit(product)):
    value, tangent = jax.jvp(lambda x, call=call: call(MATRIX, x), (X,), (2 * X,))
    np.testing.assert_allclose(value, MATRIX @ X, rtol=1e-5)
    np.testing.assert_allclose(tangent, 2 * MATRIX @ X, rtol=1e-5)
    _, pull_back = jax.vjp(lambda x, call=call: call(MATRIX, x), X)
    np.testing.assert_allclose(pull_back(cotangent)[0], 10 * MATRIX.T @ cotangent, rtol=1e-5)


def test_the_transpose_of_the_transpose_is_the_function():
  transpose = jax.linear_transpose(lambda x: product(MATRIX, x), X)
  twice = jax.linear_transpose(lambda y: transpose(y)[0], jnp.zeros(3))
  np.testing.assert_allclose(twice(X)[0], MATRIX @ X, rtol=1e-5)


def test_vmap_over_any_argument_equals_a_loop():
  matrices, points = np.stack([MATRIX, 2 * MATRIX], axis=-1), np.stack([X, X + 1])
  gradient = jax.grad(lambda x, matrix: product(matrix, x).sum())
  for in_axes in ((None, 2), (0, None), (0, 2)):
    arrays = (points if in_axes[0] == 0 else X, matrices if in_axes[1] == 2 else MATRIX)
    found = jax.vmap(gradient, in_axes)(*arrays)
    for i in range(2):
      one = [a if axis is None else np.take(a, i, axis) for a, axis in zip(arrays, in_axes, strict=True)]
      np.testing.assert_allclose(found[i], gradient(*one), rtol=1e-5)


def test_a_residual_is_differentiated_too():
  tangent = jax.jvp(lambda matrix: product(matrix, X), (MATRIX,), (3 * MATRIX,))[1]
  np.testing.assert_allclose(tangent, 3 * MATRIX @ X, rtol=1e-5)
