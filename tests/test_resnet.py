"""ResNet references against a float64 NumPy oracle, and what is computed of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scops_jax import models
from scops_jax.models import resnet
from scops_jax.weights import names
from tests import layer_oracle

RNG = np.random.default_rng(0)


def tiny_reference(layers, **options):
  return resnet.ResNetReference(layers=layers, block_counts=(1, 2), stage_channels=(3, 2), **options)


def random_variables(module, images):
  shapes = jax.eval_shape(module.init, jax.random.key(0), images)
  return jax.tree.map(lambda s: jnp.asarray(RNG.uniform(0.5, 1.5, s.shape) - (len(s.shape) > 1)), shapes)


def expected_block(x, variables, name, *, stride):
  """A bottleneck with the stride in its 3×3 convolution."""
  params, batch_stats = (variables[kind][name] for kind in ("params", "batch_stats"))

  def step(x, conv, norm, **options):
    y = layer_oracle.conv(x, params[conv]["kernel"], **options)
    return layer_oracle.batch_norm(y, **params[norm], **batch_stats[norm])

  y = np.maximum(step(x, "conv1", "bn1"), 0)
  y = np.maximum(step(y, "conv2", "bn2", stride=stride, padding=1), 0)
  y = step(y, "conv3", "bn3")
  if "downsample_conv" in params:
    x = step(x, "downsample_conv", "downsample_bn", stride=stride)
  return np.maximum(x + y, 0)


@pytest.mark.usefixtures("x64")
def test_two_stages():
  images = RNG.standard_normal((1, 18, 27, 3))
  module = tiny_reference(("layer2", "layer1"))
  variables = random_variables(module, images)
  x = layer_oracle.conv(images, variables["params"]["conv1"]["kernel"], stride=2, padding=3)
  norm = {**variables["params"]["bn1"], **variables["batch_stats"]["bn1"]}
  x = np.maximum(layer_oracle.batch_norm(x, **norm), 0)
  x = layer_oracle.max_pool(x, kernel_size=3, stride=2, padding=1)
  first = expected_block(x, variables, "layer1_0", stride=1)
  second = expected_block(first, variables, "layer2_0", stride=2)
  second = expected_block(second, variables, "layer2_1", stride=1)
  assert (first.shape, second.shape) == ((1, 5, 7, 12), (1, 3, 4, 8))
  for found, expected in zip(module.apply(variables, images), (second, first), strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
  unit = tiny_reference(("layer2",), l2_normalize=True).apply(variables, images)[0]
  norms = np.sqrt((second**2).sum(-1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(unit, second / norms, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_names_and_shapes(name):
  module = models.create_reference(name, resnet.REFERENCE_LAYERS)
  images = jnp.zeros((1, 64, 96, 3))
  maps, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), images)
  expected = [(16, 24, 256), (8, 12, 512), (4, 6, 1024), (2, 3, 2048)]
  assert [m.shape[1:] for m in maps] == expected
  known = {path for path in names.table(name).values() if path is not None}
  found = {tuple(entry.key for entry in path) for path, _ in jax.tree_util.tree_leaves_with_path(variables)}
  assert found == known


def test_stages_after_the_last_one_are_not_computed():
  module = models.create_reference("resnet50", ("layer1",))
  params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
  assert set(params) == {"conv1", "bn1", "layer1_0", "layer1_1", "layer1_2"}
