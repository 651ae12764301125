"""EfficientNet-Lite0 with its published weights: classes of photographs, alignment, parity with PyTorch."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage
from PIL import Image

from scops_jax import models, weights
from scops_jax.models import efficientnet_lite

NAME = "efficientnet_lite0"
PHOTOGRAPHS = {  # of scikit-image's wheel: classes of ImageNet that name what is on them
  "coffee.png": {967: "espresso", 968: "cup"},
  "rocket.jpg": {657: "missile", 744: "projectile"},
  "motorcycle_left.png": {665: "moped", 670: "motor scooter"},
  "chelsea.png": {281: "tabby cat", 282: "tiger cat", 285: "Egyptian cat"},
}


@functools.cache
def state_dict():
  return weights.load_state_dict(weights.imagenet_weights_path(NAME))


def with_weights(module, images):
  """Returns the module's variables with the published weights."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), images)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  return weights.apply_state_dict(zeros, state_dict(), model_name=NAME)


@functools.cache
def classifier():
  module = efficientnet_lite.EfficientNetLite0()
  return jax.jit(functools.partial(module.apply, with_weights(module, jnp.zeros((1, 224, 224, 3)))))


def photograph(name):
  """Returns the middle square of a photograph at 224×224, normalised."""
  path = pathlib.Path(skimage.__file__).parent / "data" / name
  with Image.open(path) as image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.convert("RGB").crop((left, top, left + side, top + side)).resize((224, 224), Image.BICUBIC)
  return models.normalize(NAME, np.asarray(square, np.float32)[None])


@pytest.mark.parametrize("name", sorted(PHOTOGRAPHS))
def test_photographs_are_classified(name):
  assert int(classifier()(photograph(name)).argmax()) in PHOTOGRAPHS[name]


@functools.cache
def reference(layers):
  module = models.create_reference(NAME, layers)
  return jax.jit(functools.partial(module.apply, with_weights(module, jnp.zeros((1, 65, 65, 3)))))


def test_reference_layers_are_non_negative_and_in_the_order_asked_for():
  layers = ("block10_depthwise", "stem", "block4_expand")
  maps = reference(layers)(np.random.default_rng(0).standard_normal((2, 64, 97, 3)).astype(np.float32))
  assert [m.shape for m in maps] == [(2, 5, 7, 672), (2, 33, 49, 32), (2, 9, 13, 240)]
  assert all(m.min() >= 0 and m.max() <= 6 for m in maps)


def test_layers_after_the_last_one_are_not_computed():
  module = models.create_reference(NAME, ("block1_expand",))
  params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
  assert set(params) == {"stem", "block0_depthwise", "block0_project", "block1_expand"}


def test_every_reference_layer_can_be_asked_for():
  module = models.create_reference(NAME, efficientnet_lite.REFERENCE_LAYERS)
  maps, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  shapes = dict(zip(efficientnet_lite.REFERENCE_LAYERS, (m.shape[1:] for m in maps), strict=True))
  assert shapes["block15_depthwise"] == (3, 3, 1152)  # 64 is resized to 65 = 2 · 32 + 1
  assert shapes["head"] == (3, 3, 1280)


def test_cells_lie_on_the_align_corners_lattice():
  """With averaging kernels, what cell (i, j) of stride 8 sees is symmetric about pixel (8 i, 8 j)."""
  module = models.create_reference(NAME, ("block4_depthwise",))
  images = jnp.full((1, 129, 145, 3), 0.5)

  def average(path, leaf):
    values = {"kernel": 1 / np.prod(leaf.shape[:3]), "scale": 1.0, "var": 1.0}
    return jnp.full(leaf.shape, values.get(path[-1].key, 0.0))

  shapes = jax.eval_shape(module.init, jax.random.key(0), images)
  variables = jax.tree_util.tree_map_with_path(average, shapes)
  cell = jax.grad(lambda x: module.apply(variables, x)[0][0, 8, 10].sum())
  seen = np.asarray(jax.jit(cell)(images))[0, :, :, 0]
  rows, columns = np.nonzero(seen)
  # Half the field of view: Σ (k - 1) / 2 times the stride before = 1 + 2 + 2 + 4 + 8 + 16 pixels.
  assert (rows.min(), rows.max()) == (64 - 33, 64 + 33)
  assert (columns.min(), columns.max()) == (80 - 33, 80 + 33)
  view = seen[64 - 33 : 64 + 34, 80 - 33 : 80 + 34]
  np.testing.assert_allclose(view, view[::-1, ::-1], atol=1e-5 * view.max())


def test_a_shift_by_16_pixels_moves_the_maps_by_two_cells():
  image = np.random.default_rng(0).standard_normal((1, 129 + 16, 129 + 16, 3)).astype(np.float32)
  run = reference(("block4_depthwise",))
  (first,), (second,) = run(image[:, :129, :129]), run(image[:, 16:, 16:])
  # 16 pixels are two cells of stride 8. Zero padding reaches 33 pixels inwards, less than 6 cells.
  np.testing.assert_allclose(second[:, 6:9, 6:9], first[:, 8:11, 8:11], rtol=1e-4, atol=1e-4)


def test_segmenter():
  module = models.create_segmenter(NAME, 4)
  images = np.random.default_rng(0).standard_normal((2, 64, 96, 3)).astype(np.float32)
  variables = jax.jit(module.init)(jax.random.key(0), images)
  filled = weights.apply_state_dict(variables, state_dict(), model_name=NAME)
  both = jax.jit(lambda v, x: [module.apply(v, x, train=train) for train in (False, True)])
  logits, training_logits = both(filled, images)
  assert logits.shape == (2, 17, 25, 5)
  assert np.isfinite(logits).all()
  np.testing.assert_array_equal(training_logits, logits)
  heads = {name for name in filled["params"] if name.startswith("head_")}
  assert {"head_logits", "head_lateral10"} <= heads
  assert set(filled["batch_stats"]).isdisjoint(heads)
  kernel = variables["params"]["head_logits"]["kernel"]
  np.testing.assert_allclose(kernel.std(), 0.01, rtol=0.2)


@pytest.mark.usefixtures("x64")
def test_forward_mode_agrees_with_reverse_mode():
  """⟨c, J t⟩ = ⟨Jᵀ c, t⟩ for the Jacobian J of the logits, to the parameters and the images."""
  module, rng = models.create_segmenter(NAME, 2), np.random.default_rng(0)
  images = rng.standard_normal((1, 17, 33, 3))
  shapes = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
  zeros = jax.eval_shape(module.init, jax.random.key(0), images)["batch_stats"]
  statistics = jax.tree.map(lambda s: np.ones(s.shape), zeros)

  def draw(tree):
    return jax.tree.map(lambda s: 0.2 * rng.standard_normal(s.shape), tree)

  def logits(params, images):
    return module.apply({"params": params, "batch_stats": statistics}, images, train=True)

  def products(primals, tangents, cotangent):
    _, forward = jax.jvp(logits, primals, tangents)
    gradients = jax.vjp(logits, *primals)[1](cotangent)
    terms = jax.tree.map(jnp.vdot, gradients, tangents)
    return jnp.vdot(cotangent, forward), sum(jax.tree.leaves(terms))

  primals, tangents = (draw(shapes), images), (draw(shapes), draw(images))
  options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
  forward, reverse = jax.jit(products, compiler_options=options)(
    primals, tangents, rng.standard_normal((1, 5, 9, 3))
  )
  assert abs(reverse) > 1e-3
  np.testing.assert_allclose(forward, reverse, rtol=1e-9)


def test_the_x2_segmenter_has_the_whole_trunk_and_logits_twice_as_fine():
  name = "efficientnet_lite0_x2"
  module = models.create_segmenter(name, 4)
  images = np.random.default_rng(0).standard_normal((1, 32, 48, 3)).astype(np.float32)
  variables = jax.jit(module.init)(jax.random.key(0), images)
  filled = weights.apply_state_dict(variables, state_dict(), model_name=name)
  logits = jax.jit(module.apply)(filled, images)
  assert logits.shape == (1, 17, 25, 5)
  assert np.isfinite(logits).all()
  heads = {entry for entry in filled["params"] if entry.startswith("head_")}
  laterals = {f"head_lateral{i}" for i in (15, 10, 4, 2)}
  assert heads == laterals | {"head_smooth10", "head_smooth4", "head_smooth2", "head_logits"}
  assert "block15_project" in filled["params"]


def test_relu6_gradient_is_zero_at_and_beyond_the_kinks():
  gradient = jax.vmap(jax.grad(efficientnet_lite.relu6))
  np.testing.assert_array_equal(gradient(jnp.array([-1.0, 0.0, 1.0, 5.9, 6.0, 7.0])), [0, 0, 1, 1, 0, 0])


def torch_forward(torch, images):
  """Runs the published network in PyTorch, from the file's entries: logits and the output of each block."""
  weight = {key: torch.from_numpy(value) for key, value in state_dict().items()}
  functional = torch.nn.functional

  def convolve(x, key, norm, *, stride=1, groups=1, relu6=True):
    kernel = weight[f"{key}.weight"]
    padding = []
    for size in (x.shape[3], x.shape[2]):  # functional.pad starts from the last axis
      total = max((-(-size // stride) - 1) * stride + kernel.shape[2] - size, 0)
      padding += [total // 2, total - total // 2]
    x = functional.conv2d(functional.pad(x, padding), kernel, stride=stride, groups=groups)
    entries = [weight[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    x = functional.batch_norm(x, *entries, eps=1e-3)
    return functional.relu6(x) if relu6 else x

  x = convolve(torch.from_numpy(images).permute(0, 3, 1, 2), "_conv_stem", "_bn0", stride=2)
  outputs = {}
  strides = {1: 2, 3: 2, 5: 2, 11: 2}
  for i in range(16):
    block, y = f"_blocks.{i}.", x
    if i:
      y = convolve(y, f"{block}_expand_conv", f"{block}_bn0")
    stride, groups = strides.get(i, 1), y.shape[1]
    y = outputs[f"block{i}_depthwise"] = convolve(
      y, f"{block}_depthwise_conv", f"{block}_bn1", stride=stride, groups=groups
    )
    y = convolve(y, f"{block}_project_conv", f"{block}_bn2", relu6=False)
    x = x + y if x.shape == y.shape else y
  x = convolve(x, "_conv_head", "_bn1").mean((2, 3))
  outputs["classifier"] = x @ weight["_fc.weight"].T + weight["_fc.bias"]
  return {name: value.numpy() for name, value in outputs.items()}


def test_activations_are_those_of_pytorch():
  torch = pytest.importorskip("torch")
  images = np.asarray(photograph("chelsea.png"))
  expected = torch_forward(torch, images)
  np.testing.assert_allclose(classifier()(images), expected["classifier"], atol=1e-3)
  images = images[:, :129, :97]
  expected = torch_forward(torch, images)
  layers = ("block0_depthwise", "block3_depthwise", "block10_depthwise")
  for layer, value in zip(layers, reference(layers)(images), strict=True):
    np.testing.assert_allclose(value, expected[layer].transpose(0, 2, 3, 1), atol=1e-3)
