"""PyTorch state dicts ↔ the variables of this project's networks."""

import collections
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax
import jax.numpy as jnp
import numpy as np

from scops_jax.errors import UserError
from scops_jax.weights import dino_files, names


class WeightsError(UserError, ValueError):
  """A weight file that can't be read or does not fit the network."""


class Match(NamedTuple):
  """What becomes of every entry of a state dict and of every variable of a network."""

  filled: dict[names.Path, np.ndarray]  # variables and their new values, in this project's layout
  misshaped: list[str]  # entries of another shape than their variable, with both shapes
  unknown: list[str]  # entries that are not of this network
  unused: list[str]  # entries of the network whose layers are left out here, or beside its common prefix
  missing: list[names.Path]  # variables without an entry
  random_head: list[names.Path]  # variables of a head of which the state dict has no entry


def match_state_dict(
  variables: Mapping[str, Any], state_dict: Mapping[str, np.ndarray], *, model_name: str
) -> Match:
  """Compares a state dict with a network, in names and shapes.

  Args:
    variables: as in apply_state_dict; arrays or their `jax.ShapeDtypeStruct`.
    state_dict: as in apply_state_dict.
    model_name: the network.

  Raises:
    ValueError: an unknown model_name.
  """
  state_dict = dino_files.to_published(state_dict)
  flat = flax.traverse_util.flatten_dict(variables)
  paths = _paths(flat, model_name)
  prefix = _prefix(state_dict, paths)
  match = Match({}, [], [], [], [], [])
  misshaped = set()
  for key, array in state_dict.items():
    name = key.removeprefix(prefix)
    if not key.startswith(prefix):
      match.unused.append(key)
    elif name not in paths:
      match.unknown.append(key)
    elif (path := paths[name]) is None or path not in flat:
      match.unused.append(key)
    else:
      value = _to_flax_layout(array)
      if value.shape == flat[path].shape:
        match.filled[path] = value
      else:
        misshaped.add(path)
        match.misshaped.append(f"{key}: shape {array.shape}, expected {_torch_shape(flat[path].shape)}")
  has_head = any(_is_head(path) for name, path in paths.items() if prefix + name in state_dict)
  for path in flat:
    if path not in match.filled and path not in misshaped:
      (match.random_head if _is_head(path) and not has_head else match.missing).append(path)
  return match


def apply_state_dict(
  variables: Mapping[str, Any],
  state_dict: Mapping[str, np.ndarray],
  *,
  model_name: str,
  strict: bool = True,
  require_head: bool = False,
) -> dict[str, Any]:
  """Fills a network's variables from a PyTorch state dict, converting names and layouts.

  A segmenter's head, the modules named "head_...", is in the files of whole segmenters, but not in those its
  backbone starts from. If the state dict has no entry of the head, the head keeps its values;
  `head_num_parts` tells the two apart beforehand. All names may share a prefix such as "state_dict." or
  "module.", which is taken off; entries without it (an optimizer's state beside the weights) are left out.
  DINO's may be named as its authors or as Hugging Face's transformers do.

  Args:
    variables: of `create_segmenter(model_name, ...)` or `create_reference(model_name, ...)`.
    state_dict: as load_state_dict returns it; convolutions `[out, in, k, k]`, linear layers `[out, in]`.
    model_name: the network the file is for.
    strict: whether every other variable must be filled and every entry be one of this network. Entries of
      layers that these variables leave out (later blocks, the classifier) count as known. If not strict,
      variables without an entry of the same shape keep their values.
    require_head: whether a state dict without the head is refused too.

  Returns:
    New variables of the same structure and dtypes.

  Raises:
    ValueError: an unknown model_name.
    WeightsError: strict, and entries do not fit: lists them all. Or the head is required and not there.
  """
  state_dict = dino_files.to_published(state_dict)
  match = match_state_dict(variables, state_dict, model_name=model_name)
  if strict:
    _check(match, variables, state_dict, model_name)
  if require_head and match.random_head:
    modules = ", ".join(dict.fromkeys(path[1] for path in match.random_head))
    raise WeightsError(f"the weights are of {model_name} without its head: they have no entry of {modules}")
  flat = flax.traverse_util.flatten_dict(variables)
  filled = {path: jnp.asarray(value, flat[path].dtype) for path, value in match.filled.items()}
  return flax.traverse_util.unflatten_dict({**flat, **filled})


def head_num_parts(state_dict: Mapping[str, np.ndarray], *, model_name: str) -> int | None:
  """Returns K of the segmenter's head in a state dict; None if there is no head.

  Raises:
    ValueError: an unknown model_name.
  """
  key = _prefix(state_dict, names.table(model_name)) + (names.logits_bias(model_name) or "")
  bias = state_dict.get(key)
  return None if bias is None or bias.ndim != 1 else len(bias) - 1


def without_prefix(state_dict: Mapping[str, np.ndarray], *, model_name: str) -> dict[str, np.ndarray]:
  """Returns the network's own entries with the prefix that all names share taken off, as published.

  Raises:
    ValueError: an unknown model_name.
  """
  state_dict = dino_files.to_published(state_dict)
  prefix = _prefix(state_dict, names.table(model_name))
  return {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}


def without_head(state_dict: Mapping[str, np.ndarray], *, model_name: str) -> dict[str, np.ndarray]:
  """Returns the entries of `without_prefix` that are not of a segmenter's head.

  Raises:
    ValueError: an unknown model_name.
  """
  table = names.table(model_name)
  return {
    name: value
    for name, value in without_prefix(state_dict, model_name=model_name).items()
    if not (name.startswith(names.HEAD_PREFIX) or _is_head(table.get(name)))
  }


def to_state_dict(variables: Mapping[str, Any], *, model_name: str) -> dict[str, np.ndarray]:
  """Returns the state dict that the PyTorch network of this name loads strictly; undoes apply_state_dict.

  Args:
    variables: of `create_segmenter(model_name, ...)` or `create_reference(model_name, ...)`.
    model_name: the network. "head_..." modules that the PyTorch network does not have keep their names.

  Returns:
    float32 arrays in PyTorch's layouts and order, and an int64 0 for each BatchNorm's counter. What has no
    variable here (classifiers, the mask token of DINO's pre-training) is not among them.

  Raises:
    ValueError: an unknown model_name.
  """
  flat = flax.traverse_util.flatten_dict(variables)
  state_dict = {}
  for name, path in _paths(flat, model_name).items():
    if path in flat:
      state_dict[name] = _to_torch_layout(np.asarray(flat[path], np.float32))
  return complete_counters(state_dict)


def complete_counters(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Adds the counters of BatchNorm that PyTorch < 0.4.1 did not save, each behind its running variance."""
  completed: dict[str, np.ndarray] = {}
  for name, value in state_dict.items():
    completed[name] = value
    stem = name.removesuffix("running_var")
    if stem != name and (counter := f"{stem}num_batches_tracked") not in state_dict:
      completed[counter] = np.zeros((), np.int64)
  return completed


def _paths(flat: Mapping[names.Path, Any], model_name: str) -> names.Table:
  """The network's table, and the variables of a head that no published network has."""
  table = names.table(model_name)
  published = set(table.values())
  return table | {names.own_name(path): path for path in flat if _is_head(path) and path not in published}


def _is_head(path: names.Path | None) -> bool:
  return path is not None and path[1].startswith(names.HEAD_PREFIX)


def _prefix(state_dict: Mapping[str, Any], known: names.Table) -> str:
  """Returns what stands before most of the known names, up to a dot or nothing."""
  counts: collections.Counter[str] = collections.Counter()
  for key in state_dict:
    starts = [0, *(i + 1 for i, character in enumerate(key) if character == ".")]
    counts.update(key[:start] for start in starts if key[start:] in known)
  return max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default="")


def _check(
  match: Match, variables: Mapping[str, Any], state_dict: Mapping[str, np.ndarray], model_name: str
) -> None:
  """Raises WeightsError unless all fits but a head that is not there."""
  if (found := dino_files.mismatch(state_dict, model_name)) is not None:
    raise WeightsError(f"the weights are of {found}, not of {model_name}")
  if not match.filled:
    example, expected = next(iter(state_dict), "nothing"), next(iter(names.table(model_name)))
    raise WeightsError(
      f"the weights are not of {model_name}: none of their {len(state_dict)} entries fits "
      f"(there is {example}, expected are {expected} and so on)"
    )
  theirs, ours = head_num_parts(state_dict, model_name=model_name), _num_parts(variables, model_name)
  if None not in (theirs, ours) and theirs != ours:
    raise WeightsError(
      f"the weights' head is for {theirs} parts, but num_parts={ours}: set num_parts={theirs}, or leave the "
      "head out with python -m scops_jax.weights FILE --drop_head --out=NEW.safetensors"
    )
  problems = [f"{key}: not an entry of {model_name}" for key in match.unknown] + match.misshaped
  problems += [f"{'/'.join(path)}: no entry for it" for path in match.missing]
  if problems:
    raise WeightsError(f"the weights do not fit {model_name}: " + "; ".join(problems))


def _num_parts(variables: Mapping[str, Any], model_name: str) -> int | None:
  flat = flax.traverse_util.flatten_dict(variables)
  path = _paths(flat, model_name).get(names.logits_bias(model_name) or "")
  return flat[path].shape[0] - 1 if path in flat else None


def _to_flax_layout(array: np.ndarray) -> np.ndarray:
  """OIHW → HWIO (a depthwise [C, 1, k, k] → [k, k, 1, C]), [out, in] → [in, out]."""
  if array.ndim == 4:
    return array.transpose(2, 3, 1, 0)
  return array.T if array.ndim == 2 else array  # tokens and positions [1, T, C] stay


def _to_torch_layout(array: np.ndarray) -> np.ndarray:
  """HWIO → OIHW, [in, out] → [out, in]."""
  if array.ndim == 4:
    return array.transpose(3, 2, 0, 1)
  return array.T if array.ndim == 2 else array


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
  """What `_to_torch_layout` makes of an array's shape."""
  if len(shape) == 4:
    return (shape[3], shape[2], shape[0], shape[1])
  return shape[::-1] if len(shape) == 2 else shape
