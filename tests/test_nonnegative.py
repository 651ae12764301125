"""Non-negative codes of signed features, on features that need one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scops_jax.evaluation.factorization import cluster_basis, fit_dff
from scops_jax.models import nonnegative

METHODS = ("split", "minimum", "pca")
SIDE, CHANNELS = 12, 6


def fitted(method, maps, num_components=4):
  if method not in nonnegative.FITTED:
    return None
  fit = nonnegative.CodeFit(method, num_components)
  for values in maps:
    fit.add(values)
  return (fit.code(),)


def opposite_parts(seed=0):
  """Three parts and background; the features of the first two point opposite ways, as signed ones can.

  Returns:
    Features [N, h, w, C] and which part each position shows, 3 being the background.
  """
  rng = np.random.default_rng(seed)
  directions = np.zeros((4, CHANNELS))
  directions[0, :2], directions[1, :2] = (2.0, 1.0), (-2.0, -1.0)
  directions[2, 2:4] = 1.5, -1.5
  labels = rng.integers(0, 4, (8, SIDE, SIDE))
  features = (
    directions[labels] + 0.1 * rng.standard_normal((*labels.shape, CHANNELS)) * (labels < 3)[..., None]
  )
  return features.astype(np.float32), labels


def purity(features, labels, k=3):
  """Fits DFF and clusters to D·V and returns the share of positions whose part is its cluster's."""
  basis = fit_dff(jax.random.key(0), jnp.asarray(features), num_parts=k, num_iterations=50)
  basis = cluster_basis(basis, jnp.asarray(features))
  # As the semantic term: one part a position, or the background's 0.
  energy = jnp.sum(basis**2, axis=1) - 2 * jnp.asarray(features) @ basis.T
  found = np.asarray(jnp.argmin(jnp.pad(energy, ((0, 0),) * 3 + ((0, 1),)), axis=-1))
  return sum(np.bincount(labels[found == part], minlength=4).max() for part in range(k + 1)) / labels.size


@pytest.mark.parametrize("method", METHODS)
def test_a_code_finds_the_parts_that_clipping_loses(method):
  features, labels = opposite_parts()
  foreground = (labels < 3)[..., None]
  clipped = purity(np.maximum(features, 0) * foreground, labels)
  (code,) = nonnegative.encode([jnp.asarray(features)], method, fitted(method, features))
  assert code.min() >= 0
  assert purity(np.asarray(code) * foreground, labels) > 0.99
  assert clipped < 0.85  # the part whose features are below 0 became background


def test_split_keeps_lengths_and_separates_signs():
  v = jnp.array([[[[1.0, -2.0, 0.0]]]])
  (code,) = nonnegative.encode([v], "split")
  np.testing.assert_array_equal(code[0, 0, 0], [1, 0, 0, 0, 2, 0])
  (opposite,) = nonnegative.encode([-v], "split")
  assert jnp.sum(code * opposite) == 0
  assert jnp.sum(code**2) == jnp.sum(v**2)


def test_minimum_is_the_collections_and_clamps_what_is_below_it():
  train = np.array([[1.0, -3.0], [-2.0, 4.0]], np.float32).reshape(2, 1, 1, 2)
  codes = fitted("minimum", train)
  np.testing.assert_array_equal(codes[0], [-2, -3])
  (code,) = nonnegative.encode([jnp.array([[[[-5.0, 1.0]]]])], "minimum", codes)
  np.testing.assert_array_equal(code[0, 0, 0], [0, 4])


def test_pca_keeps_the_energy_of_features_of_low_rank():
  rng = np.random.default_rng(0)
  train = rng.standard_normal((20, 3, 3, 2)) @ rng.standard_normal((2, 10))
  train = train.astype(np.float32)
  codes = fitted("pca", train, num_components=2)
  (code,) = nonnegative.encode([jnp.asarray(train)], "pca", codes)
  assert code.shape == (20, 3, 3, 4)
  np.testing.assert_allclose(jnp.sum(code**2, axis=-1), np.sum(train**2, axis=-1), rtol=1e-4)
  # Two batches give what one gives.
  whole = nonnegative.CodeFit("pca", 2)
  whole.add(train.reshape(-1, 10))
  np.testing.assert_allclose(whole.code(), codes[0], atol=1e-5)
  assert whole.code().max() > 0


def test_mean_square_is_that_of_every_position():
  v = jnp.array([[[[3.0, -4.0], [0.0, 0.0]]]])
  (code,) = nonnegative.encode([v], "split", mean_square=0.25)
  np.testing.assert_allclose(jnp.mean(code**2, axis=-1), [[[0.25, 0.0]]], rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_channels_and_dtypes(method):
  features, _ = opposite_parts()
  codes = fitted(method, features, num_components=4)
  (code,) = nonnegative.encode([jnp.asarray(features, jnp.bfloat16)], method, codes)
  assert code.dtype == jnp.bfloat16
  assert code.shape[-1] == nonnegative.num_channels(CHANNELS, method, 4)


def test_what_can_not_be_is_refused():
  v = [jnp.ones((1, 2, 2, 3))]
  with pytest.raises(ValueError, match="'pca' must be fitted"):
    nonnegative.encode(v, "pca")
  with pytest.raises(ValueError, match="unknown method 'relu'"):
    nonnegative.encode(v, "relu")
  with pytest.raises(ValueError, match="features to fit to"):
    nonnegative.CodeFit("pca", 2).code()
