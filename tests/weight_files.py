"""Writes weight files as PyTorch and safetensors do, without them."""

import collections
import dataclasses
import io
import json
import pickle
import zipfile

import numpy as np


@dataclasses.dataclass(frozen=True)
class Global:
  """A class or function that a pickle names."""

  module: str
  name: str


@dataclasses.dataclass(frozen=True)
class Call:
  """A call that a pickle asks for."""

  function: Global
  args: tuple


@dataclasses.dataclass(frozen=True)
class New:
  """An object that a pickle makes without a call."""

  kind: Global


@dataclasses.dataclass(frozen=True)
class State:
  """The state that a pickle gives to an object."""

  of: Call | New
  state: tuple


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
  """The flat array that tensors view."""

  kind: str
  values: np.ndarray


class TorchPickler(pickle._Pickler):  # the one in Python, whose `save` can be extended
  """Writes what PyTorch's pickler writes, and collects the storages."""

  def __init__(self, file, view_metadata=()):
    super().__init__(file, protocol=2)
    self.storages, self.view_metadata = [], view_metadata

  def persistent_id(self, obj):
    if not isinstance(obj, Storage):
      return None
    if obj not in self.storages:
      self.storages.append(obj)
    key = str(self.storages.index(obj))
    return "storage", Global("torch", obj.kind), key, "cpu", obj.values.size, *self.view_metadata

  def save(self, obj, save_persistent_id=True):
    if isinstance(obj, Global):
      self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
    elif isinstance(obj, Call):
      self.save(obj.function)
      self.save(obj.args)
      self.write(pickle.REDUCE)
    elif isinstance(obj, New):
      self.save(obj.kind)
      self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
    elif isinstance(obj, State):
      self.save(obj.of)
      self.save(obj.state)
      self.write(pickle.BUILD)
    else:
      super().save(obj, save_persistent_id)


def write_zip(path, obj):
  """Writes the container of PyTorch >= 1.6."""
  content = io.BytesIO()
  pickler = TorchPickler(content)
  pickler.dump(obj)
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", content.getvalue())
    archive.writestr("archive/byteorder", "little")
    for i, storage in enumerate(pickler.storages):
      archive.writestr(f"archive/data/{i}", storage.values.tobytes())


def write_legacy(path, obj):
  """Writes the container of earlier versions."""
  with path.open("wb") as file:
    for header in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}):
      pickle.dump(header, file, protocol=2)
    pickler = TorchPickler(file, view_metadata=(None,))
    pickler.dump(obj)
    pickle.dump([str(i) for i in range(len(pickler.storages))], file, protocol=2)
    for storage in pickler.storages:
      file.write(storage.values.size.to_bytes(8, "little") + storage.values.tobytes())


def view(storage, shape, strides, offset=0):
  return Call(Global("torch._utils", "_rebuild_tensor_v2"), (storage, offset, shape, strides, False, {}))


def parameter(tensor):
  return Call(Global("torch._utils", "_rebuild_parameter"), (tensor, True, collections.OrderedDict()))


def tensor(array):
  """A contiguous tensor with a storage of its own."""
  kinds = {"float32": "Float", "float64": "Double", "int64": "Long", "bfloat16": "BFloat16"}
  strides = tuple(stride // array.itemsize for stride in array.strides)
  return view(Storage(f"{kinds[array.dtype.name]}Storage", array), array.shape, strides)


def vector(kind, values):
  return view(Storage(kind, values), values.shape, (1,))


def write_safetensors(path, header, content):
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  path.write_bytes(len(text).to_bytes(8, "little") + text + content)


def assert_same(loaded, expected):
  assert set(loaded) == set(expected)
  for name, value in expected.items():
    assert loaded[name].dtype == value.dtype, name
    np.testing.assert_array_equal(loaded[name], value, err_msg=name)
