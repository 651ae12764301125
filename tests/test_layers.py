"""Layers against a float64 NumPy oracle of PyTorch's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scops_jax.kernels.compilation import jit
from scops_jax.models.layers import BatchNorm, Conv, Dense, max_pool
from tests import layer_oracle

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((2, 9, 12, 3))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
  ("kernel_size", "stride", "dilation"), [(1, 1, 1), (1, 2, 1), (3, 1, 1), (3, 2, 1), (3, 1, 4), (7, 2, 1)]
)
def test_conv(kernel_size, stride, dilation):
  kernel, bias = RNG.standard_normal((kernel_size, kernel_size, 3, 4)), RNG.standard_normal(4)
  options = {"stride": stride, "dilation": dilation}
  module = Conv(4, kernel_size, bias_init=jax.nn.initializers.zeros, **options)
  found = module.apply({"params": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}, IMAGES)
  padding = dilation * (kernel_size // 2)
  expected = layer_oracle.conv(IMAGES, kernel, padding=padding, **options) + bias
  np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_conv_without_bias_has_a_kernel_only():
  params = jax.eval_shape(Conv(4, 3).init, jax.random.key(0), jnp.zeros((1, 5, 5, 2)))["params"]
  assert {name: entry.shape for name, entry in params.items()} == {"kernel": (3, 3, 2, 4)}


def test_dense_is_that_of_flax():
  x = jnp.asarray(IMAGES, jnp.float32)
  variables, expected = (module.init(jax.random.key(3), x) for module in (Dense(5), nn.Dense(5)))
  jax.tree.map(np.testing.assert_array_equal, variables, expected)
  variables["params"]["bias"] += jnp.arange(5.0)

  def outcome(module):
    def product(variables, x):
      y = module.apply(variables, x)
      return jnp.sum(y**3), y

    return jax.grad(product, (0, 1), has_aux=True)(variables, x)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-4), outcome(Dense(5)), outcome(nn.Dense(5))
  )
  assert Dense(5).apply(variables, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def norm_variables(channels=3):
  params = {"scale": RNG.uniform(0.5, 2, channels), "bias": RNG.standard_normal(channels)}
  batch_stats = {"mean": RNG.standard_normal(channels), "var": RNG.uniform(0.5, 2, channels)}
  return {"params": params, "batch_stats": batch_stats}


@pytest.mark.usefixtures("x64")
def test_batch_norm_in_evaluation():
  variables = norm_variables()
  found = BatchNorm().apply(variables, IMAGES, train=False)
  expected = layer_oracle.batch_norm(IMAGES, **variables["params"], **variables["batch_stats"])
  np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_batch_norm_in_training():
  variables = norm_variables()
  found, updates = BatchNorm().apply(variables, IMAGES, train=True, mutable=["batch_stats"])
  mean, var = IMAGES.mean((0, 1, 2)), IMAGES.var((0, 1, 2))
  expected = layer_oracle.batch_norm(IMAGES, **variables["params"], mean=mean, var=var)
  np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
  before, after = variables["batch_stats"], updates["batch_stats"]
  unbiased = IMAGES.var((0, 1, 2), ddof=1)
  np.testing.assert_allclose(after["mean"], 0.9 * before["mean"] + 0.1 * mean, rtol=1e-12)
  np.testing.assert_allclose(after["var"], 0.9 * before["var"] + 0.1 * unbiased, rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_batch_norm_in_training(training):
  """Both where JAX derives them and where they are written out."""
  variables = norm_variables()
  cotangent = RNG.standard_normal(IMAGES.shape)

  def objective(images, params):
    y, _ = BatchNorm().apply(
      {"params": params, "batch_stats": variables["batch_stats"]}, images, train=True, mutable=["batch_stats"]
    )
    return (y * cotangent).sum()

  def oracle(images, params):
    mean, var = images.mean((0, 1, 2)), images.var((0, 1, 2))
    return (layer_oracle.batch_norm(images, **params, mean=mean, var=var) * cotangent).sum()

  arguments = IMAGES, variables["params"]
  leaves, treedef = jax.tree.flatten(arguments)
  gradients = jax.tree.leaves(jit(jax.grad(objective, (0, 1)), training=training)(*arguments))
  for _ in range(3):
    directions = [1e-5 * RNG.standard_normal(np.shape(leaf)) for leaf in leaves]
    ahead, behind = (
      oracle(*treedef.unflatten([x + sign * d for x, d in zip(leaves, directions, strict=True)]))
      for sign in (1, -1)
    )
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    np.testing.assert_allclose(slope, (ahead - behind) / 2, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_batch_norm_over_devices_equals_that_of_the_whole_batch():
  variables = norm_variables()
  cotangent = RNG.standard_normal(IMAGES.shape)

  def objective(images, cotangent, axis_name):
    y, updates = BatchNorm().apply(
      variables, images, train=True, axis_name=axis_name, mutable=["batch_stats"]
    )
    return (y * cotangent).sum(), updates["batch_stats"]

  gradient = jax.grad(objective, has_aux=True)
  expected, expected_stats = gradient(jnp.asarray(IMAGES), cotangent, None)
  split = lambda x: jnp.asarray(x)[:, None]  # noqa: E731
  mapped = jax.vmap(lambda x, c: gradient(x, c, "data"), axis_name="data")
  found, stats = mapped(split(IMAGES), split(cotangent))
  np.testing.assert_allclose(found[:, 0], expected, rtol=1e-9, atol=1e-9)
  for name, value in stats.items():
    np.testing.assert_allclose(value, np.stack([expected_stats[name]] * 2), rtol=1e-12)


def test_batch_norm_keeps_the_dtype_and_computes_statistics_in_float32():
  variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), norm_variables())
  images = jnp.asarray(IMAGES + 100.0, jnp.bfloat16)
  found, updates = BatchNorm().apply(variables, images, train=True, mutable=["batch_stats"])
  assert found.dtype == jnp.bfloat16
  exact = np.asarray(images, np.float64)
  expected = 0.9 * variables["batch_stats"]["mean"] + 0.1 * exact.mean((0, 1, 2))
  np.testing.assert_allclose(updates["batch_stats"]["mean"], expected, rtol=1e-6)


def test_frozen_batch_norm_has_no_gradient():
  variables = jax.tree.map(jnp.asarray, norm_variables())

  def total(params, trainable):
    module = BatchNorm(trainable=trainable)
    return (module.apply(variables | {"params": params}, np.float32(IMAGES), train=False) ** 2).sum()

  for trainable in (True, False):
    gradients = jax.grad(total)(variables["params"], trainable)
    assert all(bool(g.any()) == trainable for g in gradients.values())


def test_batch_norm_of_one_value_has_no_variance():
  with pytest.raises(ValueError, match=r"more than one value per channel.*\(1, 1, 1, 3\)"):
    BatchNorm().init(jax.random.key(0), jnp.ones((1, 1, 1, 3)), train=True)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("kernel_size", "stride", "padding"), [(3, 2, 1), (2, 2, 0)])
def test_max_pool(kernel_size, stride, padding, ceil_mode):
  options = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}
  for height, width in ((4, 5), (6, 7)):
    images = np.float32(RNG.standard_normal((1, height, width, 2)) - 5)
    expected = layer_oracle.max_pool(images, **options)
    np.testing.assert_array_equal(max_pool(images, **options), expected)
