"""What holds for every input: finite values and gradients, bounds, invariances, and a float64 oracle.

Shapes come from a short list, because each of them is compiled.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scops_jax import geometry, losses, warp
from scops_jax.evaluation import segmentation_metrics as measures
from scops_jax.evaluation.landmark_regression import regress_landmarks
from tests import oracle

few = settings(max_examples=15, derandomize=True, deadline=None, database=None)

MAPS = [  # [B, H, W, K+1] and the dtype
  ((2, 5, 7, 4), jnp.float32),
  ((2, 5, 7, 4), jnp.bfloat16),
  ((2, 1, 6, 3), jnp.float32),
  ((1, 4, 1, 2), jnp.bfloat16),
  ((1, 1, 1, 3), jnp.float32),
]
KINDS = ["noise", "steep", "empty", "one part", "one label a pixel"]
seeds = st.integers(0, 2**32 - 1)


def draw_logits(kind, shape, rng):
  """Returns logits up to ±1e4, of maps that may be empty (all background) or saturated."""
  noise = rng.standard_normal(shape)
  if kind == "empty":
    noise[..., 0] = 1e4
  elif kind == "one part":
    noise[..., -1] = 1e4
  elif kind == "one label a pixel":
    noise = np.where(noise == noise.max(-1, keepdims=True), 1e4, -1e4)
  return noise * 1e4 / abs(noise).max() if kind == "steep" else noise


def draw_saliency(kind, shape, rng):
  return {"zeros": np.zeros(shape), "ones": np.ones(shape), "noise": rng.uniform(size=shape)}[kind]


def terms(logits, target, saliency, features, basis):
  """Returns the loss terms, all from the same arrays."""
  probs = geometry.part_probabilities(logits)
  centers, target_centers = geometry.part_centers(probs), geometry.part_centers(jax.nn.softmax(target))
  return {
    "concentration": losses.concentration_loss(probs),
    "equivariance": losses.equivariance_loss(logits, target),
    "landmark_equivariance": losses.landmark_equivariance_loss(centers, target_centers),
    "semantic_consistency": losses.semantic_consistency_loss(probs, basis, [features], saliency=saliency),
    "orthonormality": losses.orthonormality_loss(basis),
    "background": losses.background_loss(logits, saliency),
    "balance": losses.balance_loss(probs),
    "potts": losses.potts_loss(probs, saliency[..., None]),
  }


@jax.jit
def gradients_and_terms(*arrays):
  def total(*arrays):
    found = terms(*arrays)
    return sum(found.values()), found

  return jax.grad(total, argnums=(0, 1, 4), has_aux=True)(*arrays)


def log_softmax(logits):
  shifted = logits - logits.max(-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def exact_terms(logits, target, saliency, features, basis):
  """Returns the same in float64, written from the equations."""
  logits, target, saliency, features, basis = (
    np.asarray(a, np.float64) for a in (logits, target, saliency, features, basis)
  )
  height, width = logits.shape[1:3]
  log_probs, log_target = log_softmax(logits), log_softmax(target)
  probs, target_probs = np.exp(log_probs), np.exp(log_target)
  points = np.asarray(geometry.coordinate_grid(height, width), np.float64)

  def densities(probs):
    parts = probs[..., 1:] + 1e-3
    return parts / parts.sum((1, 2), keepdims=True)

  def centers(probs):
    return np.einsum("bhwk,hwd->bkd", densities(probs), points)

  squared = ((points[:, :, None] - centers(probs)[:, None, None]) ** 2).sum(-1)
  rows, columns = (
    geometry.interpolation_matrix(*sizes) for sizes in zip(features.shape[1:3], (height, width), strict=True)
  )
  upsampled = np.einsum("Hh,Ww,bhwc->bHWc", rows, columns, features)
  areas = probs[..., 1:].mean((1, 2)) + 1e-3
  shares = areas / areas.sum(1, keepdims=True)
  with np.errstate(divide="ignore"):
    log_parts = np.logaddexp.reduce(log_probs[..., 1:], axis=-1)
  normalized = basis / np.sqrt((basis**2).sum(1, keepdims=True) + 1e-6)
  return {
    "concentration": (squared * densities(probs)).sum((1, 2, 3)).mean(),
    "equivariance": (target_probs * (log_target - log_probs)).sum(-1).mean(),
    "landmark_equivariance": ((centers(probs) - centers(target_probs)) ** 2).mean(),
    "semantic_consistency": ((saliency[..., None] * upsampled - probs[..., 1:] @ basis) ** 2).mean(),
    "orthonormality": ((normalized @ normalized.T - np.eye(len(basis))) ** 2).sum(),
    "background": -((1 - saliency) * log_probs[..., 0] + saliency * log_parts).mean(),
    "balance": -np.log(shares.shape[1] * shares).mean(),
    "potts": oracle.potts(probs, saliency[..., None]),
  }


@few
@given(
  seed=seeds,
  maps=st.sampled_from(MAPS),
  kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
  saliency_kind=st.sampled_from(["zeros", "ones", "noise"]),
)
def test_losses(seed, maps, kinds, saliency_kind):
  rng = np.random.default_rng(seed)
  shape, dtype = maps
  batch, *_, channels = shape
  logits, target = (draw_logits(kind, shape, rng).astype(dtype) for kind in kinds)
  saliency = draw_saliency(saliency_kind, shape[:3], rng).astype(np.float32)
  features = rng.gamma(1.0, size=(batch, 2, 3, 5)).astype(dtype)
  basis = rng.gamma(1.0, size=(channels - 1, 5)) * rng.integers(0, 2, (channels - 1, 1))
  basis = basis.astype(np.float32)
  arrays = logits, target, saliency, features, basis
  gradients, found = gradients_and_terms(*arrays)
  found = {name: float(value) for name, value in found.items()}
  exact = exact_terms(*arrays)
  rounding = 2e-2 if dtype == jnp.bfloat16 else 1e-4  # the probabilities have the logits' dtype
  scale = {"semantic_consistency": float((features.astype(np.float32) ** 2).mean() + (basis**2).sum())}
  for name, value in found.items():
    tolerance = rounding * max(1.0, abs(exact[name]), scale.get(name, 0.0))
    assert value == pytest.approx(exact[name], abs=tolerance), name
    assert value >= -tolerance, name
  assert found["concentration"] <= 2 * (channels - 1) + rounding
  assert found["landmark_equivariance"] <= 4
  for gradient in gradients:
    assert np.isfinite(np.asarray(gradient, np.float32)).all()
  images, order = rng.permutation(batch), rng.permutation(channels - 1)
  channel_order = np.concatenate([[0], 1 + order])
  _, renamed = gradients_and_terms(
    logits[images][..., channel_order],
    target[images][..., channel_order],
    saliency[images],
    features[images],
    basis[order],
  )
  for name, value in renamed.items():
    tolerance = 1e-4 * max(1.0, abs(exact[name]), scale.get(name, 0.0))
    assert float(value) == pytest.approx(found[name], abs=tolerance), name


@functools.partial(jax.jit, static_argnames="padding")
def gradients_and_warped(images, grid, *, padding):
  def squares(images, grid):
    warped = warp.warp(images, grid, padding=padding)
    return (warped.astype(jnp.float32) ** 2).sum(), warped

  return jax.grad(squares, (0, 1), has_aux=True)(images, grid)


def exact_warp(images, grid, padding):
  """Samples in float64 with weights max(0, 1 - distance) of all pixels."""
  images, grid = np.asarray(images, np.float64), np.asarray(grid, np.float64)
  weights = []
  for size, coordinates in zip(images.shape[1:3], (grid[..., 1], grid[..., 0]), strict=True):
    positions = (coordinates + 1) / 2 * (size - 1)
    if padding == "border":
      positions = np.clip(positions, 0, size - 1)
    weights.append(np.maximum(0, 1 - abs(positions[..., None] - np.arange(size))))
  return np.einsum("bhwy,bhwx,byxc->bhwc", *weights, images)


@few
@given(
  seed=seeds,
  maps=st.sampled_from(MAPS[:4]),
  padding=st.sampled_from(["zeros", "border"]),
  reach=st.sampled_from([0.5, 1.5, 1e4]),
)
def test_warps(seed, maps, padding, reach):
  rng = np.random.default_rng(seed)
  shape, dtype = maps
  images = rng.uniform(-1e4, 1e4, shape).astype(dtype)
  grid = rng.uniform(-reach, reach, (*shape[:3], 2)).astype(np.float32)
  gradients, found = gradients_and_warped(images, grid, padding=padding)
  found = np.asarray(found, np.float32)
  limit = abs(images.astype(np.float32)).max()
  assert abs(found).max() <= limit * (1 + 1e-6)
  tolerance = limit * (1e-2 if dtype == jnp.bfloat16 else 1e-5)
  np.testing.assert_allclose(found, exact_warp(images, grid, padding), atol=tolerance)
  for gradient in gradients:
    assert np.isfinite(np.asarray(gradient, np.float32)).all()
  identity = np.broadcast_to(geometry.coordinate_grid(*shape[1:3]), grid.shape)
  _, same = gradients_and_warped(images, identity, padding=padding)
  np.testing.assert_allclose(np.float32(same), images.astype(np.float32), atol=tolerance)


compiled_thin_plate = jax.jit(warp.thin_plate_grid, static_argnums=(1, 2))


@few
@given(seed=seeds, size=st.sampled_from([(3, 5), (1, 4), (4, 1), (1, 1)]))
def test_thin_plates_reproduce_affine_maps(seed, size):
  rng = np.random.default_rng(seed)
  matrix, shift = rng.uniform(-2, 2, (2, 2)), rng.uniform(-2, 2, 2)
  points = np.asarray(warp.control_lattice()) @ matrix + shift
  found = compiled_thin_plate(jnp.asarray(points[None], jnp.float32), *size)
  np.testing.assert_allclose(found[0], geometry.coordinate_grid(*size) @ matrix + shift, atol=1e-4)


compiled_centers = jax.jit(geometry.part_centers, static_argnames="epsilon")
compiled_resize = jax.jit(geometry.resize_bilinear, static_argnums=(1, 2))


@few
@given(
  seed=seeds,
  maps=st.sampled_from(MAPS),
  kind=st.sampled_from(KINDS),
  epsilon=st.sampled_from([0.0, 1e-3]),
)
def test_centers_and_resizing(seed, maps, kind, epsilon):
  rng = np.random.default_rng(seed)
  shape, dtype = maps
  logits = draw_logits(kind, shape, rng).astype(dtype)
  probs = np.exp(log_softmax(logits.astype(np.float64))).astype(dtype)
  centers = np.asarray(compiled_centers(probs, epsilon=epsilon))
  assert np.isfinite(centers).all()
  assert abs(centers).max() <= 1 + 1e-5
  for axis, sign in ((2, (-1, 1)), (1, (1, -1))):
    flipped = compiled_centers(np.flip(probs, axis), epsilon=epsilon)
    np.testing.assert_allclose(flipped, centers * np.array(sign), atol=1e-4)
  size = (3, 4)
  resized = np.asarray(compiled_resize(logits, *size), np.float64)
  rows, columns = (geometry.interpolation_matrix(*s) for s in zip(shape[1:3], size, strict=True))
  exact = np.einsum("Hh,Ww,bhwc->bHWc", rows, columns, np.asarray(logits, np.float64))
  rounding = 2**-8 if dtype == jnp.bfloat16 else 1e-5
  np.testing.assert_allclose(resized, exact, atol=rounding * max(1.0, abs(exact).max()))


@few
@given(seed=seeds, count=st.integers(12, 30), parts=st.integers(1, 4), landmarks=st.integers(2, 5))
def test_regression(seed, count, parts, landmarks):
  """In any affine frame of the centres and order of the images the error is the same; a linear map's is 0."""
  rng = np.random.default_rng(seed)
  centers, unseen = rng.uniform(-1, 1, (2, count, parts, 2))
  truth, unseen_truth = rng.uniform(0, 100, (2, count, landmarks, 2))
  expected = regress_landmarks(centers, truth, unseen, unseen_truth)
  assert np.isfinite([expected.train, expected.test]).all()
  assert min(expected.train, expected.test) >= 0
  scale, shift = rng.uniform(0.5, 2, (1, parts, 2)), rng.uniform(-5, 5, (1, parts, 2))
  order = rng.permutation(count)
  moved = regress_landmarks(
    (centers * scale + shift)[order], truth[order], unseen * scale + shift, unseen_truth
  )
  np.testing.assert_allclose([moved.train, moved.test], [expected.train, expected.test], rtol=1e-6)
  mapping = rng.standard_normal((2 * parts, 2 * landmarks))
  linear, unseen_linear = (
    (x.reshape(count, -1) @ mapping).reshape(count, landmarks, 2) for x in (centers, unseen)
  )
  fitted = regress_landmarks(centers, linear, unseen, unseen_linear)
  assert max(fitted.train, fitted.test) < 1e-6


@few
@given(seed=seeds, labels=st.integers(2, 6), classes=st.integers(2, 6), kind=st.sampled_from(["many", "few"]))
def test_measures(seed, labels, classes, kind):
  rng = np.random.default_rng(seed)
  table = rng.integers(0, 10**6 if kind == "many" else 2, (labels, classes))
  table[1, 1] += 1
  nmi, ari = measures.normalized_mutual_information(table), measures.adjusted_rand_index(table)
  iou = measures.foreground_iou(table)
  assert 0 <= nmi <= 1 + 1e-12
  assert -1 <= ari <= 1
  assert 0 <= iou <= 1
  renamed = table[rng.permutation(labels)][:, rng.permutation(classes)]
  for same in (renamed, renamed.T):
    assert measures.normalized_mutual_information(same) == pytest.approx(nmi, abs=1e-9)
    assert measures.adjusted_rand_index(same) == pytest.approx(ari, abs=1e-9)
  perfect = np.diag(1 + rng.integers(0, 1000, labels))
  assert measures.normalized_mutual_information(perfect) == pytest.approx(1.0)
  assert measures.adjusted_rand_index(perfect) == pytest.approx(1.0)
  assert measures.foreground_iou(perfect) == 1.0
