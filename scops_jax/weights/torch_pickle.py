"""PyTorch files (.pth, .pt, .bin) without PyTorch: tensors read without running pickled code, and written.

Two containers hold the same pickle of an object whose tensors point to named storages:
  zip (PyTorch >= 1.6): `NAME/data.pkl`, and one uncompressed `NAME/data/KEY` for each storage;
  legacy: pickles of a magic number, a protocol version, the writer's system, the object and the list of
    storage keys, then for each key an int64 element count and the elements.
A pickle is a program: `find_class` decides what it may call, and here that is only the functions below.
"""

import collections
import dataclasses
import io
import math
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import IO, Any

import ml_dtypes
import numpy as np

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

_STORAGE_DTYPES: dict[str, Any] = {
  "DoubleStorage": np.float64,
  "FloatStorage": np.float32,
  "HalfStorage": np.float16,
  "BFloat16Storage": ml_dtypes.bfloat16,
  "LongStorage": np.int64,
  "IntStorage": np.int32,
  "ShortStorage": np.int16,
  "CharStorage": np.int8,
  "ByteStorage": np.uint8,
  "BoolStorage": np.bool_,
  "ComplexFloatStorage": np.complex64,
  "ComplexDoubleStorage": np.complex128,
}


@dataclasses.dataclass(frozen=True)
class _StorageType:
  """Stands for a class such as torch.FloatStorage."""

  dtype: np.dtype


@dataclasses.dataclass
class _Storage:
  """A flat array. Its bytes are read into `data`, in the legacy container only after the pickle."""

  dtype: np.dtype
  size: int  # elements
  data: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """A strided view of a storage; offset and strides count elements."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def to_numpy(self) -> np.ndarray:
    """Copies the view out of its storage, after checking that it lies inside."""
    data = self.storage.data
    if data is None:
      raise ValueError("a tensor's storage is missing")
    numbers = (self.offset, *self.shape, *self.strides)
    if len(self.shape) != len(self.strides) or any(type(n) is not int or n < 0 for n in numbers):
      raise ValueError("a tensor's shape or strides are not valid")
    count = math.prod(self.shape)
    last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
    if count == 0:
      return np.zeros(self.shape, data.dtype)
    if last >= data.size or count > data.size:
      raise ValueError(f"a tensor of shape {self.shape} does not fit its storage of {data.size} elements")
    byte_strides = [stride * data.itemsize for stride in self.strides]
    return np.lib.stride_tricks.as_strided(data[self.offset :], self.shape, byte_strides).copy()


def _rebuild_tensor(
  storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *unused: Any
) -> _Tensor:
  """Stands for torch._utils._rebuild_tensor and _v2; `unused` are requires_grad and hooks."""
  if not isinstance(storage, _Storage):
    raise pickle.UnpicklingError("a tensor does not point to a storage")
  return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor: _Tensor, *unused: Any) -> _Tensor:
  """Stands for torch._utils._rebuild_parameter."""
  return tensor


class _Parameter:
  """Stands for torch.nn.Parameter, a class that PyTorch < 0.4 pickled: Parameter(data), then its state.

  The first versions gave no data then: it comes first in a state of five.
  """

  data: Any = None

  def __init__(self, data: Any) -> None:
    self.data = data

  def __setstate__(self, state: tuple[Any, ...]) -> None:
    if len(state) == 5:
      self.data = state[0]


_ALLOWED: dict[tuple[str, str], Any] = {
  ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
  ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
  ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
  ("torch.nn.parameter", "Parameter"): _Parameter,
  ("torch", "Size"): tuple,
  ("collections", "OrderedDict"): collections.OrderedDict,
  **{("torch", name): _StorageType(np.dtype(dtype)) for name, dtype in _STORAGE_DTYPES.items()},
}


_LoadStorage = Callable[[str, np.dtype, int], _Storage]  # of a key, a dtype and a number of elements


class _RestrictedUnpickler(pickle.Unpickler):
  """Builds containers, numbers, strings and tensors; refuses every other class or function."""

  def __init__(self, file: IO[bytes], load_storage: _LoadStorage | None = None) -> None:
    super().__init__(file)
    self._load_storage = load_storage

  def find_class(self, module: str, name: str) -> Any:
    """Returns the stand-in of an allowed name."""
    if (module, name) not in _ALLOWED:
      raise pickle.UnpicklingError(f"it holds a '{module}.{name}', only tensors in dicts and lists are read")
    return _ALLOWED[module, name]

  def persistent_load(self, pid: Any) -> _Storage:
    """Returns the storage of ('storage', type, key, location, number of elements, ...)."""
    kind, storage_type, key, _, size = pid[:5]
    # Files of PyTorch < 0.4 may add a view of another storage; it's None in every later one.
    if kind != "storage" or not isinstance(storage_type, _StorageType) or any(pid[5:]):
      raise pickle.UnpicklingError("a tensor's storage is of a kind that is not read")
    if self._load_storage is None or type(size) is not int or size < 0:
      raise pickle.UnpicklingError("a tensor's storage is not where one can be")
    return self._load_storage(str(key), storage_type.dtype, size)


def _array(content: bytes, dtype: np.dtype, size: int) -> np.ndarray:
  if len(content) != size * dtype.itemsize:
    raise ValueError(f"a storage has {len(content)} bytes where {size * dtype.itemsize} are expected")
  return np.frombuffer(content, dtype)


def _load_zip(file: IO[bytes]) -> Any:
  with zipfile.ZipFile(file) as archive:
    pickle_name = next(name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"])
    root = pickle_name.removesuffix("data.pkl")
    if root + "byteorder" in archive.namelist() and archive.read(root + "byteorder") != b"little":
      raise ValueError("it was written on a big-endian machine")
    storages: dict[str, _Storage] = {}

    def load_storage(key: str, dtype: np.dtype, size: int) -> _Storage:
      if key not in storages:
        content = archive.read(f"{root}data/{key}")
        storages[key] = _Storage(dtype, size, _array(content, dtype, size))
      return storages[key]

    return _RestrictedUnpickler(io.BytesIO(archive.read(pickle_name)), load_storage).load()


def _load_legacy(file: IO[bytes]) -> Any:
  if [_RestrictedUnpickler(file).load() for _ in range(2)] != [_LEGACY_MAGIC, _LEGACY_PROTOCOL]:
    raise ValueError("it is a pickle, but not one of PyTorch's")
  if not _RestrictedUnpickler(file).load()["little_endian"]:
    raise ValueError("it was written on a big-endian machine")
  storages: dict[str, _Storage] = {}

  def load_storage(key: str, dtype: np.dtype, size: int) -> _Storage:
    return storages.setdefault(key, _Storage(dtype, size))

  loaded = _RestrictedUnpickler(file, load_storage).load()
  for key in _RestrictedUnpickler(file).load():
    storage = storages[key]
    size = int.from_bytes(file.read(8), "little")
    if size != storage.size:
      raise ValueError(f"storage {key} has {size} elements where {storage.size} are expected")
    storage.data = _array(file.read(size * storage.dtype.itemsize), storage.dtype, size)
  return loaded


def _flatten(value: Any, prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  if isinstance(value, _Parameter):
    value = value.data
  if isinstance(value, _Tensor):
    arrays[prefix] = value.to_numpy()
  elif isinstance(value, dict | list | tuple):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
      _flatten(item, f"{prefix}.{key}" if prefix else str(key), arrays)
  return arrays


def is_torch_zip(file: IO[bytes]) -> bool:
  """Says whether a zip file has PyTorch's members."""
  with zipfile.ZipFile(file) as archive:
    return any(name.split("/")[1:] == ["data.pkl"] for name in archive.namelist())


def read_tensors(file: IO[bytes], *, zipped: bool) -> dict[str, np.ndarray]:
  """Returns the tensors of a PyTorch file by name; nested containers give dotted names, a bare tensor "".

  Args:
    file: the open file, buffered and at its start.
    zipped: whether it is the zip container (PyTorch >= 1.6) or the legacy one.

  Raises:
    pickle.UnpicklingError: the pickle asks for anything but tensors and containers. A damaged file can raise
      other exceptions.
  """
  return _flatten(_load_zip(file) if zipped else _load_legacy(file), "", {})


def write_zip(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes what torch.save writes of a dict of tensors; of the one name "", what it writes of the tensor.

  The same arrays give the same bytes.

  Raises:
    ValueError: a dtype that PyTorch does not have.
  """
  tensors = [_pickled_tensor(array, str(i)) for i, array in enumerate(arrays.values())]
  if list(arrays) == [""]:
    content = tensors[0]
  else:
    items = [_pickled_text(name) + tensor for name, tensor in zip(arrays, tensors, strict=True)]
    content = _PICKLED_DICT + pickle.MARK + b"".join(items) + pickle.SETITEMS
  members = {"data.pkl": pickle.PROTO + b"\x02" + content + pickle.STOP, "byteorder": b"little"}
  with zipfile.ZipFile(path, "w") as archive:
    for name, member in (members | {"version": b"3\n"}).items():
      archive.writestr(zipfile.ZipInfo(f"archive/{name}"), member)
    for i, array in enumerate(arrays.values()):
      little = array.astype(array.dtype.newbyteorder("<"), copy=False)
      archive.writestr(zipfile.ZipInfo(f"archive/data/{i}"), little.tobytes())


def _pickled_tensor(array: np.ndarray, key: str) -> bytes:
  """Writes the call of _rebuild_tensor_v2 for a contiguous tensor with a storage of its own."""
  kinds = {np.dtype(dtype).name: name for name, dtype in _STORAGE_DTYPES.items()}
  if array.dtype.name not in kinds:
    raise ValueError(f"PyTorch files of dtype {array.dtype} are not written")
  strides = [math.prod(array.shape[i + 1 :]) for i in range(array.ndim)]
  storage_type = _pickled_global("torch", kinds[array.dtype.name])
  size = _pickled_integer(array.size)
  pid = _pickled_tuple(_pickled_text("storage"), storage_type, _pickled_text(key), _pickled_text("cpu"), size)
  arguments = _pickled_tuple(
    pid + pickle.BINPERSID,
    _pickled_integer(0),  # offset
    _pickled_tuple(*map(_pickled_integer, array.shape)),
    _pickled_tuple(*map(_pickled_integer, strides)),
    pickle.NEWFALSE,  # requires_grad
    _PICKLED_DICT,  # hooks
  )
  return _pickled_global("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


def _pickled_global(module: str, name: str) -> bytes:
  return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _pickled_text(text: str) -> bytes:
  content = text.encode()
  return pickle.BINUNICODE + struct.pack("<I", len(content)) + content


def _pickled_integer(number: int) -> bytes:
  content = pickle.encode_long(number)
  return pickle.LONG1 + bytes([len(content)]) + content


def _pickled_tuple(*items: bytes) -> bytes:
  return pickle.MARK + b"".join(items) + pickle.TUPLE


_PICKLED_DICT = _pickled_global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
