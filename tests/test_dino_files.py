"""Files of DINO transformers: both layouts, what does not fit, the command that checks them."""

import jax
import numpy as np
import pytest

from scops_jax import models, weights
from scops_jax.models import dino
from scops_jax.weights import dino_files, inspection, published
from scops_jax.weights.conversion import WeightsError
from tests import oracle, tiny_dino
from tests.weight_files import tensor, write_zip

NAMES = tuple(tiny_dino.ARCHITECTURES)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
  tiny_dino.register(monkeypatch)


def hugging_face(name):
  """The recorded weights, as Hugging Face names them."""
  arrays = oracle.golden(f"dino/{name}")
  return {key.removeprefix("weights/"): value for key, value in arrays.items() if key.startswith("weights/")}


_NAMES = (  # of Hugging Face's files and of the authors'
  ("encoder.layer.", "blocks."),
  ("layer.", "blocks."),
  ("attention.output.dense", "attn.proj"),
  ("attention.o_proj", "attn.proj"),
  ("mlp.up_proj", "mlp.fc1"),
  ("mlp.down_proj", "mlp.fc2"),
  ("layer_scale1.lambda1", "ls1.gamma"),
  ("layer_scale2.lambda1", "ls2.gamma"),
  ("layernorm.", "norm."),
  ("embeddings.position_embeddings", "pos_embed"),
  ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
  ("embeddings.patch_embeddings.", "patch_embed.proj."),
  ("embeddings.", ""),
)


def authors(name):
  """The same as the authors name them, by plain replacements."""
  rotary = name == "dino_tiny_rotary"
  queries, found = {}, {}
  for key, value in hugging_face(name).items():
    for theirs, ours in _NAMES:
      key = key.replace(theirs, ours)
    (queries if "attention." in key else found)[key] = value
  parts = ["attention.q_proj", "attention.k_proj", "attention.v_proj"]
  if not rotary:
    parts = [f"attention.attention.{part}" for part in ("query", "key", "value")]
  # Of the keys' bias, which rotary networks mask, it does not matter what it holds.
  absent = np.full(16, 7.0, np.float32)
  for block in ("blocks.0", "blocks.1"):
    for entry in ("weight", "bias"):
      values = [queries.get(f"{block}.{part}.{entry}", absent) for part in parts]
      found[f"{block}.attn.qkv.{entry}"] = np.concatenate(values)
    if rotary:
      found[f"{block}.attn.qkv.bias_mask"] = np.repeat(np.float32([1, 0, 1]), 16)
  if rotary:
    found["storage_tokens"] = found.pop("register_tokens")
    found["rope_embed.periods"] = np.ones(2, np.float32)
  return found


def zeros(name):
  module = models.create_reference(name, ("norm",))
  patch = tiny_dino.ARCHITECTURES[name].patch
  image = np.random.default_rng(0).standard_normal((1, 2 * patch, 3 * patch, 3)).astype(np.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), image)
  return module, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes), image


@pytest.mark.parametrize("name", NAMES)
def test_both_layouts_give_the_same_network(name, tmp_path):
  module, variables, image = zeros(name)
  weights.save_state_dict(tmp_path / "theirs.safetensors", hugging_face(name))
  write_zip(tmp_path / "authors.pth", {key: tensor(value) for key, value in authors(name).items()})
  features = []
  for file in ("theirs.safetensors", "authors.pth"):
    state_dict = weights.load_state_dict(tmp_path / file)
    filled = weights.apply_state_dict(variables, state_dict, model_name=name)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(filled))
    features.append(module.apply(filled, image)[0])
  np.testing.assert_array_equal(*features)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_file_is_recognised(name, prefix):
  for layout in (hugging_face, authors):
    state_dict = {prefix + key: value for key, value in layout(name).items()}
    if prefix:  # of a classifier that stands on the transformer
      state_dict["classifier.weight"] = np.zeros((2, 16), np.float32)
    fits = inspection.find_fits(state_dict)
    found = [(fit.model_name, fit.role, fit.match.complete) for fit in fits]
    assert sorted(found) == [(name, "reference", True), (name, "segmenter", True)], layout
    assert "no head in the file" in inspection.describe(state_dict, fits, details=False)


def test_names_in_memory_are_recognised_as_well():
  # Newer transformers call a model's own tensors otherwise than its files' entries.
  renamed = {}
  for key, value in hugging_face("dino_tiny").items():
    for theirs, ours in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
      key = key.replace(f"attention.attention.{theirs}", f"attention.{ours}")
    renamed[key.replace("attention.output.dense", "attention.o_proj")] = value
  same = dino_files.to_published(hugging_face("dino_tiny"))
  again = dino_files.to_published(renamed)
  assert same.keys() == again.keys()
  rotary = {
    f"model.{key}" if key.startswith("layer.") else key: value
    for key, value in hugging_face("dino_tiny_rotary").items()
  }
  assert (
    dino_files.to_published(rotary).keys() == dino_files.to_published(hugging_face("dino_tiny_rotary")).keys()
  )


def test_other_state_dicts_stay_as_they_are():
  state_dict = {"features.0.weight": np.zeros((2, 3, 3, 3))}
  assert dino_files.to_published(state_dict) is state_dict


@pytest.mark.parametrize("name", NAMES)
def test_export_is_the_authors_layout(name):
  _, variables, _ = zeros(name)
  filled = weights.apply_state_dict(variables, authors(name), model_name=name)
  exported = weights.to_state_dict(filled, model_name=name)
  left_out = {"mask_token", "rope_embed.periods"}
  expected = {
    key: value
    for key, value in authors(name).items()
    if key not in left_out and not key.endswith("bias_mask")
  }
  assert exported.keys() == expected.keys()
  for key, value in expected.items():
    np.testing.assert_array_equal(exported[key], value, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_a_segmenter_to_pytorch_and_back(name):
  module = models.create_segmenter(name, 3)
  patch = tiny_dino.ARCHITECTURES[name].patch
  image = jax.ShapeDtypeStruct((1, patch, patch, 3), np.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), image)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
  exported = weights.to_state_dict(variables, model_name=name)
  assert weights.head_num_parts(exported, model_name=name) == 3
  zeroed = jax.tree.map(np.zeros_like, variables)
  filled = weights.apply_state_dict(zeroed, exported, model_name=name, require_head=True)
  jax.tree.map(np.testing.assert_array_equal, filled, variables)


def test_the_wrong_file_is_one_line():
  _, variables, _ = zeros("dino_tiny")
  with pytest.raises(WeightsError, match=r"^the weights are of dino_tiny_reg, not of dino_tiny$"):
    weights.apply_state_dict(variables, hugging_face("dino_tiny_reg"), model_name="dino_tiny")
  wide = authors("dino_tiny")
  wide["patch_embed.proj.weight"] = np.zeros((24, 3, 8, 8), np.float32)
  with pytest.raises(WeightsError) as info:
    weights.apply_state_dict(variables, wide, model_name="dino_tiny")
  assert str(info.value) == (
    "the weights are of a transformer of patch 8, 24 channels, 0 registers and learned positions, "
    "not of dino_tiny"
  )
  vgg = {"features.0.weight": np.zeros((2, 3, 3, 3), np.float32)}
  with pytest.raises(WeightsError, match=r"^the weights are not for dino_tiny: none of their 1 entries fits"):
    weights.apply_state_dict(variables, vgg, model_name="dino_tiny")


@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_a_missing_entry_is_named(part):
  _, variables, _ = zeros("dino_tiny")
  state_dict = hugging_face("dino_tiny")
  del state_dict[f"encoder.layer.1.attention.attention.{part}.weight"]
  with pytest.raises(
    WeightsError, match=r"^the weights do not fit dino_tiny: .*block1_attention/qkv/kernel"
  ) as info:
    weights.apply_state_dict(variables, state_dict, model_name="dino_tiny")
  assert "\n" not in str(info.value)
  complete = authors("dino_tiny")
  del complete["blocks.0.ls1.gamma"]
  with pytest.raises(WeightsError) as info:
    weights.apply_state_dict(variables, complete, model_name="dino_tiny")
  missing = "blocks.0.ls1.gamma: not in the file (our params/block0_attention/gamma)"
  assert str(info.value) == f"the weights do not fit dino_tiny: {missing}"


def test_every_published_network_says_where_its_file_is():
  for name in dino.ARCHITECTURES.keys() - tiny_dino.ARCHITECTURES.keys():
    with pytest.raises(WeightsError, match=r"huggingface\.co/facebook/dinov") as info:
      published.resolve("nowhere", name, "reference_weights")
    assert "\n" not in str(info.value)
    assert ("licence" in str(info.value)) == name.startswith("dinov3")


def test_sizes_tell_the_published_networks_apart():
  expected = [dino_files._expected(architecture) for architecture in dino.ARCHITECTURES.values()]
  assert len(set(expected)) == len(expected)
