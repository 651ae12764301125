"""Networks by name: what they return, and what they refuse."""

import jax
import numpy as np
import pytest

from scops_jax import models


def test_part_basis_is_a_rectified_normal_matrix():
  basis = models.PartBasis(num_parts=3, num_channels=500)
  variables = basis.init(jax.random.key(0))
  raw = variables["params"]["raw"]
  assert raw.shape == (3, 500)
  assert raw.min() >= 0  # |N(0, 1)|: mean √(2 / π), mean square 1
  np.testing.assert_allclose(raw.mean(), 0.798, atol=0.05)
  np.testing.assert_allclose((raw**2).mean(), 1.0, atol=0.1)
  shifted = jax.tree.map(lambda w: w - 1.0, variables)
  np.testing.assert_array_equal(basis.apply(shifted), np.maximum(raw - 1.0, 0.0))


def test_an_unknown_name_lists_the_valid_ones():
  for call in (
    lambda: models.create_segmenter("resnet", 8),
    lambda: models.create_reference("resnet", ("head",)),
    lambda: models.normalize("resnet", np.zeros((1, 2, 2, 3), np.float32)),
    lambda: models.check_image_size("resnet", 128),
  ):
    with pytest.raises(ValueError, match=r"'resnet'.*efficientnet_lite0"):
      call()


def test_an_unknown_layer_lists_the_valid_ones():
  with pytest.raises(ValueError, match=r"'block99_expand'.*block10_depthwise"):
    models.create_reference("efficientnet_lite0", ("stem", "block99_expand"))
  with pytest.raises(ValueError, match="at least one layer"):
    models.create_reference("efficientnet_lite0", ())


def test_at_least_one_part():
  with pytest.raises(ValueError, match="num_parts"):
    models.create_segmenter("efficientnet_lite0", 0)


def test_image_size_must_fill_the_cells():
  models.check_image_size("efficientnet_lite0", 128)
  with pytest.raises(ValueError, match="take 112 or 128"):
    models.check_image_size("efficientnet_lite0", 120)


def test_normalize_maps_bytes_to_about_one():
  images = np.array([0.0, 127.0, 255.0], np.float32).reshape(1, 1, 1, 3)
  np.testing.assert_array_equal(models.normalize("efficientnet_lite0", images).ravel(), [-127 / 128, 0, 1])
