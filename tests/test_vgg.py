"""VGG references against recorded activations, and what is computed of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scops_jax import models, weights
from scops_jax.models import vgg
from scops_jax.weights import names
from tests import oracle, synthetic_weights

LAYERS = ("relu5_2", "relu5_4")


@functools.cache
def recording():
  return oracle.golden("vgg19_features")


@functools.cache
def variables(rule):
  recorded = recording()
  shapes = {entry["key"]: entry["shape"] for entry in synthetic_weights.architecture("vgg19.features")}
  constants, seed = recorded["fill_constants"], int(recorded["hash_seed"])
  state_dict = synthetic_weights.fill(shapes, rule, constants=constants, seed=seed)
  module = models.create_reference("vgg19", LAYERS)
  shapes = jax.eval_shape(module.init, jax.random.key(0), oracle.nhwc(recorded["input"]))
  zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
  return weights.apply_state_dict(zeros, state_dict, model_name="vgg19")


@functools.cache
def compiled(l2_normalize):
  module = models.create_reference("vgg19", LAYERS, l2_normalize=l2_normalize)
  return jax.jit(module.apply)


@pytest.mark.parametrize("l2_normalize", [False, True])
@pytest.mark.parametrize("rule", ["sin", "hash"])
def test_recorded_features(rule, l2_normalize):
  recorded = recording()
  maps = compiled(l2_normalize)(variables(rule), oracle.nhwc(recorded["input"]))
  for layer, found in zip(LAYERS, maps, strict=True):
    expected = oracle.nhwc(recorded[f"{rule}_{layer}{'_normalized' * l2_normalize}"])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * expected.std())


@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
def test_names_and_shapes_of_every_layer(name):
  convolutions = {"vgg16": vgg.VGG16, "vgg19": vgg.VGG19}[name]
  layers = vgg.reference_layers(convolutions)
  assert len(layers) == int(name[3:]) - 3  # the name counts the three layers of the classifier too
  module = models.create_reference(name, layers)
  images = jnp.zeros((1, 33, 64, 3))
  maps, found = jax.eval_shape(module.init_with_output, jax.random.key(0), images)
  shapes = dict(zip(layers, (m.shape[1:] for m in maps), strict=True))
  assert [shapes[f"relu{block}_1"] for block in range(1, 6)] == [
    (33, 64, 64), (16, 32, 128), (8, 16, 256), (4, 8, 512), (2, 4, 512)
  ]  # fmt: skip
  known = {path for path in names.table(name).values() if path is not None}
  assert {tuple(e.key for e in path) for path, _ in jax.tree_util.tree_leaves_with_path(found)} == known


def test_layers_after_the_last_one_are_not_computed():
  module = models.create_reference("vgg19", ("relu2_1", "relu1_1"))
  maps, found = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  assert [m.shape for m in maps] == [(1, 4, 4, 128), (1, 8, 8, 64)]
  assert set(found["params"]) == {"features_0", "features_2", "features_5"}
