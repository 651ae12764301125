"""Weight files of every format: reading and writing named arrays, without PyTorch."""

import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from scops_jax.storage.files import replacing
from scops_jax.weights import torch_pickle
from scops_jax.weights.conversion import WeightsError

# Formats by the suffix of the files to write; when reading, the content decides.
SUFFIXES = {"safetensors": ".safetensors", "torch": ".pth", "npz": ".npz"}


def load_state_dict(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Reads a weight file's tensors by name, without PyTorch and without executing pickled code.

  The file's content decides the format, not its name: PyTorch's zip format (>= 1.6) and its earlier pickle
  format, safetensors, or NumPy's .npz. Nested containers give dotted names ("state_dict.conv.weight"); a file
  that is one bare tensor gives the name "".

  Raises:
    WeightsError: no such file, none of these formats, damaged, or a pickle that asks for more than tensors.
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


def load_part_basis(path: str | pathlib.Path) -> np.ndarray:
  """Reads a part basis as this project or the release saves it.

  The release saves a dict of `W`, the basis after its relu, and `W_state_dict`, the parameter itself, and
  restores from a bare tensor. The parameter is taken where the file has it.

  Returns:
    float32 `[K, C]`, the parameter before its relu (which changes nothing where the file has only `W`).

  Raises:
    WeightsError: the file can't be read, or holds anything else.
  """
  arrays = load_state_dict(path)
  basis = find_part_basis(arrays)
  if basis is None:
    found = ", ".join(f"{name or '(bare tensor)'} {value.shape}" for name, value in list(arrays.items())[:5])
    raise WeightsError(
      f"weight file {path}: expected a part basis (one [K, C] tensor, or W and W_state_dict), found {found}"
    )
  return basis


def find_part_basis(arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
  """Returns what load_part_basis does of a file's arrays; None if they are not a part basis."""
  raw = [name for name in arrays if name.split(".")[0] == "W_state_dict"]
  candidates = raw or [name for name in arrays if name == "W"] or list(arrays)
  if len(candidates) != 1 or arrays[candidates[0]].ndim != 2:
    return None
  return arrays[candidates[0]].astype(np.float32)


def save_state_dict(path: str | pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes arrays by name, all of them or nothing.

  Args:
    path: its suffix is the format: .safetensors, .pth (PyTorch's zip format, as torch.save writes a dict of
      tensors) or .npz (bfloat16, which NumPy can't save, as float32).
    arrays: of any shapes; a .pth file of the one name "" holds a bare tensor.

  Raises:
    WeightsError: another suffix, a dtype that the format does not have, or the file can't be written.
  """
  path = pathlib.Path(path)
  if path.suffix not in SUFFIXES.values():
    raise WeightsError(f"{path}: the name must end with one of {', '.join(SUFFIXES.values())}")
  try:
    with replacing(path) as temporary:
      if path.suffix == ".safetensors":
        # It writes arrays as they stand in memory, which for views is another order.
        ordered = {name: np.require(value, requirements="C") for name, value in arrays.items()}
        temporary.write_bytes(safetensors.numpy.save(ordered))
      elif path.suffix == ".pth":
        torch_pickle.write_zip(temporary, arrays)
      else:
        members: dict[str, Any] = {name: _without_bfloat16(value) for name, value in arrays.items()}
        with temporary.open("wb") as file:
          np.savez(file, **members)
  except (OSError, TypeError, ValueError, safetensors.SafetensorError) as error:
    raise WeightsError(f"{path} can't be written: {' '.join(str(error).split())}") from error


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
  with path.open("rb") as file:
    start = file.read(9)
    file.seek(0)
    # The format begins with the size of a JSON object, whose bytes may look like the other formats' marks.
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8:
      return safetensors.numpy.load_file(path, backend="pread")
    if start.startswith(b"\x80"):
      return torch_pickle.read_tensors(file, zipped=False)
    if not start.startswith(b"PK"):
      raise ValueError("its first bytes are of none of these formats")
    if torch_pickle.is_torch_zip(file):
      return torch_pickle.read_tensors(file, zipped=True)
    with np.load(file, allow_pickle=False) as arrays:
      members = dict(arrays)
  for name, value in members.items():
    if not isinstance(value, np.ndarray):  # NumPy hands out any zip's members
      raise ValueError(f"its member {name} is not an array")
  return members


def _without_bfloat16(array: np.ndarray) -> np.ndarray:
  return array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array
