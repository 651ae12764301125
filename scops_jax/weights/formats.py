"""Reads and writes files of named arrays, without PyTorch."""

import math
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from scops_jax.errors import printable
from scops_jax.storage.files import local_copy, replacing
from scops_jax.storage.paths import as_path
from scops_jax.weights import torch_pickle
from scops_jax.weights.conversion import WeightsError

# Limits for files made to take all memory: of a safetensors header, and of what a zip file (.npz, .pth)
# inflates to, which may exceed one of the two.
MAX_HEADER = 16 << 20  # bytes
MAX_INFLATED = 512 << 20  # bytes
MAX_INFLATION = 8  # times the file's size

SUFFIXES = {"safetensors": ".safetensors", "npz": ".npz"}  # of the formats that are written


def load_state_dict(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Reads the tensors of a weight file by name, without PyTorch and without executing pickled code.

  The format is recognised by the content, not the name: PyTorch's zip format (>= 1.6) or its earlier pickle
  format, safetensors, or NumPy's .npz. Nested containers give dotted names ("state_dict.conv.weight"); a file
  of one bare tensor gives the name "". PyTorch's tensors that share a storage share memory here too.

  Raises:
    WeightsError: the file is missing, damaged, of another format or beyond the limits above and those of
      torch_pickle, or its pickle asks for more than tensors.
  """
  path = as_path(path)
  if not path.is_file():
    raise WeightsError(f"weight file {path}: no such file")
  try:
    with local_copy(path) as local:
      arrays = _read(local)
  except Exception as error:  # a damaged pickle can raise anything
    detail = printable(" ".join(str(error).split()), None) or type(error).__name__
    raise WeightsError(
      f"weight file {path}: not a readable PyTorch (.pth), .safetensors or .npz file of tensors ({detail})"
    ) from error
  if not arrays:
    raise WeightsError(f"weight file {path}: it holds no tensors")
  return arrays


def find_part_basis(arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
  """Returns the part basis that a file's arrays hold, or None if they are something else.

  The release saves a dict of `W`, the basis after its relu, and `W_state_dict`, the parameter before it,
  which is preferred here; it restores from a bare tensor.

  Args:
    arrays: as load_state_dict returns them.

  Returns:
    float32 `[K, C]`, the parameter before its relu (after it, if the file has only that).
  """
  raw = [name for name in arrays if name.split(".")[0] == "W_state_dict"]
  candidates = raw or [name for name in arrays if name == "W"] or list(arrays)
  if len(candidates) != 1 or arrays[candidates[0]].ndim != 2:
    return None
  return arrays[candidates[0]].astype(np.float32)


def save_state_dict(path: str | pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes named arrays; the file appears complete or not at all.

  Args:
    path: ends with .safetensors, or with .npz, where bfloat16, which NumPy can't save, becomes float32.
    arrays: of any shapes.

  Raises:
    WeightsError: the name ends otherwise, the format lacks a dtype, or the file can't be written.
  """
  path = as_path(path)
  if path.suffix not in SUFFIXES.values():
    raise WeightsError(
      f"{path}: weights are written as .safetensors, which PyTorch loads with "
      "safetensors.torch.load_file(path), or as .npz: give the file one of these endings"
    )
  try:
    with replacing(path) as temporary:
      if path.suffix == ".safetensors":
        # The library writes memory as it lies there, which for a view is in another order.
        ordered = {name: np.require(value, requirements="C") for name, value in arrays.items()}
        temporary.write_bytes(safetensors.numpy.save(ordered))
      else:
        members: dict[str, Any] = {
          name: value.astype(np.float32) if value.dtype == ml_dtypes.bfloat16 else value
          for name, value in arrays.items()
        }
        with temporary.open("wb") as file:
          np.savez(file, **members)
  except (OSError, TypeError, ValueError, safetensors.SafetensorError) as error:
    raise WeightsError(f"{path} can't be written: {' '.join(str(error).split())}") from error


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
  with path.open("rb") as file:
    start = file.read(9)
    size = file.seek(0, 2)
    file.seek(0)
    # safetensors begins with the size of a JSON object; its bytes may equal the magic bytes tested below.
    header = int.from_bytes(start[:8], "little")
    if start[8:] == b"{" and header <= size - 8:
      if header > MAX_HEADER:
        raise ValueError(f"its header has {header} bytes, more than {MAX_HEADER}")
      return safetensors.numpy.load_file(path, backend="pread")
    if start.startswith(b"\x80"):
      return torch_pickle.read_tensors(file)
    if not start.startswith(b"PK"):
      raise ValueError("its first bytes belong to none of these formats")
    with zipfile.ZipFile(file) as archive:
      members = archive.infolist()
      if sum(member.file_size for member in members) > max(MAX_INFLATED, MAX_INFLATION * size):
        raise ValueError(f"it inflates to more than {MAX_INFLATED} bytes and {MAX_INFLATION} times its size")
      if torch_pickle.is_torch_zip(archive):
        return torch_pickle.read_tensors(archive)
      return {member.filename.removesuffix(".npy"): _read_array(archive, member) for member in members}


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
  """Returns an array of a .npz file; its header must agree with its size."""
  with archive.open(member) as file:
    if file.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
      raise ValueError(f"its member {member.filename} is not an array")
    file.seek(0)
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, dtype = read_header[version](file)
    if dtype.kind not in "biufcSU" or file.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
      raise ValueError(f"its member {member.filename} is not an array of {shape} {dtype}")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)
