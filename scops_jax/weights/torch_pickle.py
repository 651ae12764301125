"""Reads the tensors of PyTorch files (.pth, .pt, .bin) without PyTorch and without running pickled code.

Both containers hold a pickled object whose tensors refer to storages by key:
  zip (PyTorch >= 1.6): `NAME/data.pkl`, and one uncompressed `NAME/data/KEY` for each storage;
  legacy: pickles of a magic number, a protocol version, the writer's system, the object and the list of
    storage keys, then for each key an int64 element count and the elements.
A pickle is a program. `find_class` decides which functions it may call: here, only those below.
"""

import collections
import dataclasses
import io
import math
import pickle
import zipfile
from collections.abc import Callable
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
  """Stands in for a class such as torch.FloatStorage."""

  dtype: np.dtype


@dataclasses.dataclass
class _Storage:
  """A flat array; the legacy container's pickle comes before its elements, so `data` is set later."""

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
    """Copies the view, after checking that it lies inside its storage."""
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
  """Stands in for torch._utils._rebuild_tensor and _v2; `unused` are requires_grad and hooks."""
  if not isinstance(storage, _Storage):
    raise pickle.UnpicklingError("a tensor does not refer to a storage")
  return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor: _Tensor, *unused: Any) -> _Tensor:
  """Stands in for torch._utils._rebuild_parameter."""
  return tensor


class _Parameter:
  """Stands in for torch.nn.Parameter, which PyTorch < 0.4 pickled as Parameter(data) and its state.

  The first versions called Parameter() without data, which is then the first of five entries of the state.
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


_LoadStorage = Callable[[str, np.dtype, int], _Storage]  # arguments: key, dtype, number of elements


class _RestrictedUnpickler(pickle.Unpickler):
  """Builds containers, numbers, strings and tensors; refuses every other class or function."""

  def __init__(self, file: IO[bytes], load_storage: _LoadStorage | None = None) -> None:
    super().__init__(file)
    self._load_storage = load_storage

  def find_class(self, module: str, name: str) -> Any:
    """Returns the stand-in of an allowed name."""
    if (module, name) not in _ALLOWED:
      raise pickle.UnpicklingError(f"it contains '{module}.{name}'; only tensors in dicts and lists are read")
    return _ALLOWED[module, name]

  def persistent_load(self, pid: Any) -> _Storage:
    """Returns the storage of ('storage', type, key, location, number of elements, ...)."""
    kind, storage_type, key, _, size = pid[:5]
    # In files of PyTorch < 0.4 a sixth entry may say that this storage is a view of another one.
    if kind != "storage" or not isinstance(storage_type, _StorageType) or any(pid[5:]):
      raise pickle.UnpicklingError("a tensor's storage is of an unsupported kind")
    if self._load_storage is None or type(size) is not int or size < 0:
      raise pickle.UnpicklingError("a tensor's storage is misplaced or its size is not valid")
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
  """Returns whether a zip file was written by PyTorch."""
  with zipfile.ZipFile(file) as archive:
    return any(name.split("/")[1:] == ["data.pkl"] for name in archive.namelist())


def read_tensors(file: IO[bytes], *, zipped: bool) -> dict[str, np.ndarray]:
  """Returns the tensors of a PyTorch file by name, as load_state_dict does.

  Args:
    file: the open file, buffered and at its start.
    zipped: whether it is the zip container (PyTorch >= 1.6) or the legacy one.

  Raises:
    pickle.UnpicklingError: the pickle asks for anything but tensors and containers. A damaged file can raise
      other exceptions.
  """
  return _flatten(_load_zip(file) if zipped else _load_legacy(file), "", {})
