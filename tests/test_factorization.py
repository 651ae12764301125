"""Non-negative factorisation and DFF: oracles, recovery of known factors, scale, centres and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls
from sklearn.decomposition import NMF as SklearnNMF

from scops_jax.evaluation import factorization

KEY = jax.random.key(0)


def planted(seed=0, rows=400, parts=3, channels=12):
  """Returns features with known descriptors: rows mostly of one part each."""
  rng = np.random.default_rng(seed)
  basis = rng.gamma(0.3, 1.0, (parts, channels))
  activations = rng.gamma(0.3, 0.3, (rows, parts))
  activations[np.arange(rows), rng.integers(0, parts, rows)] += 1
  return (activations @ basis).astype(np.float32), basis


def relative_error(x, factors):
  return np.linalg.norm(x - np.asarray(factors.activations) @ np.asarray(factors.basis)) / np.linalg.norm(x)


def cosine(a, b):
  a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (np.asarray(a), np.asarray(b)))
  return a @ b.T


def test_recovers_planted_descriptors():
  x, basis = planted()
  factors = factorization.fit_nmf(KEY, x, num_parts=3, num_iterations=300)
  assert factors.basis.shape == (3, 12)
  assert factors.activations.shape == (400, 3)
  assert min(factors.basis.min(), factors.activations.min()) >= 0
  assert relative_error(x, factors) < 0.02
  match = cosine(factors.basis, basis)
  assert sorted(match.argmax(axis=1)) == [0, 1, 2]
  assert match.max(axis=1).min() > 0.98


def test_error_falls_with_iterations():
  x, _ = planted()
  x = x + np.random.default_rng(1).random(x.shape, np.float32)
  errors = [
    relative_error(x, factorization.fit_nmf(KEY, x, num_parts=3, num_iterations=n)) for n in (1, 5, 25, 125)
  ]
  assert errors == sorted(errors, reverse=True)


def test_is_as_good_as_scikit_learn():
  x, _ = planted(seed=2, parts=5, channels=20)
  x = x + np.random.default_rng(1).random(x.shape, np.float32) / 4
  model = SklearnNMF(5, init="random", solver="mu", max_iter=300, tol=0, random_state=0)
  weights = model.fit_transform(x)
  theirs = np.linalg.norm(x - weights @ model.components_) / np.linalg.norm(x)
  ours = relative_error(x, factorization.fit_nmf(KEY, x, num_parts=5, num_iterations=300))
  assert ours < 1.05 * theirs


def test_the_same_key_gives_the_same_factors():
  x, _ = planted()
  first, second = (factorization.fit_nmf(KEY, x, num_parts=3, num_iterations=5) for _ in range(2))
  np.testing.assert_array_equal(first.basis, second.basis)


def test_activations_solve_non_negative_least_squares():
  x, basis = planted()
  x = x[:50] + np.random.default_rng(1).random((50, 12), np.float32)
  expected = np.stack([nnls(basis.T, row)[0] for row in x])
  found = factorization.activations(jnp.asarray(basis), x, num_iterations=2000)
  np.testing.assert_allclose(found, expected, atol=2e-3)


def test_activations_of_maps_and_of_zeros():
  x, basis = planted(rows=2 * 3 * 4)
  maps = x.reshape(2, 3, 4, 12).copy()
  maps[0, 0] = 0
  found = factorization.activations(jnp.asarray(basis), maps)
  assert found.shape == (2, 3, 4, 3)
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found[0, 0], np.zeros((4, 3)))
  flat = factorization.activations(jnp.asarray(basis), x)
  np.testing.assert_allclose(found[1].reshape(-1, 3), flat[12:], rtol=1e-5, atol=1e-6)


def test_scaled_basis_makes_activations_reach_1():
  x, _ = planted()
  factors = factorization.fit_nmf(KEY, x, num_parts=3, num_iterations=100)
  basis = factorization.scaled_basis(factors)
  np.testing.assert_allclose(cosine(basis, factors.basis).diagonal(), 1, rtol=1e-5)
  found = np.asarray(factorization.activations(basis, x, num_iterations=300))
  for column in found.T:
    assert np.percentile(column[column > 0.01 * column.max()], 99) == pytest.approx(1, rel=0.05)


def test_scaled_basis_by_hand_ignores_zeros_and_idle_factors():
  activations = jnp.array([[2.0, 0, 0], [4, 0, 0], [0, 3, 0], [0, 0, 0]])
  factors = factorization.NMF(basis=jnp.ones((3, 2)), activations=activations)
  np.testing.assert_allclose(factorization.scaled_basis(factors)[:, 0], [3.98, 3, 1], rtol=1e-6)


def test_scaled_basis_does_not_depend_on_the_split_of_scale():
  x, _ = planted()
  factors = factorization.fit_nmf(KEY, x, num_parts=3, num_iterations=20)
  scale = jnp.array([0.01, 1.0, 300.0])
  other = factorization.NMF(factors.basis * scale[:, None], factors.activations / scale)
  np.testing.assert_allclose(
    factorization.scaled_basis(other), factorization.scaled_basis(factors), rtol=1e-4
  )


def blocks(height=7, width=11):
  """Returns a feature map with part 0's descriptor left and part 1's right, background between them."""
  basis = np.array([[1.0, 0, 2], [0, 3, 1]], np.float32)
  features = np.zeros((2, height, width, 3), np.float32)
  features[:, 2:5, 1:4] = basis[0]
  features[:, 2:5, 7:10] = basis[1]
  features[1] = features[1, ::-1, ::-1]
  return features


def test_dff_finds_blocks_and_their_centres():
  features = blocks()
  basis = factorization.fit_dff(KEY, features, num_parts=2, num_iterations=500)
  maps = factorization.dff_maps(basis, features, height=7, width=11, num_iterations=500)
  assert maps.shape == (2, 7, 11, 2)
  np.testing.assert_allclose(maps.max(axis=(0, 1, 2)), [1, 1], rtol=0.02)
  centers = np.asarray(factorization.map_centers(maps))
  order = np.argsort(centers[0, :, 0])
  # Columns 2 and 8 of 0 .. 10, row 3 of 0 .. 6; the second image is turned by 180°.
  np.testing.assert_allclose(centers[0, order], [[-0.6, 0], [0.6, 0]], atol=0.02)
  np.testing.assert_allclose(centers[1, order], [[0.6, 0], [-0.6, 0]], atol=0.02)


def test_dff_maps_keep_centres_when_enlarged():
  features = blocks()
  basis = jnp.array([[1.0, 0, 2], [0, 3, 1]])
  small = factorization.dff_maps(basis, features, height=7, width=11)
  large = factorization.dff_maps(basis, features, height=61, width=101)
  assert large.shape == (2, 61, 101, 2)
  np.testing.assert_allclose(factorization.map_centers(large), factorization.map_centers(small), atol=1e-3)


def test_map_centers_by_hand():
  maps = np.zeros((1, 3, 5, 3), np.float32)
  maps[0, 2, 4, 0] = 0.25  # last pixel
  maps[0, 0, 0, 1] = 1
  maps[0, 0, 2, 1] = 3  # x = (-1 + 3 · 0) / 4
  centers = factorization.map_centers(jnp.asarray(maps))
  np.testing.assert_allclose(centers, [[[1, 1], [-0.25, -1], [0, 0]]], atol=1e-7)


def test_map_centers_follow_a_permutation_of_parts():
  maps = jnp.asarray(np.random.default_rng(0).random((2, 6, 9, 4), np.float32))
  order = jnp.array([2, 0, 3, 1])
  np.testing.assert_allclose(
    factorization.map_centers(maps[..., order]), factorization.map_centers(maps)[:, order], rtol=1e-6
  )


def test_background_positions_do_not_change_dff():
  features = blocks()
  padded = np.pad(features, ((0, 0), (0, 4), (0, 2), (0, 0)))
  first, second = (factorization.fit_dff(KEY, f, num_parts=2, num_iterations=50) for f in (features, padded))
  np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
  ("features", "message"),
  [
    (np.ones((4, 3, 2)), "rank 2"),
    (-np.ones((4, 3)), "non-negative"),
    (np.full((4, 3), np.nan), "finite"),
    (np.full((4, 3), np.inf), "finite"),
  ],
)
def test_bad_features_raise(features, message):
  with pytest.raises(ValueError, match=message):
    factorization.fit_nmf(KEY, features, num_parts=2, num_iterations=1)


@pytest.mark.parametrize(
  "sizes", [{"num_parts": 0, "num_iterations": 1}, {"num_parts": 1, "num_iterations": 0}]
)
def test_bad_sizes_raise(sizes):
  with pytest.raises(ValueError, match="at least 1"):
    factorization.fit_nmf(KEY, np.ones((4, 3)), **sizes)


def test_other_bad_input_raises():
  with pytest.raises(ValueError, match="saliency"):
    factorization.fit_dff(KEY, np.zeros((1, 2, 2, 3)), num_parts=2, num_iterations=1)
  with pytest.raises(ValueError, match=r"basis must be \[K, 3\]"):
    factorization.activations(jnp.ones((2, 4)), jnp.ones((5, 3)))
  with pytest.raises(ValueError, match="B, H, W, K"):
    factorization.map_centers(jnp.ones((4, 3, 2)))


def test_cluster_basis_by_hand():
  # Two clusters with means (5, 0) and (0, 3), and a faint position that belongs to the origin.
  features = np.array([[4.0, 0.0], [6.0, 0.0], [0.0, 2.0], [0.0, 4.0], [0.5, 0.5]]).reshape(1, 1, 5, 2)
  basis = np.array([[1.0, 0.1], [0.1, 1.0]])
  found = factorization.cluster_basis(basis, features, num_iterations=3)
  np.testing.assert_allclose(found, [[5, 0], [0, 3]], atol=1e-5)


def test_cluster_basis_leaves_out_the_rim_of_objects():
  # Two kinds of features of length 4, and their halves, where the saliency is soft.
  features = np.array([[4.0, 0.0], [0.0, 4.0], [2.0, 0.0], [0.0, 2.0]]).reshape(1, 1, 4, 2)
  basis = np.array([[1.0, 0.1], [0.1, 1.0]])
  np.testing.assert_allclose(factorization.cluster_basis(basis, features), [[3, 0], [0, 3]], atol=1e-5)
  found = factorization.cluster_basis(basis, features, background=0.7)
  np.testing.assert_allclose(found, [[4, 0], [0, 4]], atol=1e-5)


def test_cluster_basis_keeps_a_cluster_without_positions():
  features = np.array([[4.0, 0.0], [6.0, 0.0]]).reshape(1, 1, 2, 2)
  basis = np.array([[1.0, 0.0], [0.0, 7.0]])
  found = factorization.cluster_basis(basis, features)
  np.testing.assert_allclose(found, [[5, 0], [0, 7]], atol=1e-5)


def test_cluster_basis_lowers_the_distance_to_one_part_each():
  features = np.asarray(jax.random.uniform(KEY, (4, 5, 6, 7)))
  basis = factorization.fit_dff(KEY, features, num_parts=3, num_iterations=20)
  rows = features.reshape(-1, 7)

  def distance(w):
    return np.square(rows[:, None] - np.asarray(w)).sum(-1).min(-1).sum()

  errors = [
    distance(factorization.cluster_basis(basis, features, num_iterations=count)) for count in (1, 5, 50)
  ]
  assert errors[0] >= errors[1] >= errors[2] > 0
  assert errors[2] < distance(basis)


def kmeans(features, num_parts, **options):
  """Returns the clusters' means, in descending order of their coordinates."""
  found = factorization.kmeans_basis(KEY, features, num_parts=num_parts, **options)
  return sorted(np.asarray(found).tolist(), reverse=True)


def test_kmeans_basis_by_hand():
  # Two clusters with means (5, 0) and (0, 3), and a faint position that belongs to the origin.
  features = np.array([[4.0, 0.0], [6.0, 0.0], [0.0, 2.0], [0.0, 4.0], [0.5, 0.5]]).reshape(1, 1, 5, 2)
  np.testing.assert_allclose(kmeans(features, 2), [[5, 0], [0, 3]], atol=1e-5)


def test_kmeans_basis_leaves_out_the_rim_of_objects():
  # Two kinds of features of length 4, and their halves, where the saliency is soft.
  features = np.array([[4.0, 0.0], [0.0, 4.0], [2.0, 0.0], [0.0, 2.0]]).reshape(1, 1, 4, 2)
  np.testing.assert_allclose(kmeans(features, 2), [[3, 0], [0, 3]], atol=1e-5)
  np.testing.assert_allclose(kmeans(features, 2, background=0.7), [[4, 0], [0, 4]], atol=1e-5)


def test_kmeans_basis_needs_a_position_for_each_part():
  features = np.array([[4.0, 0.0], [6.0, 0.0]]).reshape(1, 1, 2, 2)
  np.testing.assert_allclose(kmeans(features, 2), [[6, 0], [4, 0]], atol=1e-5)
  with pytest.raises(ValueError, match="num_parts=3 is more than the 2 positions"):
    kmeans(features, 3)


def test_kmeans_basis_keeps_the_start_with_the_smallest_error():
  features = np.asarray(jax.random.uniform(KEY, (4, 15, 16, 7)))
  rows = features.reshape(-1, 7)

  def distance(w):
    distances = np.square(rows[:, None] - np.asarray(w)).sum(-1)
    return np.minimum(distances.min(-1), np.square(rows).sum(-1)).sum()

  def found(key, num_starts):
    return factorization.kmeans_basis(key, features, num_parts=6, num_starts=num_starts)

  alone = [distance(found(key, 1)) for key in jax.random.split(KEY, 5)]
  best = [distance(found(key, 20)) for key in jax.random.split(KEY, 5)]
  assert max(best) <= min(alone) * 1.001 < max(alone)
  # Lloyd's algorithm has ended: each cluster is its positions' mean. Positions nearest to 0 have none.
  means = np.asarray(found(KEY, 1))
  nearest = np.square(rows[:, None] - np.vstack([means, np.zeros(7)])).sum(-1).argmin(-1)
  np.testing.assert_allclose(means, [rows[nearest == part].mean(axis=0) for part in range(6)], atol=1e-5)


def test_kmeans_basis_of_many_positions_starts_on_some_of_them():
  features = np.array([[1.0, 0.0], [0.0, 1.0]])[np.arange(20_000) % 2].reshape(1, 100, 200, 2)
  np.testing.assert_allclose(kmeans(features + 1e-3, 2), [[1.001, 0.001], [0.001, 1.001]], atol=1e-4)
