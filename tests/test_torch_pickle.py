"""PyTorch's files in both containers: tensors are read, everything else that a pickle asks for is refused."""

import collections

import ml_dtypes
import numpy as np
import pytest

from scops_jax import weights
from scops_jax.errors import UserError
from tests.weight_files import (
  Call,
  Global,
  New,
  State,
  Storage,
  assert_same,
  parameter,
  vector,
  view,
  write_legacy,
  write_zip,
)

both_containers = pytest.mark.parametrize("write", [write_zip, write_legacy])
NUMBERS = np.arange(12, dtype=np.float32)


@both_containers
def test_pytorch_views_share_a_storage(write, tmp_path):
  storage = Storage("FloatStorage", NUMBERS)
  tensors = {
    "whole": parameter(view(storage, (3, 4), (4, 1))),
    "transposed": view(storage, (4, 3), (1, 4)),
    "inner": view(storage, (2, 2), (4, 1), offset=5),
    "empty": view(storage, (0, 3), (3, 1)),
    "scalar": view(Storage("LongStorage", np.array([2**40])), (), ()),
  }
  write(tmp_path / "model.pth", tensors)
  matrix = NUMBERS.reshape(3, 4)
  expected = {
    "whole": matrix,
    "transposed": matrix.T,
    "inner": matrix[1:, 1:3],
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.array(2**40),
  }
  assert_same(weights.load_state_dict(tmp_path / "model.pth"), expected)


@both_containers
def test_pytorch_dtypes(write, tmp_path):
  values = np.array([0, 1, 1, 0])
  kinds = {"Double": "f8", "Half": "f2", "Int": "i4", "Short": "i2", "Char": "i1", "Byte": "u1", "Bool": "?"}
  expected = {kind: values.astype(dtype) for kind, dtype in kinds.items()}
  expected["BFloat16"] = np.array([1.5, -2.0, 3e38], ml_dtypes.bfloat16)
  write(tmp_path / "model.pth", {kind: vector(f"{kind}Storage", array) for kind, array in expected.items()})
  assert_same(weights.load_state_dict(tmp_path / "model.pth"), expected)


@both_containers
def test_nested_containers_give_dotted_names(write, tmp_path):
  state_dict = collections.OrderedDict({"conv.weight": vector("FloatStorage", NUMBERS)})
  state_dict._metadata = {"": {"version": 1}}  # as nn.Module.state_dict leaves it
  write(tmp_path / "model.pth", {"epoch": 3, "arch": "lite", "state_dict": state_dict, "ema": [state_dict]})
  expected = {"state_dict.conv.weight": NUMBERS, "ema.0.conv.weight": NUMBERS}
  assert_same(weights.load_state_dict(tmp_path / "model.pth"), expected)


@both_containers
@pytest.mark.parametrize(
  "name",
  [
    "os.system",
    "posix.system",
    "builtins.eval",
    "numpy.load",
    "torch.load",
    "torch.storage._load_from_bytes",
    "torch.nn.modules.conv.Conv2d",
  ],
)
def test_a_pickle_that_asks_for_more_is_refused(write, name, tmp_path):
  module, _, function = name.rpartition(".")
  code = (
    f"open({str(tmp_path / 'executed')!r}, 'w')" if function == "eval" else f"touch {tmp_path / 'executed'}"
  )
  write(
    tmp_path / "model.pth",
    {"a": vector("FloatStorage", NUMBERS), "b": Call(Global(module, function), (code,))},
  )
  with pytest.raises(UserError, match=rf"model\.pth.*'{name}'"):
    weights.load_state_dict(tmp_path / "model.pth")
  assert not (tmp_path / "executed").exists()


@both_containers
@pytest.mark.parametrize(
  ("shape", "strides", "offset"),
  [
    ((3, 4), (4, 1), 1),
    ((2,), (100,), 0),
    ((2,), (-1,), 1),
    ((2, -3), (3, 1), 0),
    ((2,), (1,), -1),
    ((10**6, 10**6), (0, 0), 0),
    ((2,), (), 0),
  ],
)
def test_a_tensor_outside_its_storage_is_refused(write, shape, strides, offset, tmp_path):
  write(tmp_path / "model.pth", {"a": view(Storage("FloatStorage", NUMBERS), shape, strides, offset)})
  with pytest.raises(UserError, match=r"model\.pth.*a tensor"):
    weights.load_state_dict(tmp_path / "model.pth")


@both_containers
def test_parameters_as_the_first_versions_pickled_them(write, tmp_path):
  storage = Storage("FloatStorage", NUMBERS)
  tensor = Call(Global("torch._utils", "_rebuild_tensor"), (storage, 0, (3, 4), (4, 1)))
  parameter_class = Global("torch.nn.parameter", "Parameter")
  state = (True, False, collections.OrderedDict())
  tensors = {
    "called": State(Call(parameter_class, (tensor,)), state),
    "stated": State(New(parameter_class), (tensor, None, collections.OrderedDict(), True, False)),
  }
  write(tmp_path / "model.pth", tensors)
  matrix = NUMBERS.reshape(3, 4)
  assert_same(weights.load_state_dict(tmp_path / "model.pth"), {"called": matrix, "stated": matrix})


@both_containers
def test_a_bare_tensor_has_no_name(write, tmp_path):
  write(tmp_path / "basis.pth", vector("FloatStorage", NUMBERS))
  assert_same(weights.load_state_dict(tmp_path / "basis.pth"), {"": NUMBERS})


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_pytorch_itself(zipped, tmp_path):
  torch = pytest.importorskip("torch")
  layer = torch.nn.Conv2d(2, 3, 3)
  state_dict = {
    "state_dict": layer.state_dict(),
    "parameters": dict(layer.named_parameters()),
    "transposed": torch.arange(6).reshape(2, 3).T,
    "brain": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "epoch": 3,
  }
  torch.save(state_dict, tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
  expected = {
    f"{name}.{key}": v.detach().numpy()
    for name in ("state_dict", "parameters")
    for key, v in layer.state_dict().items()
  }
  expected["transposed"] = np.arange(6).reshape(2, 3).T
  expected["brain"] = np.array([1.5, -2.0], ml_dtypes.bfloat16)
  assert_same(weights.load_state_dict(tmp_path / "model.pth"), expected)
