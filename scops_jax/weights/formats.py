"""Reads and writes files of named arrays, without PyTorch."""

import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from scops_jax.storage.files import replacing
from scops_jax.weights import torch_pickle
from scops_jax.weights.conversion import WeightsError

SUFFIXES = {"safetensors": ".safetensors", "npz": ".npz"}  # of the formats that are written


def load_state_dict(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Reads the tensors of a weight file by name, without PyTorch and without executing pickled code.

  The format is recognised by the content, not the name: PyTorch's zip format (>= 1.6) or its earlier pickle
  format, safetensors, or NumPy's .npz. Nested containers give dotted names ("state_dict.conv.weight"); a file
  of one bare tensor gives the name "".

  Raises:
    WeightsError: the file is missing, damaged or of another format, or its pickle asks for more than tensors.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise WeightsError(f"weight file {path}: no such file")
  try:
    arrays = _read(path)
  except Exception as error:  # a damaged pickle can raise anything
    detail = " ".join(str(error).split()) or type(error).__name__
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
  path = pathlib.Path(path)
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
    file.seek(0)
    # safetensors begins with the size of a JSON object; its bytes may equal the magic bytes tested below.
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8:
      return safetensors.numpy.load_file(path, backend="pread")
    if start.startswith(b"\x80"):
      return torch_pickle.read_tensors(file, zipped=False)
    if not start.startswith(b"PK"):
      raise ValueError("its first bytes belong to none of these formats")
    if torch_pickle.is_torch_zip(file):
      return torch_pickle.read_tensors(file, zipped=True)
    with np.load(file, allow_pickle=False) as arrays:
      members = dict(arrays)
  for name, value in members.items():
    if not isinstance(value, np.ndarray):  # NumPy returns the members of any zip file as bytes
      raise ValueError(f"its member {name} is not an array")
  return members
