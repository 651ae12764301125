"""Reads the tensors of PyTorch files (.pth, .pt, .bin) without PyTorch and without unpickling.

Both containers hold a pickled object whose tensors refer to storages by key:
  zip (PyTorch >= 1.6): `NAME/data.pkl`, and one uncompressed `NAME/data/KEY` for each storage;
  legacy: pickles of a magic number, a protocol version, the writer's system, the object and the list of
    storage keys, then for each key an int64 element count and the elements.
A pickle is a program. Here the standard library only splits it into instructions (pickletools). `_Machine`
follows those that build containers, numbers, strings and tensors. It calls nothing that the file names.

Limits for files made to take all memory or time: a pickle has at most MAX_INSTRUCTIONS. Containers are nested
at most MAX_DEPTH deep, hold at most MAX_INSTRUCTIONS items when shared ones are counted each time, and have
strings or numbers as keys. A whole name has at most MAX_NAME characters. Tensors may share storages, but have
together at most MAX_SHARING times their bytes.
"""

import io
import itertools
import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

MAX_INSTRUCTIONS = 1_000_000
MAX_DEPTH = 100
MAX_NAME = 512  # characters
MAX_SHARING = 8

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
_TENSOR = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_WRAPPED = "torch._utils._rebuild_parameter"
# PyTorch < 0.4 pickled Parameter(data) and its state; the first versions Parameter() without data, which is
# then the first of five entries of the state.
_PARAMETER = "torch.nn.parameter.Parameter"
_ORDERED_DICT = "collections.OrderedDict"
_NAMES = {
  *_TENSOR,
  _WRAPPED,
  _PARAMETER,
  _ORDERED_DICT,
  "torch.Size",
  *(f"torch.{n}" for n in _STORAGE_DTYPES),
}


class _Name:
  """A class or function that the pickle names."""

  def __init__(self, name: str) -> None:
    if name not in _NAMES:
      raise pickle.UnpicklingError(f"it contains '{name}'; only tensors in dicts and lists are read")
    self.name = name


class _Storage:
  """A flat array; the legacy container's pickle comes before its elements, so `data` is set later."""

  def __init__(self, dtype: np.dtype, size: int, data: np.ndarray | None = None) -> None:
    self.dtype, self.size, self.data = dtype, size, data


class _Parameter:
  """A parameter, whose tensor may follow with its state."""

  def __init__(self, data: Any) -> None:
    self.data = data


class _Tensor(NamedTuple):
  """A strided view of a storage; offset and strides count elements."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def to_numpy(self) -> np.ndarray:
    """Returns the view, after checking that it lies inside its storage."""
    data = self.storage.data
    if data is None:
      raise ValueError("a tensor's storage is missing")
    count = math.prod(self.shape)
    last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
    if count == 0:
      return np.zeros(self.shape, data.dtype)
    if last >= data.size or count > data.size:
      raise ValueError(f"a tensor of shape {self.shape} does not fit its storage of {data.size} elements")
    byte_strides = [stride * data.itemsize for stride in self.strides]
    return np.lib.stride_tricks.as_strided(data[self.offset :], self.shape, byte_strides)


_LoadStorage = Callable[[str, np.dtype, int], _Storage]  # arguments: key, dtype, number of elements

_MARK = object()
_LITERALS = (  # instructions that push their argument
  *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
  *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
  *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
)


class _Machine:
  """Follows a pickle's instructions."""

  def __init__(self, load_storage: _LoadStorage | None = None) -> None:
    self._load_storage = load_storage
    self._stack: list[Any] = []
    self._memo: dict[int, Any] = {}
    push, pop = self._stack.append, self._pop
    self._instructions: dict[str, Callable[[Any], Any]] = {
      **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda _: None),
      **dict.fromkeys(_LITERALS, push),
      **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), self._memoize),
      **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda index: push(self._memo[int(index)])),
      "NONE": lambda _: push(None),
      "NEWTRUE": lambda _: push(True),
      "NEWFALSE": lambda _: push(False),
      "POP": lambda _: pop(1),
      "MARK": lambda _: push(_MARK),
      "EMPTY_DICT": lambda _: push({}),
      "EMPTY_LIST": lambda _: push([]),
      "EMPTY_TUPLE": lambda _: push(()),
      "TUPLE1": lambda _: push(tuple(pop(1))),
      "TUPLE2": lambda _: push(tuple(pop(2))),
      "TUPLE3": lambda _: push(tuple(pop(3))),
      "TUPLE": lambda _: push(tuple(self._pop_to_mark())),
      "LIST": lambda _: push(self._pop_to_mark()),
      "DICT": lambda _: push(_dict(self._pop_to_mark())),
      "APPEND": lambda _: self._extend(pop(1)),
      "APPENDS": lambda _: self._extend(self._pop_to_mark()),
      "SETITEM": lambda _: self._update(pop(2)),
      "SETITEMS": lambda _: self._update(self._pop_to_mark()),
      "GLOBAL": lambda name: push(_Name(name.replace(" ", "."))),
      "STACK_GLOBAL": lambda _: push(_Name(".".join(_checked(part, str) for part in pop(2)))),
      "REDUCE": lambda _: push(_call(*pop(2))),
      "NEWOBJ": lambda _: push(_call(*pop(2))),
      "BUILD": lambda _: self._build(pop(1)[0]),
      "BINPERSID": lambda _: push(self._storage(*pop(1))),
    }

  def run(self, file: IO[bytes]) -> Any:
    """Returns the object of the pickle that starts here; leaves the file at its end."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
      if count >= MAX_INSTRUCTIONS:
        raise ValueError(f"its pickle has more than {MAX_INSTRUCTIONS} instructions")
      if opcode.name not in self._instructions:
        raise pickle.UnpicklingError(f"it has the instruction {opcode.name}, which no file of tensors needs")
      self._instructions[opcode.name](argument)
    return self._stack.pop()

  def _memoize(self, index: Any) -> None:
    self._memo[len(self._memo) if index is None else int(index)] = self._stack[-1]

  def _extend(self, items: list[Any]) -> None:
    _checked(self._stack[-1], list).extend(items)

  def _update(self, items: list[Any]) -> None:
    _checked(self._stack[-1], dict).update(_dict(items))

  def _build(self, state: Any) -> None:
    """Gives a parameter its state; that of dicts is metadata."""
    if isinstance(self._stack[-1], _Parameter) and isinstance(state, tuple) and len(state) == 5:
      self._stack[-1].data = state[0]

  def _pop(self, count: int) -> list[Any]:
    if len(self._stack) < count:
      raise ValueError("its pickle is damaged")
    items = self._stack[-count:]
    del self._stack[-count:]
    return items

  def _pop_to_mark(self) -> list[Any]:
    items = []
    while (item := self._stack.pop()) is not _MARK:
      items.append(item)
    return items[::-1]

  def _storage(self, pid: Any) -> _Storage:
    """Returns the storage of ('storage', type, key, location, number of elements, ...)."""
    kind, storage_type, key, _, size, *view = _checked(pid, tuple)
    dtype = _STORAGE_DTYPES.get(_checked(storage_type, _Name).name.removeprefix("torch."))
    # In files of PyTorch < 0.4 a sixth entry may say that this storage is a view of another one.
    if kind != "storage" or dtype is None or any(view):
      raise pickle.UnpicklingError("a tensor's storage is of an unsupported kind")
    if self._load_storage is None or type(size) is not int or size < 0 or type(key) not in (str, int):
      raise pickle.UnpicklingError("a tensor's storage is misplaced or its size is not valid")
    return self._load_storage(str(key), np.dtype(dtype), size)


def _call(function: Any, arguments: Any) -> Any:
  """Returns what a function that PyTorch's files call makes of its arguments."""
  name, arguments = _checked(function, _Name).name, _checked(arguments, tuple)
  if name in _TENSOR:
    storage, offset, shape, strides = arguments[:4]  # the others are requires_grad and hooks
    numbers = (offset, *_checked(shape, tuple), *_checked(strides, tuple))
    valid = all(type(n) is int and 0 <= n < 1 << 63 for n in numbers)
    if not valid or len(shape) != len(strides) or len(shape) > 64:  # NumPy has at most 64 axes
      raise ValueError("a tensor's shape or strides are not valid")
    return _Tensor(_checked(storage, _Storage), offset, shape, strides)
  if name == _WRAPPED:
    return arguments[0]
  if name == _PARAMETER:
    return _Parameter(arguments[0] if arguments else None)
  if name == "torch.Size":
    return tuple(_checked(arguments[0], tuple))
  if name == _ORDERED_DICT:
    pairs = _checked(arguments[0], list) if arguments else []
    return _dict([item for pair in pairs for item in _checked(pair, list | tuple)])
  raise pickle.UnpicklingError(f"it calls '{name}'; only tensors in dicts and lists are read")


def _checked(value: Any, kind: Any) -> Any:
  if not isinstance(value, kind):
    raise pickle.UnpicklingError(f"its pickle has a {type(value).__name__} in the wrong place")
  return value


def _dict(items: list[Any]) -> dict[Any, Any]:
  """Returns a dict of keys and values in turn; hashing nested tuples could take forever."""
  return {_checked(key, str | int | float | None): v for key, v in zip(items[::2], items[1::2], strict=True)}


def _array(content: bytes | bytearray, dtype: np.dtype, size: int) -> np.ndarray:
  if len(content) != size * dtype.itemsize:
    raise ValueError(f"a storage has {len(content)} bytes where {size * dtype.itemsize} are expected")
  return np.frombuffer(bytearray(content), dtype)  # writable


def _load_zip(archive: Any, storages: dict[str, _Storage]) -> Any:
  pickle_name = next(name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"])
  root = pickle_name.removesuffix("data.pkl")
  if root + "byteorder" in archive.namelist() and archive.read(root + "byteorder") != b"little":
    raise ValueError("it was written on a big-endian machine")

  def load_storage(key: str, dtype: np.dtype, size: int) -> _Storage:
    if key not in storages:
      storages[key] = _Storage(dtype, size, _array(archive.read(f"{root}data/{key}"), dtype, size))
    return storages[key]

  return _Machine(load_storage).run(io.BytesIO(archive.read(pickle_name)))


def _load_legacy(file: Any, storages: dict[str, _Storage]) -> Any:
  if [_Machine().run(file) for _ in range(2)] != [_LEGACY_MAGIC, _LEGACY_PROTOCOL]:
    raise ValueError("it is a pickle, but not one of PyTorch's")
  if _checked(_Machine().run(file), dict).get("little_endian") is not True:
    raise ValueError("it was written on a big-endian machine")

  def load_storage(key: str, dtype: np.dtype, size: int) -> _Storage:
    return storages.setdefault(key, _Storage(dtype, size))

  loaded = _Machine(load_storage).run(file)
  for key in _checked(_Machine().run(file), list):
    storage = storages[_checked(key, str)]
    size = int.from_bytes(file.read(8), "little")
    if size != storage.size:
      raise ValueError(f"storage {key} has {size} elements where {storage.size} are expected")
    storage.data = _array(_read_exactly(file, size * storage.dtype.itemsize), storage.dtype, size)
  return loaded


def _read_exactly(file: IO[bytes], size: int) -> bytes:
  """Reads `size` bytes without taking memory for more than the file has."""
  here = file.tell()
  left = file.seek(0, 2) - here
  file.seek(here)
  return file.read(min(size, left))


def _flatten(value: Any, name: str, depth: int, visits: Iterator[int]) -> Iterator[tuple[str, _Tensor]]:
  """Yields the tensors with their dotted names, in order."""
  if next(visits) >= MAX_INSTRUCTIONS or depth > MAX_DEPTH or len(name) > MAX_NAME:
    raise ValueError(
      f"it has more than {MAX_INSTRUCTIONS} items, {MAX_DEPTH} levels or a name beyond {MAX_NAME}"
    )
  if isinstance(value, _Parameter):
    value = value.data
  if isinstance(value, _Tensor):
    yield name, value
  elif isinstance(value, dict | list | tuple):
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
      yield from _flatten(item, f"{name}.{key}" if name else str(key), depth + 1, visits)


def is_torch_zip(archive: zipfile.ZipFile) -> bool:
  """Returns whether a zip file was written by PyTorch."""
  return any(name.split("/")[1:] == ["data.pkl"] for name in archive.namelist())


def read_tensors(file: IO[bytes] | zipfile.ZipFile) -> dict[str, np.ndarray]:
  """Returns the tensors of a PyTorch file by name, as load_state_dict does; tensors may share memory.

  Args:
    file: the zip container (PyTorch >= 1.6), or the open file of the legacy one, buffered and at its start.

  Raises:
    pickle.UnpicklingError: the pickle asks for anything but tensors and containers. A damaged file can raise
      other exceptions.
  """
  storages: dict[str, _Storage] = {}
  load = _load_zip if isinstance(file, zipfile.ZipFile) else _load_legacy
  loaded = load(file, storages)
  tensors = {name: tensor.to_numpy() for name, tensor in _flatten(loaded, "", 0, itertools.count())}
  stored = sum(storage.data.nbytes for storage in storages.values() if storage.data is not None)
  if sum(tensor.nbytes for tensor in tensors.values()) > MAX_SHARING * stored:
    raise ValueError(f"its tensors share {stored} bytes more than {MAX_SHARING} times")
  return tensors
