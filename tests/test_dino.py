"""DINO transformers: parity with Hugging Face's transformers, positions, alignment, segmenter."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import path_aware_map

from scops_jax import geometry, models, weights
from scops_jax.models import dino, vit
from scops_jax.models.position_embedding import bicubic_matrix, rotary_tables
from scops_jax.optimizer import stop_frozen
from tests import oracle, tiny_dino, torch_dino

NAMES = tuple(tiny_dino.ARCHITECTURES)
GRIDS = ((5, 5), (3, 7))


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
  tiny_dino.register(monkeypatch)


class Tokens(nn.Module):
  """All layers' patch tokens, as they are."""

  architecture: vit.Architecture

  @nn.compact
  def __call__(self, images):
    return vit.compute_layers(images, self.architecture, self.architecture.layers)


def zeros(module, images):
  shapes = jax.eval_shape(module.init, jax.random.key(0), images)
  return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def recorded(name):
  """Returns the recorded weights, and the recorded tokens by grid and layer."""
  arrays = oracle.golden(f"dino/{name}")
  state_dict = {
    key.removeprefix("weights/"): value for key, value in arrays.items() if key.startswith("weights/")
  }
  tokens = {
    grid: {layer: arrays["tokens/{}x{}/{}".format(*grid, layer)] for layer in ("block0", "block1", "norm")}
    for grid in GRIDS
  }
  return state_dict, tokens


def images(architecture, height, width):
  """As tests/record_dino.py draws them."""
  rng = np.random.default_rng((height, width))
  shape = (1, height * architecture.patch, width * architecture.patch, 3)
  return rng.standard_normal(shape).astype(np.float32)


def relative_error(found, expected):
  return np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("name", NAMES)
def test_patch_tokens_are_the_recorded_ones(name):
  state_dict, expected = recorded(name)
  architecture = tiny_dino.ARCHITECTURES[name]
  module = Tokens(architecture)
  for grid in GRIDS:
    x = images(architecture, *grid)
    variables = weights.apply_state_dict(zeros(module, x), state_dict, model_name=name)
    found = jax.jit(module.apply)(variables, x)
    for layer, values in expected[grid].items():
      assert relative_error(found[layer], values) < 1e-5, (grid, layer)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_near(name):
  state_dict, expected = recorded(name)
  architecture = tiny_dino.ARCHITECTURES[name]
  module = Tokens(architecture)
  x = images(architecture, 3, 7)
  variables = weights.apply_state_dict(zeros(module, x), state_dict, model_name=name)
  found = jax.jit(module.apply)(variables, x.astype(jnp.bfloat16))
  assert all(value.dtype == jnp.bfloat16 for value in found.values())
  assert relative_error(found["norm"], expected[3, 7]["norm"]) < 0.03


PUBLISHED = ("dinov2_vits14", "dinov2_vits14_reg", "dinov3_vits16")


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("grid", [(37, 37), (12, 20)])
def test_parity_of_the_published_sizes_with_transformers(name, grid):
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  architecture = dino.ARCHITECTURES[name]
  model = torch_dino.create(architecture)
  state_dict = torch_dino.saved_state_dict(model)
  if name == "dinov2_vits14":
    torch_dino.with_published_offset(model)
  x = images(architecture, *grid)
  expected = torch_dino.patch_tokens(model, x, architecture)
  module = Tokens(architecture)
  variables = weights.apply_state_dict(zeros(module, x), state_dict, model_name=name)
  found = jax.jit(module.apply)(variables, x)
  for layer, values in zip(architecture.layers, expected, strict=True):
    assert relative_error(found[layer], values) < 2e-4, layer
    # An outlier of one token would hide in the norm.
    assert np.abs(found[layer] - values).max() < 2e-4 * np.abs(values).max(), layer


@pytest.mark.parametrize("sizes", [(37, 18), (37, 36), (37, 40), (5, 3), (5, 13)])
@pytest.mark.parametrize("options", [{}, {"offset": 0.1}, {"antialias": True}])
def test_parity_of_bicubic_interpolation_with_pytorch(sizes, options):
  torch = pytest.importorskip("torch")
  size, new_size = sizes
  x = torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(0))
  target = {"size": (new_size, new_size), "antialias": options.get("antialias", False)}
  if "offset" in options:
    target = {"scale_factor": (new_size + 0.1) / size}
  expected = torch.nn.functional.interpolate(x, mode="bicubic", **target)[0, 0].numpy()
  matrix = bicubic_matrix(size, new_size, **options)
  np.testing.assert_allclose(matrix @ x[0, 0].numpy() @ matrix.T, expected, atol=2e-5)


def test_bicubic_interpolation_by_hand():
  # Twice as many cells: output 2 lies at 0.75; a = -0.75; cell -1 repeats cell 0.
  expected = [-0.03515625 + 0.26171875, 0.87890625, -0.10546875, 0]  # of distances 7/4, 3/4, 1/4, 5/4
  np.testing.assert_allclose(bicubic_matrix(4, 8)[2], expected, atol=1e-12)
  for options in ({}, {"offset": 0.1}, {"antialias": True}):
    for new_size in (2, 4, 9):
      np.testing.assert_allclose(bicubic_matrix(4, new_size, **options).sum(axis=1), 1, atol=1e-12)
  np.testing.assert_allclose(bicubic_matrix(4, 4, antialias=True), np.eye(4), atol=1e-12)


def test_rotary_angles():
  # 2 × 4 patches, 8 channels: f = 1 and 100^(-1/2); row 1 lies at y = 1/2, column 3 at x = 3/4.
  cos, sin = rotary_tables(2, 4, 8)
  angles = 2 * np.pi * np.array([0.5, 0.05, 0.75, 0.075])
  np.testing.assert_allclose(cos[7], np.tile(np.cos(angles), 2), atol=1e-6)
  np.testing.assert_allclose(sin[7], np.tile(np.sin(angles), 2), atol=1e-6)


def test_cells_are_centred_in_their_patches():
  # A map of each cell's own centre, in pixels, says where its values end up: H != W.
  patch, height, width = 14, 4, 7
  y, x = (patch * np.arange(n) + 6.5 for n in (height, width))
  cells = jnp.asarray(np.stack(np.meshgrid(x, y), axis=-1)[None], jnp.float32)
  lattice = dino.to_lattice(cells, patch, height, width)
  pixels = geometry.resize_bilinear(lattice, height * patch, width * patch)[0]
  # Exact between the second lattice point and the last but one: 55 / 3 and 97 / 6 pixels from the border.
  expected = np.stack(np.meshgrid(np.arange(17, 81), np.arange(19, 37)), axis=-1)
  np.testing.assert_allclose(pixels[19:37, 17:81], expected, atol=1e-3)
  np.testing.assert_allclose(pixels[0, 0], [6.5, 6.5], atol=1e-4)  # clamped at the border
  np.testing.assert_allclose(pixels[-1, -1], [90.5, 48.5], atol=1e-4)


def centroid(cells, height, width):
  """Returns the row and column of a map's centre of mass after upsampling."""
  pixels = np.asarray(geometry.resize_bilinear(jnp.asarray(cells), height, width))[0].sum(axis=-1)
  rows, columns = np.mgrid[:height, :width]
  return np.array([(rows * pixels).sum(), (columns * pixels).sum()]) / pixels.sum()


def test_features_of_a_drawn_shape_lie_on_the_shape():
  patch, height, width = 14, 6, 10
  y, x = np.mgrid[: height * patch, : width * patch]
  for center in ((30.0, 25.0), (20.0, 110.0), (60.0, 118.0)):  # rows, columns
    disc = np.hypot(y - center[0], x - center[1]) < 18
    tokens = disc.reshape(height, patch, width, patch).mean(axis=(1, 3), dtype=np.float32)[None, ..., None]
    lattice = dino.to_lattice(jnp.asarray(tokens), patch, height, width)

    placed, stretched = (centroid(cells, *disc.shape) for cells in (lattice, tokens))
    assert np.abs(placed - center).max() < 1
    # Taken as they are, as if the outermost cells lay on the border, they would be further off.
    assert np.abs(stretched - center).max() > 2


def test_a_reference_returns_the_tokens_on_the_lattice():
  state_dict, expected = recorded("dino_tiny_reg")
  module = models.create_reference("dino_tiny_reg", ("norm", "block0"))
  assert module.signed
  x = images(tiny_dino.ARCHITECTURES["dino_tiny_reg"], 3, 7)
  variables = weights.apply_state_dict(zeros(module, x), state_dict, model_name="dino_tiny_reg")
  for found, layer in zip(module.apply(variables, x), module.layers, strict=True):
    cells = expected[3, 7][layer]
    for axis, count in ((1, 3), (2, 7)):
      pixels = np.linspace(0, count * 14 - 1, count)
      centers = 14 * np.arange(count) + 6.5
      cells = np.apply_along_axis(functools.partial(np.interp, pixels, centers), axis, cells)
    np.testing.assert_allclose(found, cells, atol=1e-4)
  normalized = models.create_reference("dino_tiny_reg", ("norm",), l2_normalize=True)
  lengths = np.linalg.norm(normalized.apply(variables, x)[0], axis=-1)
  np.testing.assert_allclose(lengths, 1, atol=1e-4)


def test_layers_after_the_last_are_not_computed():
  module = models.create_reference("dino_tiny", ("block0",))
  variables = jax.eval_shape(
    module.init, jax.random.key(0), images(tiny_dino.ARCHITECTURES["dino_tiny"], 2, 3)
  )
  assert set(variables["params"]) == {"embed", "block0_attention", "block0_mlp"}


def test_the_published_sizes():
  for name, millions in (("dinov2_vits14", 22.06), ("dinov2_vitb14_reg", 86.58), ("dinov3_vitl16", 303.15)):
    module = models.create_reference(name, ("norm",))
    image = jax.ShapeDtypeStruct((1, 112, 112, 3), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)
    assert round(sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6, 2) == millions


@pytest.mark.parametrize("name", NAMES)
def test_sides_that_are_no_multiple_of_the_patch_are_refused(name):
  patch = tiny_dino.ARCHITECTURES[name].patch
  image = jnp.zeros((1, patch, patch + 2, 3))
  for module in (models.create_reference(name, ("norm",)), models.create_segmenter(name, 2)):
    with pytest.raises(
      ValueError, match=rf"multiples of the patch, {patch} pixels, got \({patch}, {patch + 2}\)"
    ):
      module.init(jax.random.key(0), image)
  with pytest.raises(ValueError, match=r"^image_size=65 is not divisible by .*take"):
    models.check_image_size(name, 65)
  with pytest.raises(ValueError, match=r"^reference_image_size=65 is not divisible by .*take"):
    models.check_reference_image_size(name, 65)
  models.check_reference_image_size("vgg19", 65)


@pytest.mark.parametrize("name", NAMES)
def test_a_segmenter_has_stride_4_and_the_same_gradient_with_less_kept(name):
  architecture = tiny_dino.ARCHITECTURES[name]
  module = models.create_segmenter(name, 3)
  x = images(architecture, 2, 3)
  variables = jax.jit(module.init)(jax.random.key(0), x)
  logits = module.apply(variables, x)
  assert logits.shape == (1, *(-(-(side - 1) // 4) + 1 for side in x.shape[1:3]), 4)

  def loss(params, *, train):
    return jnp.sum(module.apply({"params": params}, x, train=train) ** 2)

  plain, kept_less = (
    jax.jit(jax.grad(functools.partial(loss, train=train)))(variables["params"]) for train in (False, True)
  )
  for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(kept_less), strict=True):
    np.testing.assert_allclose(b, a, atol=1e-5 * max(1e-3, float(jnp.abs(a).max())))
  trunk = {path: leaf for path, leaf in plain.items() if not path.startswith("head")}
  assert all(bool(jnp.abs(leaf).max() > 0) for leaf in jax.tree.leaves(trunk) if leaf.ndim > 1)


def test_a_segmenter_sees_edges_where_they_are():
  # Zero tokens: only the head's own convolutions see the image, which differs from grey in one square.
  module = models.create_segmenter("dino_tiny", 1)
  x = np.zeros((1, 70, 112, 3), np.float32)
  x[0, 20:32, 60:84] = 1.0
  variables = module.init(jax.random.key(0), x)
  variables = jax.tree.map(np.asarray, variables)
  variables["params"]["head_lateral"] = jax.tree.map(np.zeros_like, variables["params"]["head_lateral"])
  change = module.apply(variables, x) - module.apply(variables, np.zeros_like(x))
  center = centroid(jnp.abs(change), 70, 112)
  np.testing.assert_allclose(center, [25.5, 71.5], atol=2.0)


@pytest.mark.parametrize("name", NAMES)
def test_a_segmenter_trains_in_bfloat16_with_its_trunk_frozen(name):
  module = models.create_segmenter(name, 3)
  x = jnp.asarray(images(tiny_dino.ARCHITECTURES[name], 2, 3), jnp.bfloat16)
  params = jax.jit(module.init)(jax.random.key(0), x)["params"]
  trainable = path_aware_map(lambda path, _: path[0].startswith("head"), params)

  def loss(params):
    logits = module.apply({"params": stop_frozen(params, trainable)}, x, train=True)
    assert logits.dtype == jnp.bfloat16
    return jnp.sum(logits.astype(jnp.float32) ** 2)

  gradient = jax.jit(jax.grad(loss))(params)
  for path, leaf in gradient.items():
    trained = path.startswith("head")
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(leaf))
    assert any(bool(g.any()) for g in jax.tree.leaves(leaf)) == trained, path
