"""Networks by name: what they return, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scops_jax import models
from scops_jax.models import deeplab, resnet, vgg
from scops_jax.models.base import normalize_features


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
  segmenters = (
    "efficientnet_lite0, efficientnet_lite0_x2, deeplab50, deeplab50_2branch, deeplab101, deeplab101_2branch"
  )
  references = "efficientnet_lite0, vgg16, vgg19, resnet50, resnet101"
  for call, valid in (
    (lambda: models.create_segmenter("resnet", 8), segmenters),
    (lambda: models.create_reference("resnet", ("head",)), references),
    (lambda: models.normalize("resnet", np.zeros((1, 2, 2, 3), np.float32)), "deeplab50.*vgg16"),
    (lambda: models.check_image_size("resnet", 128), segmenters),
  ):
    with pytest.raises(ValueError, match=f"'resnet'; valid: .*{valid}"):
      call()


def test_an_unknown_layer_lists_the_valid_ones():
  with pytest.raises(ValueError, match=r"'block99_expand'.*block10_depthwise"):
    models.create_reference("efficientnet_lite0", ("stem", "block99_expand"))
  with pytest.raises(ValueError, match=r"'conv5_4'; valid: relu1_1, .*relu5_4"):
    models.create_reference("vgg19", ("conv5_4",))
  with pytest.raises(ValueError, match="at least one layer"):
    models.create_reference("efficientnet_lite0", ())


def test_at_least_one_part():
  with pytest.raises(ValueError, match="num_parts"):
    models.create_segmenter("efficientnet_lite0", 0)


def test_image_size_must_fill_the_cells():
  models.check_image_size("efficientnet_lite0", 128)
  with pytest.raises(ValueError, match="take 112 or 128"):
    models.check_image_size("efficientnet_lite0", 120)
  models.check_image_size("deeplab50", 120)
  with pytest.raises(ValueError, match=r"image_size=4 is not divisible by 8.*take 8$"):
    models.check_image_size("deeplab50", 4)


def test_normalize_maps_bytes_to_about_one():
  images = np.array([0.0, 127.0, 255.0], np.float32).reshape(1, 1, 1, 3)
  np.testing.assert_array_equal(models.normalize("efficientnet_lite0", images).ravel(), [-127 / 128, 0, 1])


def test_normalize_as_each_family_expects():
  color = np.array([[100.0, 120.0, 140.0]], np.float32)
  found = models.normalize("deeplab101_2branch", color)
  np.testing.assert_allclose(found[0], [-22.67891434, 3.33123238, 35.99301207], rtol=1e-5)
  expected = [(100 / 255 - 0.485) / 0.229, (120 / 255 - 0.456) / 0.224, (140 / 255 - 0.406) / 0.225]
  for name in ("vgg16", "vgg19", "resnet50", "resnet101"):
    np.testing.assert_allclose(models.normalize(name, color)[0], expected, rtol=1e-5)


def test_normalized_features_have_unit_length():
  features = np.array([[3.0, 4.0], [0.0, 0.0], [0.0, 1e-3]], np.float32)
  expected = features / np.sqrt([[25 + 1e-6], [1e-6], [2e-6]])
  np.testing.assert_allclose(normalize_features(features), expected, rtol=1e-5)


def test_every_parameter_is_trained_unless_the_network_says_otherwise():
  module = models.create_segmenter("efficientnet_lite0", 3)
  assert module.is_trained(("stem", "kernel"))
  assert module.release_update_count(("stem", "kernel")) == 1


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
  "module",
  [
    deeplab.DeepLab(num_parts=2, block_counts=(1, 1, 1, 1), two_branch=True, stage_channels=(2, 2, 2, 2)),
    resnet.ResNetReference(layers=("layer2",), block_counts=(1, 1, 1, 1), stage_channels=(2, 2, 2, 2)),
    vgg.VggReference(layers=("relu2_1",), convolutions=vgg.VGG16),
  ],
  ids=["deeplab", "resnet", "vgg"],
)
def test_forward_mode_agrees_with_reverse_mode(module):
  """⟨c, J t⟩ = ⟨Jᵀ c, t⟩ for the Jacobian J of the outputs, to the parameters and the images."""
  rng = np.random.default_rng(0)
  images = rng.standard_normal((2, 16, 24, 3))
  shapes = jax.eval_shape(module.init, jax.random.key(0), images)
  batch_stats = jax.tree.map(lambda s: np.ones(s.shape), shapes.get("batch_stats", {}))
  options = {"train": True} if isinstance(module, models.Segmenter) else {}

  def outputs(params, images):
    variables = {"params": params, "batch_stats": batch_stats}
    return module.apply(variables, images, mutable=["batch_stats"], **options)[0]

  def draw(tree):
    return jax.tree.map(lambda s: 0.2 * rng.standard_normal(s.shape), tree)

  def products(primals, tangents, cotangents):
    _, forward = jax.jvp(outputs, primals, tangents)
    gradients = jax.vjp(outputs, *primals)[1](cotangents)
    pairs = ((cotangents, forward), (gradients, tangents))
    return [sum(jax.tree.leaves(jax.tree.map(jnp.vdot, *pair))) for pair in pairs]

  primals, tangents = (draw(shapes["params"]), images), (draw(shapes["params"]), draw(images))
  cotangents = draw(jax.eval_shape(outputs, *primals))
  quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
  forward, reverse = jax.jit(products, compiler_options=quick)(primals, tangents, cotangents)
  assert abs(reverse) > 1e-3
  np.testing.assert_allclose(forward, reverse, rtol=1e-9)
