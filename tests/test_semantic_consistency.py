"""The semantic consistency loss, which expands the square, against the direct formula and the release."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from scops_jax import geometry, losses
from tests import oracle
from tests.test_losses import BASIS, FEATURES, PROBS, SALIENCY, B, H, K, W, compiled_gradient, semantic


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", ["sq", "rect"])
def test_semantic_consistency_matches_the_release(case):
  recorded = oracle.golden("semantic")
  logits = jnp.asarray(oracle.nhwc(recorded[f"{case}_pred"]), jnp.float64)
  features = jnp.asarray(oracle.nhwc(recorded[f"{case}_features"]), jnp.float64)

  def loss(logits, basis):
    return losses.semantic_consistency_loss(jax.nn.softmax(logits), basis, [features])

  basis = jnp.asarray(recorded[f"{case}_basis"], jnp.float64)
  value, gradients = compiled_gradient(loss, 2)(logits, basis)

  np.testing.assert_allclose(value, recorded[f"{case}_loss"], rtol=1e-9)
  expected = oracle.nhwc(recorded[f"{case}_grad_pred"])
  np.testing.assert_allclose(gradients[0], expected, rtol=1e-5, atol=1e-6 * abs(expected).max())
  np.testing.assert_allclose(gradients[1], recorded[f"{case}_grad_basis"], rtol=1e-8)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", ["sq_full", "rect_full"])
def test_semantic_consistency_matches_the_release_from_low_resolution(case):
  recorded = {key.removeprefix(f"{case}_"): value for key, value in oracle.golden("semantic").items()}
  height, width = recorded["saliency"].shape[1:]
  features = [jnp.asarray(oracle.nhwc(recorded[f"feat{i}_low"]), jnp.float64) for i in (1, 2)]
  saliency = jnp.asarray(recorded["saliency"], jnp.float64)

  def loss(logits, raw_basis):
    probs = jax.nn.softmax(geometry.resize_bilinear(logits, height, width))
    return losses.semantic_consistency_loss(probs, jax.nn.relu(raw_basis), features, saliency)

  logits = jnp.asarray(oracle.nhwc(recorded["pred_low"]), jnp.float64)
  value, gradients = compiled_gradient(loss, 2)(logits, jnp.asarray(recorded["w_raw"], jnp.float64))

  np.testing.assert_allclose(value, recorded["loss"], rtol=1e-9)
  np.testing.assert_allclose(gradients[0], oracle.nhwc(recorded["grad_pred_low"]), rtol=1e-8, atol=1e-12)
  np.testing.assert_allclose(gradients[1], recorded["grad_w_raw"], rtol=1e-8, atol=1e-12)


MAPS = {
  "two_sizes": ((3, 4, 6), (2, 5, 4)),
  "one_cell": ((1, 1, 10),),
  "one_row": ((1, 4, 10),),
  "same_size": ((H, W, 10),),
  "larger_than_the_output": ((13, 11, 7), (2, 2, 3)),
}


@pytest.mark.parametrize("shapes", MAPS.values(), ids=MAPS)
def test_semantic_consistency_equals_the_direct_formula(shapes):
  rng = np.random.default_rng(1)
  features = [rng.uniform(0, 2, (B, *shape)).astype(np.float32) for shape in shapes]
  compiled = compiled_gradient(losses.semantic_consistency_loss, 2)
  for saliency in (0 * SALIENCY, SALIENCY, 0 * SALIENCY + 1):
    value, (grad_probs, grad_basis) = compiled(PROBS, BASIS, features, saliency)
    direct = oracle.semantic_consistency(PROBS, BASIS, features, saliency)
    np.testing.assert_allclose(value, direct[0], rtol=1e-5)
    np.testing.assert_allclose(grad_probs[..., 1:], direct[1], atol=1e-5 * abs(direct[1]).max())
    np.testing.assert_allclose(grad_basis, direct[2], atol=1e-5 * abs(direct[2]).max())
    np.testing.assert_array_equal(grad_probs[..., 0], 0)


def test_semantic_consistency_without_saliency_takes_every_pixel():
  value = losses.semantic_consistency_loss(PROBS, BASIS, [FEATURES])
  np.testing.assert_allclose(value, semantic(PROBS, BASIS, FEATURES, 0 * SALIENCY + 1), rtol=1e-6)


def array_sizes(jaxpr):
  """Yields the number of elements of every array that a traced function computes."""
  for equation in jaxpr.eqns:
    yield from (variable.aval.size for variable in equation.outvars)
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from array_sizes(inner)


def test_semantic_consistency_makes_no_full_resolution_feature_volume():
  height, width, channels = 64, 48, 256
  probs = jnp.full((B, height, width, K + 1), 1 / (K + 1))
  features = jnp.ones((B, 5, 4, channels))
  gradient = jax.grad(losses.semantic_consistency_loss, (0, 1))
  jaxpr = jax.make_jaxpr(gradient)(probs, jnp.ones((K, channels)), [features], jnp.ones((B, height, width)))
  assert max(array_sizes(jaxpr.jaxpr)) <= probs.size


def test_semantic_consistency_takes_a_batch_of_a_whole_pod():
  """48 images of 256² with 1024 channels are 3.2e9 numbers, more than an int32 counts."""
  shapes = (48, 256, 256, 9), (8, 1024), (48, 16, 16, 1024)
  probs, basis, features = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
  loss = jax.eval_shape(
    lambda *args: losses.semantic_consistency_loss(*args[:2], args[2:]), probs, basis, features
  )
  assert loss.shape == ()


def test_semantic_consistency_ignores_part_order():
  order = [2, 0, 1]
  value = semantic(PROBS, BASIS, FEATURES, SALIENCY)
  permuted = semantic(PROBS[..., [0, 3, 1, 2]], BASIS[order], FEATURES, SALIENCY)
  np.testing.assert_allclose(permuted, value, rtol=1e-6)
