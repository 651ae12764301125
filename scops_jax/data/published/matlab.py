"""Reads MATLAB 5 files of strangers: structs, text and matrices of whole numbers, and nothing else.

scipy.io.loadmat allocates what a file's header declares, and follows nested elements without end. Here no
array is larger than its bytes in the file, a file may unpack to MAX_BYTES, and elements nest MAX_DEPTH deep.
The format is that of MathWorks, "MAT-File Format", chapter 1.
"""

import struct
import zlib
from typing import Any

import numpy as np

MAX_BYTES = 1 << 27  # of an unpacked variable: 700 masks of 500 × 375 pixels
MAX_DEPTH = 8  # PASCAL-Part's structs nest three deep
MAX_ELEMENTS = 100_000  # arrays in a file; PASCAL-Part has three for each part

_INT8, _UINT8, _UINT16, _INT32, _UINT32, _MATRIX, _COMPRESSED, _UTF8, _UTF16 = 1, 2, 4, 5, 6, 14, 15, 16, 17
_STRUCT_CLASS, _CHAR_CLASS, _INT8_CLASS, _UINT8_CLASS = 2, 4, 8, 9
_ENCODINGS = {_INT8: "latin-1", _UINT8: "latin-1", _UINT16: "utf-16", _UTF8: "utf-8", _UTF16: "utf-16"}


def read_variable(content: bytes, name: str) -> Any:
  """One variable of a file.

  Args:
    content: the file's bytes.
    name: the variable's.

  Returns:
    Of a struct array a list of {field: value}, of text a str, of a logical or 8-bit matrix the array. An
    empty array of numbers is an empty list: MATLAB writes struct arrays without elements so. None if there is
    no such variable, or of other values, such as function handles.

  Raises:
    ValueError: the file is damaged, not MATLAB 5, or beyond a limit.
  """
  order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
  if order is None:
    raise ValueError("its header is not that of MATLAB 5")
  reader = _Reader(order)
  position = 128
  while position + 8 <= len(content):
    kind, data, position = reader.element(memoryview(content), position)
    if kind == _COMPRESSED:
      unpacker = zlib.decompressobj()
      try:
        unpacked = unpacker.decompress(data, MAX_BYTES)
      except zlib.error as error:
        raise ValueError(str(error)) from error
      if not unpacker.eof:
        raise ValueError(f"a variable is cut off, or unpacks to over {MAX_BYTES >> 20} MiB")
      kind, data, _ = reader.element(memoryview(unpacked), 0)
    if kind == _MATRIX:
      found, value = reader.matrix(data, 0)
      if found == name:
        return value
  return None


class _Reader:
  def __init__(self, order: str) -> None:
    """Takes the byte order, "<" or ">"."""
    self._order = order
    self._left = MAX_ELEMENTS

  def element(self, buffer: memoryview, position: int) -> tuple[int, memoryview, int]:
    """The kind and content of the element at a position, and the position of the next one."""
    if position + 8 > len(buffer):
      raise ValueError("it ends too early")
    kind, size = struct.unpack_from(f"{self._order}II", buffer, position)
    if kind >> 16:  # a small element: both numbers in four bytes, the content in the next four
      kind, size, start, end = kind & 0xFFFF, kind >> 16, position + 4, position + 8
    else:
      start = position + 8
      # Compressed elements are not padded to eight bytes.
      end = start + (size if kind == _COMPRESSED else -(-size // 8) * 8)
    if start + size > len(buffer) or (end == position + 8 and size > 4):
      raise ValueError(f"an element declares {size} bytes, and {max(0, len(buffer) - start)} are left")
    return kind, buffer[start : start + size], end

  def matrix(self, data: memoryview, depth: int) -> tuple[str, Any]:
    """The name and value of an array."""
    self._left -= 1
    if depth > MAX_DEPTH or self._left < 0:
      raise ValueError(f"it holds over {MAX_ELEMENTS} elements, or nests them over {MAX_DEPTH} deep")
    if not data:
      return "", []
    _, flags, position = self.element(data, 0)
    _, shape, position = self.element(data, position)
    _, name, position = self.element(data, position)
    if len(flags) < 8 or len(shape) % 4 or not 8 <= len(shape) <= 128:
      raise ValueError("an array's header is damaged")
    kind = struct.unpack_from(f"{self._order}I", flags)[0] & 0xFF
    dimensions = tuple(np.frombuffer(shape, f"{self._order}i4").tolist())
    count = 1
    for length in dimensions:
      count *= length
    if min(dimensions) < 0:
      raise ValueError(f"an array has the shape {dimensions}")
    return bytes(name).decode("latin-1"), self._value(kind, data, position, dimensions, count, depth)

  def _value(
    self, kind: int, data: memoryview, position: int, shape: tuple[int, ...], count: int, depth: int
  ) -> Any:
    if kind == _STRUCT_CLASS:
      return self._structs(data, position, count, depth)
    if kind in range(6, 16) and not count:
      return []
    if kind not in (_CHAR_CLASS, _INT8_CLASS, _UINT8_CLASS):
      return None
    stored, values, _ = self.element(data, position)
    if kind == _CHAR_CLASS:
      if stored not in _ENCODINGS or len(shape) != 2 or shape[0] > 1:
        return None
      encoding = _ENCODINGS[stored]
      return bytes(values).decode(encoding + {"<": "-le", ">": "-be"}[self._order] * (encoding == "utf-16"))
    if stored not in (_INT8, _UINT8) or len(values) != count:
      raise ValueError(f"an array of shape {shape} has {len(values)} bytes")
    return np.frombuffer(values, np.uint8).reshape(shape, order="F")

  def _structs(self, data: memoryview, position: int, count: int, depth: int) -> list[dict[str, Any]]:
    _, length, position = self.element(data, position)
    _, names, position = self.element(data, position)
    step = struct.unpack_from(f"{self._order}i", length)[0] if len(length) >= 4 else 0
    if step < 1 or len(names) % step:
      raise ValueError("a struct's field names are damaged")
    texts = [bytes(names[i : i + step]).split(b"\0")[0].decode("latin-1") for i in range(0, len(names), step)]
    # An element has at least eight bytes.
    if count * max(1, len(texts)) * 8 > len(data):
      raise ValueError(f"a struct array declares {count} elements of {len(texts)} fields")
    found = []
    for _ in range(count):
      values = {}
      for text in texts:
        kind, content, position = self.element(data, position)
        if kind != _MATRIX:
          raise ValueError(f"the field {text} is no array")
        values[text] = self.matrix(content, depth + 1)[1]
      found.append(values)
    return found
