"""Replays three recorded training steps of the release through this project's losses, warps and optimizer.

The networks are the recording's stand-ins (two convolutions each); everything else is the project's own. In
float64, so that the recorded float64 numbers are matched closely.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scops_jax import geometry, losses, optimizer, warp
from scops_jax.config import default_config
from scops_jax.kernels.platforms import targeting
from tests import oracle

STEPS = 3
PARAMETERS = {  # where the recording's parameters are here
  "conv1.weight": ("segmenter", "conv1", "weight"),
  "conv1.bias": ("segmenter", "conv1", "bias"),
  "cls.weight": ("segmenter", "head", "weight"),
  "cls.bias": ("segmenter", "head", "bias"),
  "basis_w": ("basis",),
}
TERMS = {  # the recording's names of the terms
  "con": "concentration",
  "eqv": "equivariance",
  "lmeqv": "landmark_equivariance",
  "sc": "semantic_consistency",
  "orthonormal": "orthonormality",
}
pytestmark = pytest.mark.usefixtures("x64")


@functools.cache
def recording():
  return {key: np.asarray(value, np.float64) for key, value in oracle.golden("step").items()}


def initial_params():
  recorded = recording()
  conv1, head = (
    {kind: jnp.asarray(recorded[f"model_{layer}.{kind}"]) for kind in ("weight", "bias")}
    for layer in ("conv1", "cls")
  )
  return {"segmenter": {"conv1": conv1, "head": head}, "basis": jnp.asarray(recorded["basis_w0"])}


def convolve(x, weight, bias, *, stride, pad):
  """A PyTorch convolution of channels-last maps, in their dtype."""
  layout = ("NHWC", "OIHW", "NHWC")
  weight, bias = (jnp.asarray(values, x.dtype) for values in (weight, bias))
  return (
    jax.lax.conv_general_dilated(x, weight, (stride, stride), [(pad, pad)] * 2, dimension_numbers=layout)
    + bias
  )


def segment(params, images):
  """Returns logits at the network's resolution, in the images' dtype."""
  hidden = jax.nn.relu(convolve(images, **params["conv1"], stride=4, pad=2))
  return convolve(hidden, **params["head"], stride=2, pad=1)


def reference_features(dtype=jnp.float64):
  recorded = recording()
  images = jnp.asarray(oracle.nhwc(recorded["s0_images_zoo"]), dtype)
  first = jax.nn.relu(convolve(images, recorded["feat_f1.weight"], recorded["feat_f1.bias"], stride=8, pad=0))
  second = jax.nn.relu(convolve(first, recorded["feat_f2.weight"], recorded["feat_f2.bias"], stride=1, pad=1))
  return first, second


def unweighted_terms(params, source_points, features, dtype=jnp.float64):
  """Returns the loss terms of one step: images, saliency and networks as recorded, no colour change.

  The networks compute in `dtype`, the losses in that of the parameters.
  """
  recorded = recording()
  images = oracle.nhwc(recorded["images"])
  height, width = images.shape[1:3]
  wide = params["basis"].dtype
  mean = recorded["img_mean_added"]
  clipped = np.clip((images + mean) / 255, 0, 1) * 255 - mean
  grid = warp.thin_plate_grid(source_points, height, width)
  small = segment(params["segmenter"], jnp.asarray(images, dtype)).astype(wide)
  logits = geometry.resize_bilinear(small, height, width)
  warped_small = segment(params["segmenter"], warp.warp(jnp.asarray(clipped, dtype), grid)).astype(wide)
  warped_logits = geometry.resize_bilinear(warped_small, height, width)
  target_logits = warp.warp_enlarged(small, grid, height=height, width=width)
  centers, target_centers = (geometry.part_centers(jax.nn.softmax(x)) for x in (warped_logits, target_logits))
  probs = jax.nn.softmax(logits)
  basis = jax.nn.relu(params["basis"])
  return {
    "concentration": losses.concentration_loss(probs),
    "equivariance": losses.equivariance_loss(warped_logits, target_logits),
    "landmark_equivariance": losses.landmark_equivariance_loss(centers, target_centers),
    "semantic_consistency": losses.semantic_consistency_loss(probs, basis, features, recorded["saliency"]),
    "orthonormality": losses.orthonormality_loss(basis),
  }


def weighted_terms(params, source_points, features, dtype=jnp.float64):
  """Returns the recording's weighted terms by its names: its λ over changed reductions and coordinates."""
  recorded = recording()
  batch, _, size, _ = recorded["images"].shape
  coordinates = ((size - 1) / size) ** 2  # the release's run from -1 to 1 - 2 / N
  factors = {"con": coordinates / batch, "eqv": 1 / recorded["model_cls.bias"].size, "lmeqv": coordinates}
  terms = unweighted_terms(params, source_points, features, dtype)
  return {key: recorded[f"lambda_{key}"] * factors.get(key, 1.0) * terms[name] for key, name in TERMS.items()}


@functools.cache
def compiled_terms(dtype=jnp.float64):
  """Returns the function of (params, source points) that gives the weighted terms and each one's gradient."""
  features = reference_features(dtype)

  def terms_twice(params, source_points):
    terms = weighted_terms(params, source_points, features, dtype)
    return terms, terms

  return jax.jit(jax.jacrev(terms_twice, has_aux=True))


def leaf(tree, key):
  for entry in PARAMETERS[key]:
    tree = tree[entry]
  return tree


def assert_close(actual, expected, message=""):
  np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=2e-7 * np.abs(expected).max(), err_msg=message)


def test_first_inputs_of_the_warped_pass():
  recorded = recording()
  images, mean = oracle.nhwc(recorded["images"]), recorded["img_mean_added"]
  grid = warp.thin_plate_grid(recorded["s0_tps_source_control_points"], *images.shape[1:3])
  np.testing.assert_allclose(grid, recorded["s0_tps_grid"], atol=1e-10)
  warped = warp.warp(np.clip((images + mean) / 255, 0, 1) * 255 - mean, grid)
  np.testing.assert_allclose(warped, oracle.nhwc(recorded["s0_images_tps"]), atol=2e-5)


def test_gradient_of_each_term():
  recorded = recording()
  gradients, _ = compiled_terms()(initial_params(), jnp.asarray(recorded["s0_tps_source_control_points"]))
  for term in TERMS:
    for key in PARAMETERS:
      expected = recorded[f"term_{term}_grad_{key}"]
      if expected.any():
        assert_close(leaf(gradients[term], key), expected, f"{term} {key}")
      else:
        np.testing.assert_allclose(leaf(gradients[term], key), 0.0, atol=1e-9, err_msg=f"{term} {key}")


def test_the_settings_of_accelerators_keep_losses_and_gradients_within_a_hundredth():
  recorded = recording()
  params, points = jax.tree.map(
    lambda x: jnp.asarray(x, jnp.float32), (initial_params(), recorded["s0_tps_source_control_points"])
  )
  with targeting("tpu"):
    gradients, terms = compiled_terms(jnp.bfloat16)(params, points)
  for term, value in terms.items():
    np.testing.assert_allclose(value, recorded[f"json_s0_weighted_{term}"], rtol=0.01, err_msg=term)
  total = jax.tree.map(lambda *each: sum(each), *gradients.values())
  for owner in ("segmenter", "basis"):  # clipped together each
    keys = [key for key, path in PARAMETERS.items() if path[0] == owner]
    expected = np.concatenate([recorded[f"json_s0_grad_{key}"].ravel() for key in keys])
    found = np.concatenate([leaf(total, key).ravel() for key in keys])
    assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(expected), owner


@pytest.mark.parametrize("variant", ["json", "biglr"])
def test_three_steps(variant):
  recorded = recording()
  config = default_config()
  config.num_steps = int(recorded[f"{variant}_num_steps"])
  config.optimizer.learning_rate = float(recorded[f"{variant}_learning_rate"])
  params = initial_params()
  transformation = optimizer.make_optimizer(config.optimizer, params, num_steps=config.num_steps)
  state = transformation.init(params)
  update = jax.jit(transformation.update)
  for step in range(STEPS):
    prefix = f"{variant}_s{step}"
    term_gradients, terms = compiled_terms()(
      params, jnp.asarray(recorded[f"s{step}_tps_source_control_points"])
    )
    for term, value in terms.items():
      assert_close(value, recorded[f"{prefix}_weighted_{term}"], f"{prefix} {term}")
    assert_close(sum(terms.values()), recorded[f"{prefix}_total"], f"{prefix} total")
    gradients = jax.tree.map(lambda *each: sum(each), *term_gradients.values())
    assert_close(optax.tree.norm(gradients["segmenter"]), recorded[f"{prefix}_model_grad_norm"])
    assert_close(optax.tree.norm(gradients["basis"]), recorded[f"{prefix}_basis_grad_norm"])
    updates, state = update(gradients, state, params)
    params = optax.apply_updates(params, updates)
    for key in PARAMETERS:
      assert_close(leaf(gradients, key), recorded[f"{prefix}_grad_{key}"], f"{prefix} gradient of {key}")
      assert_close(leaf(params, key), recorded[f"{prefix}_after_{key}"], f"{prefix} {key}")
