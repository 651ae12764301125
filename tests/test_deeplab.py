"""DeepLab against recorded activations, gradients and facts of the release's networks."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scops_jax import models, weights
from scops_jax.models import deeplab
from scops_jax.weights import names
from tests import oracle, synthetic_weights

NETWORKS = {  # the names here, of the recorded architecture, and in the recording
  "deeplab50": ("Res50_Deeplab", "one"),
  "deeplab101": ("Res101_Deeplab", None),
  "deeplab50_2branch": ("Res50_Deeplab_2branch", "two"),
  "deeplab101_2branch": ("Res101_Deeplab_2branch", None),
}
# Compiling takes most of the time of these tests, so it is done with little care for the speed of the result.
COMPILER_OPTIONS = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@functools.cache
def recording():
  return oracle.golden("deeplab_res50")


def abstract_variables(name):
  module = models.create_segmenter(name, 8)
  return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))


def variables(name, rule):
  """Returns the network's variables with the synthetic weights of the recording."""
  recorded = recording()
  shapes = {entry["key"]: entry["shape"] for entry in synthetic_weights.architecture(NETWORKS[name][0])}
  constants, seed = recorded["fill_constants"], int(recorded["hash_seed"])
  state_dict = synthetic_weights.fill(shapes, rule, constants=constants, seed=seed)
  zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), abstract_variables(name))
  return weights.apply_state_dict(zeros, state_dict, model_name=name, require_head=True)


@functools.cache
def compiled_evaluation(name):
  """Returns the function of the variables that gives logits and the outputs of stages 3 and 4."""
  module = models.create_segmenter(name, 8)
  stages = ("layer3_5", "layer4_2")

  def evaluate(variables):
    logits, found = module.apply(
      variables,
      oracle.nhwc(recording()["input"]),
      capture_intermediates=lambda module, _: module.name in stages,
      mutable=["intermediates"],
    )
    return logits, *(found["intermediates"][stage]["__call__"][0] for stage in stages)

  return jax.jit(evaluate).lower(abstract_variables(name)).compile(compiler_options=COMPILER_OPTIONS)


@pytest.mark.parametrize("rule", ["sin", "hash"])
@pytest.mark.parametrize("name", ["deeplab50", "deeplab50_2branch"])
def test_recorded_evaluation(name, rule):
  recorded, prefix = recording(), f"{rule}_{NETWORKS[name][1]}"
  logits, stage3, stage4 = compiled_evaluation(name)(variables(name, rule))
  expected = oracle.nhwc(recorded[f"{prefix}_logits"])
  np.testing.assert_allclose(logits, expected, atol=2e-5 * expected.std())
  maps = {"layer3": stage3}
  if NETWORKS[name][1] == "two":
    maps = {"instance": stage4[..., :1024], "part": stage4[..., 1024:]}
  for key, found in maps.items():
    np.testing.assert_allclose(found.mean(), recorded[f"{prefix}_{key}_mean"], rtol=1e-5)
    np.testing.assert_allclose(found.std(), recorded[f"{prefix}_{key}_std"], rtol=1e-5)
    expected = recorded[f"{prefix}_{key}_channel_mean"]
    np.testing.assert_allclose(found.mean((0, 1, 2)), expected, atol=1e-5 * expected.std())


@pytest.fixture(scope="module")
def training():
  """One pass of the two-branch network in training mode, in float64: (logits, flat gradients and statistics).

  The objective is the sum of logits times a recorded cotangent.
  """
  recorded, name = recording(), "deeplab50_2branch"
  module = models.create_segmenter(name, 8)
  with jax.enable_x64(True):
    start = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), variables(name, "hash"))
    images, cotangent = (
      jnp.asarray(oracle.nhwc(recorded[f"train_{k}"]), jnp.float64) for k in ("input", "cot")
    )

    def objective(params, batch_stats):
      state = {"params": params, "batch_stats": batch_stats}
      logits, updates = module.apply(state, images, train=True, mutable=["batch_stats"])
      return (logits * cotangent).sum(), (logits, updates["batch_stats"])

    gradient = jax.jit(jax.grad(objective, has_aux=True)).lower(start["params"], start["batch_stats"])
    compiled = gradient.compile(compiler_options=COMPILER_OPTIONS)
    gradients, (logits, batch_stats) = jax.device_get(compiled(start["params"], start["batch_stats"]))
  return logits, flax.traverse_util.flatten_dict({"params": gradients, "batch_stats": batch_stats})


def test_recorded_logits_with_batch_statistics(training):
  logits, _ = training
  np.testing.assert_allclose(logits, oracle.nhwc(recording()["train_logits"]), rtol=1e-6, atol=1e-7)


def test_recorded_running_statistics(training):
  recorded, prefix = recording(), "train_after_"
  keys = [key.removeprefix(prefix) for key in recorded if key.startswith(prefix)]
  assert len(keys) == 8
  for key in keys:
    found = training[1][names.table("deeplab50_2branch")[key]]
    np.testing.assert_allclose(found, recorded[prefix + key], rtol=1e-6, atol=1e-7, err_msg=key)


def test_recorded_gradients(training):
  recorded, table = recording(), names.table("deeplab50_2branch")
  norms = [np.linalg.norm(training[1][table[str(key)]].ravel()) for key in recorded["train_grad_names"]]
  np.testing.assert_allclose(norms, recorded["train_grad_norm"], rtol=1e-6)
  np.testing.assert_allclose(np.linalg.norm(norms), recorded["train_total_grad_norm"], rtol=1e-6)
  for key in ("conv1.weight", "layer2.0.downsample.1.weight", "layer5.conv2d_list.3.bias"):
    expected, found = recorded[f"train_grad_{key}"], training[1][table[key]]
    if found.ndim == 4:
      found = found.transpose(3, 2, 0, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max(), err_msg=key)


def test_frozen_parameters_have_no_gradient(training):
  name = "deeplab50_2branch"
  module = models.create_segmenter(name, 8)
  for path in flax.traverse_util.flatten_dict(abstract_variables(name)["params"]):
    assert training[1]["params", *path].any() == module.is_trained(path), path


@pytest.mark.parametrize("name", list(NETWORKS))
def test_variables_and_their_updates_are_the_release_s(name):
  """The recording lists a trained parameter as often as its optimizer updates it, a frozen one 0 times."""
  shapes, module = abstract_variables(name), models.create_segmenter(name, 8)
  flat_shapes = flax.traverse_util.flatten_dict(shapes)
  table = names.table(name)
  entries = synthetic_weights.architecture(NETWORKS[name][0])
  assert set(flat_shapes) == {table[entry["key"]] for entry in entries}
  for entry in entries:
    path, shape = table[entry["key"]], entry["shape"]
    assert flat_shapes[path].shape == (*shape[2:], *shape[1::-1]), path  # OIHW → HWIO
    if "visits" in entry:
      visits = module.release_update_count(path[1:]) if module.is_trained(path[1:]) else 0
      assert visits == entry["visits"], path


def tiny(two_branch=True):
  return deeplab.DeepLab(
    num_parts=3, block_counts=(1, 1, 1, 1), two_branch=two_branch, stage_channels=(1, 1, 1, 1)
  )


@pytest.mark.parametrize(
  ("size", "cells"), [((256, 256), (33, 33)), ((64, 64), (9, 9)), ((224, 160), (29, 21)), ((8, 16), (2, 3))]
)
def test_output_sizes(size, cells):
  logits, _ = jax.eval_shape(tiny().init_with_output, jax.random.key(0), jnp.zeros((2, *size, 3)))
  assert logits.shape == (2, *cells, 4)


def test_cells_are_centred_on_every_eighth_pixel():
  """With positive kernels cell (9, 10) sees a pixel if it is near enough to pixel (72, 80)."""

  def positive(path, leaf):
    if path[-1].key != "kernel":
      return jnp.full(leaf.shape, float(path[-1].key in ("scale", "var")))
    if path[1].key.startswith("head"):  # without the outer taps, which are up to 192 pixels away
      return jnp.zeros(leaf.shape).at[1, 1].set(1.0)
    return jnp.ones(leaf.shape)

  shapes = jax.eval_shape(tiny().init, jax.random.key(0), jnp.zeros((1, 144, 160, 3)))
  # Half the field of view: 3 + 2 pixels of the stem, then one tap of 4, 8, 2 · 8 and 4 · 8.
  reach = 3 + 2 + 4 + 8 + 16 + 32
  offsets = [-reach - 1, -reach, reach, reach + 1]
  pixels = [(72 + offset, 80) for offset in offsets] + [(72, 80 + offset) for offset in offsets]
  images = np.zeros((8, 144, 160, 3), np.float32)
  for image, pixel in zip(images, pixels, strict=True):
    image[pixel] = 1.0
  logits = tiny().apply(jax.tree_util.tree_map_with_path(positive, shapes), images)
  np.testing.assert_array_equal(logits[:, 9, 10, 0] > 0, [False, True, True, False] * 2)


def test_initial_values():
  module = deeplab.DeepLab(
    num_parts=8, block_counts=(1, 1, 1, 1), two_branch=False, stage_channels=(16, 16, 16, 64)
  )
  variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
  for path, value in flax.traverse_util.flatten_dict(variables).items():
    if path[-1] == "kernel":
      np.testing.assert_allclose(value.std(), 0.01, rtol=0.1)
    elif path[1].startswith("head"):
      assert 0 < abs(value).max() <= 1 / np.sqrt(9 * 256)
    else:
      np.testing.assert_array_equal(value, float(path[-1] in ("scale", "var")))
