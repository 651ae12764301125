"""Every loss against recorded, reference and hand-computed values, its gradients and its invariances."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from scops_jax import geometry, losses
from tests import oracle

B, H, W, K, C = 2, 6, 9, 3, 10
RNG = np.random.default_rng(0)
LOGITS = 2 * RNG.standard_normal((B, H, W, K + 1)).astype(np.float32)
TARGET_LOGITS = 2 * RNG.standard_normal((B, H, W, K + 1)).astype(np.float32)
PROBS = oracle.softmax(LOGITS)
CENTERS = RNG.uniform(-1, 1, (B, K, 2)).astype(np.float32)
TARGET_CENTERS = RNG.uniform(-1, 1, (B, K, 2)).astype(np.float32)
BASIS = np.maximum(RNG.standard_normal((K, C)), 0).astype(np.float32)
FEATURES = RNG.uniform(0, 1, (B, 3, 4, C)).astype(np.float32)
SALIENCY = RNG.uniform(0, 1, (B, H, W)).astype(np.float32)
IMAGES = np.random.default_rng(1).uniform(0, 255, (B, H, W, 3)).astype(np.float32)


def semantic(probs, basis, features, saliency):
  return losses.semantic_consistency_loss(probs, basis, [features], saliency)


def assigned_semantic(probs, basis, features, saliency):
  return losses.semantic_consistency_loss(probs, basis, [features], saliency, assigned=True)


# Each loss, arguments for it, its float64 reference, and how many of the arguments carry a gradient.
CASES = {
  "concentration": (losses.concentration_loss, (PROBS,), oracle.concentration, 1),
  "equivariance": (losses.equivariance_loss, (LOGITS, TARGET_LOGITS), oracle.equivariance, 1),
  "landmark_equivariance": (
    losses.landmark_equivariance_loss,
    (CENTERS, TARGET_CENTERS),
    lambda a, b: ((a.astype(np.float64) - b) ** 2).mean(),
    2,
  ),
  "semantic_consistency": (
    semantic,
    (PROBS, BASIS, FEATURES, SALIENCY),
    lambda p, w, v, d: oracle.semantic_consistency(p, w, [v], d)[0],
    2,
  ),
  "semantic_assigned": (
    assigned_semantic,
    (PROBS, BASIS, FEATURES, SALIENCY),
    lambda p, w, v, d: oracle.assigned_semantic_consistency(p, w, [v], d),
    2,
  ),
  "orthonormality": (losses.orthonormality_loss, (BASIS,), oracle.orthonormality, 1),
  "background": (losses.background_loss, (LOGITS, SALIENCY), oracle.background, 1),
  "balance": (losses.balance_loss, (PROBS,), oracle.balance, 1),
  "potts": (losses.potts_loss, (PROBS, IMAGES), oracle.potts, 1),
}


def compiled_gradient(loss, arguments=1):
  """Returns the compiled function of a loss's value and its gradients to the first arguments, a tuple."""
  return jax.jit(jax.value_and_grad(loss, tuple(range(arguments))))


over_cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@over_cases
def test_matches_the_reference_eager_and_compiled(case):
  loss, arguments, reference, _ = case
  value = loss(*arguments)
  assert value.shape == ()
  assert value.dtype == jnp.float32
  np.testing.assert_allclose(value, reference(*arguments), rtol=2e-6)
  np.testing.assert_allclose(jax.jit(loss)(*arguments), value, rtol=1e-6)


@over_cases
def test_under_vmap_equals_a_loop(case):
  loss, arguments, _, _ = case
  stacked = [np.stack([argument, 0.5 * argument]) for argument in arguments]
  looped = [loss(*arguments), loss(*(0.5 * argument for argument in arguments))]
  np.testing.assert_allclose(jax.jit(jax.vmap(loss))(*stacked), looped, rtol=1e-5)


@over_cases
def test_bfloat16_inputs_are_summed_in_float32(case):
  loss, arguments, reference, _ = case
  rounded = [jnp.asarray(argument, jnp.bfloat16) for argument in arguments]
  value = loss(*rounded)
  assert value.dtype == jnp.float32
  np.testing.assert_allclose(value, reference(*(np.asarray(r, np.float64) for r in rounded)), rtol=1e-5)


@pytest.mark.usefixtures("x64")
@over_cases
def test_gradients_by_finite_differences(case):
  loss, arguments, _, differentiable = case
  arguments = [jnp.asarray(argument, jnp.float64) for argument in arguments]
  varied, fixed = arguments[:differentiable], arguments[differentiable:]
  check_grads(jax.jit(lambda *varied: loss(*varied, *fixed)), varied, order=1, modes=["rev"])


@over_cases
def test_no_gradient_reaches_targets(case):
  loss, arguments, _, differentiable = case
  targets = tuple(range(differentiable, len(arguments)))
  for gradient in jax.jit(jax.grad(loss, targets))(*arguments) if targets else ():
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@pytest.mark.parametrize("sharpness", [0.0, 200.0])
def test_gradients_are_finite_for_empty_and_one_hot_parts(sharpness):
  # Part 1 has no mass; with the sharpness, part 2 is a single pixel and the rest background.
  logits = jnp.zeros((1, H, W, 3)).at[..., 1].set(-1e4).at[0, 2, 3, 2].set(sharpness)
  logits = logits.at[..., 0].set(0.5 * sharpness)
  features = jnp.asarray(FEATURES[:1])
  saliency = jnp.asarray(SALIENCY[:1])

  def total(logits, basis):
    probs = jax.nn.softmax(logits)
    centers = geometry.part_centers(probs)
    return (
      losses.concentration_loss(probs)
      + losses.equivariance_loss(logits, logits[:, ::-1])
      + losses.landmark_equivariance_loss(centers, 0.5 * centers)
      + losses.semantic_consistency_loss(probs, basis, [features], saliency)
      + losses.orthonormality_loss(basis)
      + losses.background_loss(logits, saliency)
      + losses.potts_loss(probs, jnp.asarray(IMAGES[:1]))
    )

  value, gradients = compiled_gradient(total, 2)(logits, jnp.zeros((2, C)))
  assert np.isfinite(value)
  assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", ["sq", "empty"])
def test_concentration_matches_the_release(case):
  recorded = oracle.golden("concentration")
  logits = recorded[f"{case}_pred"]
  batch, size = logits.shape[0], logits.shape[-1]
  factor = ((size - 1) / size) ** 2 / batch  # its coordinates, and its second division by B
  value, (gradient,) = compiled_gradient(lambda x: losses.concentration_loss(jax.nn.softmax(x)))(
    jnp.asarray(oracle.nhwc(logits), jnp.float64)
  )
  np.testing.assert_allclose(value * factor, recorded[f"{case}_loss"], rtol=1e-9)
  expected = oracle.nhwc(recorded[f"{case}_grad_pred"])
  np.testing.assert_allclose(gradient * factor, expected, rtol=1e-5, atol=1e-7 * abs(expected).max())


def test_concentration_by_hand():
  # One part on the two outer pixels of a row of three: variance 1. Uniform on a 2 x 2 image: 1 + 1.
  probs = jnp.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]).reshape(1, 1, 3, 2)
  np.testing.assert_allclose(losses.concentration_loss(probs, epsilon=0.0), 1.0, rtol=1e-6)
  np.testing.assert_allclose(losses.concentration_loss(jnp.full((3, 2, 2, 5), 0.2)), 4 * 2.0, rtol=1e-6)


def test_concentration_ignores_shift_mirror_and_part_order():
  blob = np.zeros((1, 8, 8, 3), np.float32)
  blob[:, 1:4, 2:4, 1:] = PROBS[:1, :3, :2, 1:3]
  concentration = functools.partial(losses.concentration_loss, epsilon=0.0)
  value = concentration(blob)
  np.testing.assert_allclose(concentration(np.roll(blob, (3, 2), (1, 2))), value, rtol=1e-5)
  np.testing.assert_allclose(concentration(blob[:, :, ::-1]), value, rtol=1e-5)
  np.testing.assert_allclose(concentration(blob[..., [0, 2, 1]]), value, rtol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", ["sq", "rect"])
def test_equivariance_matches_the_release(case):
  recorded = oracle.golden("equivariance")
  logits, target = (oracle.nhwc(recorded[f"{case}_pred_tps{end}"]) for end in ("", "_org"))
  classes = logits.shape[-1]  # the release takes the mean over them
  logits, target = jnp.asarray(logits, jnp.float64), jnp.asarray(target, jnp.float64)
  value, (gradient,) = compiled_gradient(losses.equivariance_loss)(logits, target)
  np.testing.assert_allclose(value / classes, recorded[f"{case}_kl"], rtol=1e-9)
  expected = oracle.nhwc(recorded[f"{case}_grad_pred_tps"])
  np.testing.assert_allclose(gradient / classes, expected, rtol=1e-5, atol=1e-6 * abs(expected).max())


def test_equivariance_is_zero_for_equal_distributions():
  np.testing.assert_allclose(losses.equivariance_loss(LOGITS, LOGITS + 3.0), 0.0, atol=1e-6)
  assert np.isfinite(losses.equivariance_loss(LOGITS, 1e4 * TARGET_LOGITS))


@pytest.mark.usefixtures("x64")
def test_landmark_equivariance_matches_the_release():
  recorded = oracle.golden("equivariance")
  logits, target = (oracle.nhwc(recorded[f"sq_pred_tps{end}"]) for end in ("", "_org"))
  factor = ((logits.shape[1] - 1) / logits.shape[1]) ** 2

  def loss(*both):
    return losses.landmark_equivariance_loss(*(geometry.part_centers(jax.nn.softmax(x)) for x in both))

  both = jnp.asarray(logits, jnp.float64), jnp.asarray(target, jnp.float64)
  value, gradients = compiled_gradient(loss, 2)(*both)
  np.testing.assert_allclose(value * factor, recorded["sq_lm_loss"], rtol=1e-9)
  for gradient, key in zip(gradients, ("sq_lm_grad_pred_tps", "sq_lm_grad_pred_tps_org"), strict=True):
    expected = oracle.nhwc(recorded[key])
    np.testing.assert_allclose(gradient * factor, expected, rtol=1e-5, atol=1e-6 * abs(expected).max())


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", ["w", "tiny"])
def test_orthonormality_matches_the_release(case):
  recorded = oracle.golden("orthonormal")
  value, (gradient,) = compiled_gradient(losses.orthonormality_loss)(jnp.asarray(recorded[case], jnp.float64))
  np.testing.assert_allclose(value, recorded[f"{case}_loss"], rtol=1e-9)
  np.testing.assert_allclose(gradient, recorded[f"{case}_grad"], rtol=1e-8, atol=1e-10)


@pytest.mark.usefixtures("x64")
def test_orthonormality_of_a_dead_row_matches_the_release():
  recorded = oracle.golden("orthonormal")
  value, (gradient,) = compiled_gradient(lambda w: losses.orthonormality_loss(jax.nn.relu(w)))(
    jnp.asarray(recorded["relu_w_raw"], jnp.float64)
  )
  np.testing.assert_allclose(value, recorded["relu_loss"], rtol=1e-9)
  np.testing.assert_allclose(gradient, recorded["relu_grad_w_raw"], rtol=1e-8, atol=1e-10)


def test_orthonormality_by_hand():
  np.testing.assert_allclose(losses.orthonormality_loss(5 * jnp.eye(3, 7)), 0.0, atol=1e-9)
  np.testing.assert_allclose(losses.orthonormality_loss(jnp.ones((2, 4))), 2.0, rtol=1e-5)


def test_background_by_hand():
  # p_0 = 1/2 everywhere costs ln 2 whatever the saliency; a confident right answer costs nothing.
  undecided = jnp.zeros((1, H, W, 2))
  np.testing.assert_allclose(losses.background_loss(undecided, SALIENCY[:1]), np.log(2), rtol=1e-6)
  logits = jnp.zeros((1, H, W, 3)).at[..., 0].set(-300.0)
  np.testing.assert_allclose(losses.background_loss(logits, jnp.ones((1, H, W))), 0.0, atol=1e-6)
  np.testing.assert_allclose(losses.background_loss(logits, jnp.zeros((1, H, W))), 300 + np.log(2), rtol=1e-6)


def test_balance_by_hand():
  # Areas 3 : 1 of 4 pixels: -(ln(2 · 3/4) + ln(2 · 1/4)) / 2 = -ln(3/4) / 2; equal areas cost nothing.
  part = jnp.asarray([[0, 0], [0, 1]])
  uneven = jax.nn.one_hot(part + 1, 3)[None]
  expected = -np.log(0.75) / 2
  np.testing.assert_allclose(losses.balance_loss(uneven, epsilon=1e-9), expected, rtol=1e-6)
  even = jax.nn.one_hot(jnp.asarray([[1, 1], [2, 2]]), 3)[None]
  np.testing.assert_allclose(losses.balance_loss(even), 0.0, atol=1e-6)


def test_balance_pulls_back_an_absent_part():
  probs = jnp.zeros((1, H, W, 3)).at[..., 1].set(1.0)
  gradient = jax.grad(losses.balance_loss)(probs)
  assert np.isfinite(gradient).all()
  assert (gradient[..., 2] < 0).all()


def test_potts_by_hand():
  # Colours 0, 0, 2, 2 in a row: contrasts 0, 4, 0, so σ² = 4/3. Of three pairs a boundary costs one within a
  # colour, and exp(-4 / (8/3)) = exp(-3/2) of one at the edge.
  images = jnp.asarray([0.0, 0.0, 2.0, 2.0]).reshape(1, 1, 4, 1)
  for labels, expected in (([1, 1, 1, 1], 0), ([1, 2, 2, 2], 1 / 3), ([1, 1, 2, 2], np.exp(-1.5) / 3)):
    probs = jax.nn.one_hot(jnp.asarray(labels), 3).reshape(1, 1, 4, 3)
    np.testing.assert_allclose(losses.potts_loss(probs, images), expected, atol=1e-7)
    np.testing.assert_allclose(losses.potts_loss(probs, 100 * images + 7), expected, atol=1e-6)
    transposed = losses.potts_loss(probs.swapaxes(1, 2), images.swapaxes(1, 2))
    np.testing.assert_allclose(transposed, expected, atol=1e-7)


def test_potts_moves_a_boundary_to_the_edge_in_the_image():
  images = jnp.zeros((1, H, W, 3)).at[:, :, 5:].set(200.0)
  probs = jnp.full((1, H, W, 3), 1 / 3).at[:, :, :3].set(jnp.eye(3)[1]).at[:, :, 7:].set(jnp.eye(3)[2])
  logits = jnp.log(probs + 1e-3)
  step = jax.jit(jax.grad(lambda logits: losses.potts_loss(jax.nn.softmax(logits), images)))
  for _ in range(200):
    logits -= 50.0 * step(logits)
  labels = np.asarray(logits.argmax(axis=-1))[0]
  np.testing.assert_array_equal(labels, np.broadcast_to(np.where(np.arange(W) < 5, 1, 2), (H, W)))


@pytest.mark.parametrize(("shape", "expected"), [((1, 4, 5), 0.75), ((2, 1, 1), 0), ((0, 3, 4), 0)])
def test_potts_without_contrast_or_pairs_is_finite(shape, expected):
  probs = jnp.full((*shape, 4), 0.25)
  value, (gradient,) = compiled_gradient(losses.potts_loss)(probs, jnp.ones((*shape, 3)))
  np.testing.assert_allclose(value, expected)
  assert np.isfinite(gradient).all()


def test_assigned_semantic_consistency_does_not_depend_on_the_features_scale():
  # Without parts everything is left unexplained; half the features, and a quarter of their energy is.
  features = np.full((B, 3, 4, 2), 5.0, np.float32)
  parts = np.zeros((B, H, W, 2), np.float32)
  parts[..., 1] = 1.0
  for share, expected in ((0.0, 1.0), (0.5, 0.25), (1.0, 0.0)):
    value = assigned_semantic(parts, np.full((1, 2), 5 * share, np.float32), features, np.ones_like(SALIENCY))
    np.testing.assert_allclose(value, expected, atol=1e-6)
  scaled = assigned_semantic(PROBS, 100 * BASIS, 100 * FEATURES, SALIENCY)
  np.testing.assert_allclose(scaled, assigned_semantic(PROBS, BASIS, FEATURES, SALIENCY), rtol=1e-5)


def test_assigned_semantic_consistency_takes_no_mixture_for_a_part():
  # Features half-way between two parts: a mixture has them exactly, each part alone is off by (1, -1).
  features = np.ones((B, 3, 4, 2), np.float32)
  parts = np.broadcast_to(np.float32([0, 0.5, 0.5]), (B, H, W, 3))
  basis = np.float32([[2, 0], [0, 2]])
  everywhere = np.ones_like(SALIENCY)
  np.testing.assert_allclose(semantic(parts, basis, features, everywhere), 0.0, atol=1e-6)
  np.testing.assert_allclose(assigned_semantic(parts, basis, features, everywhere), 1.0, rtol=1e-6)


def test_assigned_semantic_consistency_without_foreground_is_bounded():
  # As if a hundredth of the features' energy were foreground: an empty mask outweighs no other image by more.
  gradient = compiled_gradient(assigned_semantic, 2)
  for saliency in (0 * SALIENCY, 1e-3 * SALIENCY):
    value, gradients = gradient(PROBS, BASIS, FEATURES, saliency)
    full, full_gradients = gradient(PROBS, BASIS, FEATURES, np.ones_like(SALIENCY))
    assert 0 < value < 100 * (1 + full)
    for found, expected in zip(gradients, full_gradients, strict=True):
      assert np.isfinite(found).all()
      assert np.linalg.norm(found) < 300 * np.linalg.norm(expected)
  nothing, gradients = gradient(PROBS, BASIS, 0 * FEATURES, SALIENCY)
  assert np.isfinite(nothing)
  assert all(np.isfinite(found).all() for found in gradients)


BAD_INPUTS = {
  "balance_epsilon": (partial(losses.balance_loss, epsilon=0.0), (PROBS,), ValueError, "epsilon"),
  "potts_images": (losses.potts_loss, (PROBS, IMAGES[:1]), ValueError, r"images .*\[B, H, W, C\]"),
  "balance_parts": (losses.balance_loss, (PROBS[..., :1],), ValueError, "K >= 1"),
  "probs_axes": (losses.concentration_loss, (PROBS[0],), ValueError, r"probs .*\[B, H, W, K\+1\]"),
  "probs_dtype": (losses.concentration_loss, (PROBS.astype(int),), TypeError, "probs .*floating-.*int"),
  "target_shape": (losses.equivariance_loss, (LOGITS, LOGITS[:1]), ValueError, r"\(1, 6, 9, 4\)"),
  "target_dtype": (losses.equivariance_loss, (LOGITS, LOGITS > 0), TypeError, "target_logits"),
  "centers": (losses.landmark_equivariance_loss, (CENTERS[..., :1], CENTERS), ValueError, "centers"),
  "targets": (losses.landmark_equivariance_loss, (CENTERS, CENTERS[:, 1:]), ValueError, "target_centers"),
  "basis_rows": (semantic, (PROBS, BASIS[1:], FEATURES, SALIENCY), ValueError, r"basis .*\(3, 10\)"),
  "basis_channels": (semantic, (PROBS, BASIS, FEATURES[..., 1:], SALIENCY), ValueError, r"basis .*\(3, 9\)"),
  "features_batch": (semantic, (PROBS, BASIS, FEATURES[:1], SALIENCY), ValueError, r"features\[0\]"),
  "saliency_shape": (semantic, (PROBS, BASIS, FEATURES, SALIENCY[:, 1:]), ValueError, "saliency"),
  "saliency_dtype": (semantic, (PROBS, BASIS, FEATURES, SALIENCY > 0), TypeError, "saliency"),
  "basis_axes": (losses.orthonormality_loss, (BASIS[0],), ValueError, r"basis .*\[K, C\]"),
  "no_part": (losses.background_loss, (LOGITS[..., :1], SALIENCY), ValueError, "K >= 1"),
  "background_saliency": (losses.background_loss, (LOGITS, SALIENCY[1:]), ValueError, "saliency"),
}


@pytest.mark.parametrize(("loss", "arguments", "error", "match"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_input_is_named(loss, arguments, error, match):
  with pytest.raises(error, match=match):
    loss(*arguments)
  with pytest.raises(error, match=match):
    jax.jit(loss)(*arguments)


@pytest.mark.parametrize(("features", "error"), [(FEATURES, ValueError), ([], ValueError), (None, TypeError)])
def test_features_must_be_a_sequence(features, error):
  with pytest.raises(error, match="features must be a sequence"):
    losses.semantic_consistency_loss(PROBS, BASIS, features)


@pytest.mark.parametrize("stranger", [None, [[[[0.0, 1.0]]]], 1.0])
@over_cases
def test_what_is_no_array_is_a_type_error(case, stranger):
  loss, arguments, _, _ = case
  for index in range(len(arguments)):
    if stranger is None and loss in (semantic, assigned_semantic) and index == 3:
      continue  # no saliency is allowed
    replaced = [stranger if i == index else argument for i, argument in enumerate(arguments)]
    with pytest.raises(TypeError, match=rf"must be a floating-point array .* got {type(stranger).__name__}"):
      loss(*replaced)


NCHW = np.moveaxis(PROBS, -1, 1)
# Eight parts, channels first.
SQUARE_LOGITS = RNG.standard_normal((1, 9, 64, 64)).astype(np.float32)
WIDE_LOGITS = SQUARE_LOGITS[:, :, :48]
NAN = np.where(np.arange(K + 1) == 2, np.nan, PROBS).astype(np.float32)
MISTAKEN_VALUES = {
  "concentration_of_logits": (losses.concentration_loss, (LOGITS,), "probabilities .*softmax"),
  "concentration_of_nan": (losses.concentration_loss, (NAN,), "from nan to nan"),
  "concentration_channels_first": (losses.concentration_loss, (NCHW,), r"are \[B, K\+1, H, W\]"),
  "centers_of_logits": (geometry.part_centers, (LOGITS,), "probabilities .*softmax"),
  "potts_of_logits": (losses.potts_loss, (LOGITS, IMAGES), "probabilities .*softmax"),
  "balance_of_logits": (losses.balance_loss, (LOGITS,), "probabilities .*softmax"),
  "semantic_of_logits": (semantic, (LOGITS, BASIS, FEATURES, SALIENCY), "probabilities .*softmax"),
  "semantic_bytes": (semantic, (PROBS, BASIS, FEATURES, 255 * SALIENCY), "saliency .*by 255"),
  "semantic_nan": (semantic, (PROBS, BASIS, FEATURES, SALIENCY * np.nan), "saliency .*nan"),
  "equivariance_of_probs": (losses.equivariance_loss, (PROBS, LOGITS), "^logits must be logits"),
  "equivariance_to_probs": (losses.equivariance_loss, (LOGITS, PROBS), "target_logits must be logits"),
  "equivariance_of_nan": (losses.equivariance_loss, (NAN, LOGITS), "logits holds NaN"),
  "background_of_infinity": (
    losses.background_loss,
    (np.where(LOGITS > 1, np.inf, LOGITS), SALIENCY),
    "logits holds infinity",
  ),
  "equivariance_channels_first": (
    losses.equivariance_loss,
    (SQUARE_LOGITS, SQUARE_LOGITS),
    r"looks like \[B, K\+1, H, W\]",
  ),
  "equivariance_channels_first_wide": (
    losses.equivariance_loss,
    (WIDE_LOGITS, WIDE_LOGITS),
    r"looks like \[B, K\+1, H, W\]",
  ),
  "background_of_probs": (losses.background_loss, (PROBS, SALIENCY), "must be logits"),
  "background_bytes": (losses.background_loss, (LOGITS, 255 * SALIENCY), "saliency .*by 255"),
  "softmax_of_probs": (geometry.part_probabilities, (PROBS,), "must be logits"),
}


@pytest.mark.parametrize(("loss", "arguments", "match"), MISTAKEN_VALUES.values(), ids=MISTAKEN_VALUES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_mistaken_values_are_noticed_outside_jit(loss, arguments, match, dtype):
  arguments = [jnp.asarray(argument, dtype) for argument in arguments]
  with pytest.raises(ValueError, match=match):
    loss(*arguments)
  jax.jit(loss)(*arguments)
  with pytest.raises(ValueError, match=match):  # a constant of the compiled function is known
    jax.jit(lambda: loss(*arguments))()


def test_the_values_checks_leave_no_trace_in_compiled_functions():
  def count(loss, *arguments):
    return str(jax.make_jaxpr(loss)(*arguments)).count("reduce_max")

  assert count(losses.concentration_loss, PROBS) == 0
  assert count(losses.balance_loss, PROBS) == 0
  assert count(semantic, PROBS, BASIS, FEATURES, SALIENCY) == 0


def test_features_with_channels_first_are_named():
  features = np.moveaxis(FEATURES, -1, 1)
  with pytest.raises(ValueError, match="channels are axis 1"):
    semantic(PROBS, BASIS, features, SALIENCY)


UNUSUAL = {
  "hard parts": jax.nn.one_hot(RNG.integers(0, 4, (1, 5, 7)), 4),
  "parts without a background": jnp.zeros((1, 5, 7, 3)).at[..., 1].set(0.3),
  "more parts than pixels": jax.nn.softmax(RNG.standard_normal((1, 2, 3, 65))),
  "one row": jax.nn.softmax(RNG.standard_normal((2, 1, 40, 40))),
  "one pixel": jax.nn.softmax(RNG.standard_normal((1, 1, 1, 3))),
  "rounded": jax.nn.softmax(3 * RNG.standard_normal((1, 9, 9, 200))).astype(jnp.bfloat16),
  "no image": jnp.zeros((0, 5, 7, 3)),
}


@pytest.mark.parametrize("probs", UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_probabilities_are_no_mistake(probs):
  losses.concentration_loss(probs)
  losses.balance_loss(probs)


@pytest.mark.parametrize(
  "logits",
  [
    np.zeros((1, 6, 6, 4)),
    10 * np.asarray(UNUSUAL["hard parts"]),
    np.full((1, 6, 6, 2), [-np.inf, 0.0]),
    RNG.standard_normal((1, 40, 64, 64)),
    RNG.standard_normal((1, 8, 64, 9)),
  ],
  ids=["zeros", "hard", "minus infinity", "wide, many parts", "strip"],
)
def test_unusual_logits_are_no_mistake(logits):
  geometry.part_probabilities(logits.astype(np.float32))
