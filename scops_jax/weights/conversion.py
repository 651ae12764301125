"""PyTorch state dicts ↔ the variables of this project's networks."""

import collections
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax
import jax.numpy as jnp
import numpy as np

from scops_jax.errors import UserError, printable
from scops_jax.weights import dino_files, names


class WeightsError(UserError, ValueError):
  """A weight file can't be read or written, or does not fit the network."""


class Match(NamedTuple):
  """Which entries of a state dict fill which variables of a network, and what is left over on both sides."""

  filled: dict[names.Path, np.ndarray]  # variables and their new values, in Flax's layout
  misshaped: list[str]  # messages: entries whose shape differs from their variable's
  unknown: list[str]  # entries that the network does not have
  unused: list[str]  # entries without the common prefix, or of layers that these variables leave out
  missing: dict[names.Path, str]  # variables without an entry, and the name that it would have
  random_head: list[names.Path]  # the head's variables, if the state dict has no entry for any of them

  @property
  def complete(self) -> bool:
    """Whether strict loading succeeds; a missing head is allowed."""
    return bool(self.filled) and not self.problems()

  def problems(self) -> list[str]:
    """Returns a message for each entry and each variable that does not fit."""
    return [
      *(f"{printable(key)}: not an entry of this network" for key in self.unknown),
      *self.misshaped,
      *(f"{name}: not in the file (our {'/'.join(path)})" for path, name in self.missing.items()),
    ]


def match_state_dict(
  variables: Mapping[str, Any], state_dict: Mapping[str, np.ndarray], *, model_name: str
) -> Match:
  """Compares the names and shapes of a state dict with those of a network.

  Args:
    variables: as in apply_state_dict; shapes (`jax.ShapeDtypeStruct`) are enough.
    state_dict: as in apply_state_dict.
    model_name: the network.

  Raises:
    ValueError: an unknown model_name.
  """
  state_dict = dino_files.to_published(state_dict)
  flat = flax.traverse_util.flatten_dict(variables)
  paths = _paths(flat, model_name)
  prefix = _prefix(state_dict, paths)
  match = Match({}, [], [], [], {}, [])
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
        match.misshaped.append(
          f"{printable(key)}: shape {array.shape}, expected {_torch_shape(flat[path].shape)}"
        )
  has_head = any(_is_head(path) for name, path in paths.items() if prefix + name in state_dict)
  torch_names = {path: name for name, path in paths.items() if path is not None}
  for path in flat:
    if path not in match.filled and path not in misshaped:
      if _is_head(path) and not has_head:
        match.random_head.append(path)
      else:
        match.missing[path] = printable(prefix) + torch_names[path]
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

  Files of whole segmenters contain the head (the modules named "head_..."), ImageNet files do not; without
  any entry for it, the head keeps its values. `head_num_parts` tells the two kinds of file apart. A prefix
  that the names share, such as "state_dict." or "module.", is removed; entries without it (an optimizer's
  state saved beside the weights) are ignored. DINO's entries may have the names of its authors or of Hugging
  Face's transformers.

  Args:
    variables: of `create_segmenter(model_name, ...)` or `create_reference(model_name, ...)`.
    state_dict: as load_state_dict returns it; convolutions `[out, in, k, k]`, linear layers `[out, in]`.
    model_name: the network the file is for.
    strict: whether every variable outside the head must be filled, and every entry belong to this network.
      Entries of layers that these variables leave out (later blocks, the classifier) are allowed. If not
      strict, variables without an entry of the same shape keep their values.
    require_head: whether to refuse a state dict without the head.

  Returns:
    New variables of the same structure and dtypes.

  Raises:
    ValueError: an unknown model_name.
    WeightsError: strict, and something does not fit (all of it is listed); or the required head is missing.
  """
  state_dict = dino_files.to_published(state_dict)
  match = match_state_dict(variables, state_dict, model_name=model_name)
  if strict:
    _check(match, variables, state_dict, model_name)
  if require_head and match.random_head:
    modules = ", ".join(dict.fromkeys(path[1] for path in match.random_head))
    raise WeightsError(f"the weights are {model_name} without its head: they have no entry for {modules}")
  flat = flax.traverse_util.flatten_dict(variables)
  filled = {path: jnp.asarray(value, flat[path].dtype) for path, value in match.filled.items()}
  return flax.traverse_util.unflatten_dict({**flat, **filled})


def head_num_parts(state_dict: Mapping[str, np.ndarray], *, model_name: str) -> int | None:
  """Returns K, the number of parts, of the head in a segmenter's state dict; None if it has no head.

  Raises:
    ValueError: an unknown model_name.
  """
  key = _prefix(state_dict, names.table(model_name)) + (names.logits_bias(model_name) or "")
  bias = state_dict.get(key)
  return None if bias is None or bias.ndim != 1 else len(bias) - 1


def own_entries(
  state_dict: Mapping[str, np.ndarray], *, model_name: str, head: bool = True
) -> dict[str, np.ndarray]:
  """Returns the network's own entries under published names, with the prefix that all share removed.

  Args:
    state_dict: as in apply_state_dict.
    model_name: the network.
    head: whether to keep the entries of a segmenter's head.

  Raises:
    ValueError: an unknown model_name.
  """
  state_dict = dino_files.to_published(state_dict)
  table = names.table(model_name)
  prefix = _prefix(state_dict, table)
  entries = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
  if head:
    return entries
  return {
    name: value
    for name, value in entries.items()
    if not (name.startswith(names.HEAD_PREFIX) or _is_head(table.get(name)))
  }


def to_state_dict(variables: Mapping[str, Any], *, model_name: str) -> dict[str, np.ndarray]:
  """Returns the state dict that PyTorch's network of this name loads strictly; inverts apply_state_dict.

  Args:
    variables: of `create_segmenter(model_name, ...)` or `create_reference(model_name, ...)`.
    model_name: the network. "head_..." modules that PyTorch's network does not have keep their names.

  Returns:
    float32 arrays in PyTorch's layouts and order, and an int64 0 as each BatchNorm's counter of batches. What
    has no variable here (classifiers, the mask token of DINO's pre-training) is left out.

  Raises:
    ValueError: an unknown model_name.
  """
  flat = flax.traverse_util.flatten_dict(variables)
  state_dict: dict[str, np.ndarray] = {}
  for name, path in _paths(flat, model_name).items():
    if path in flat:
      state_dict[name] = _to_torch_layout(np.asarray(flat[path], np.float32))
      if name.endswith(".running_var"):
        state_dict[name.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
  return state_dict


def _paths(flat: Mapping[names.Path, Any], model_name: str) -> names.Table:
  """Returns the network's table, extended by head variables that no published network has."""
  table = names.table(model_name)
  published = set(table.values())
  return table | {names.own_name(path): path for path in flat if _is_head(path) and path not in published}


def _is_head(path: names.Path | None) -> bool:
  return path is not None and path[1].startswith(names.HEAD_PREFIX)


def _prefix(state_dict: Mapping[str, Any], known: names.Table) -> str:
  """Returns the prefix, empty or ending with a dot, that precedes most of the known names."""
  counts: collections.Counter[str] = collections.Counter()
  for key in state_dict:
    starts = [0, *(i + 1 for i, character in enumerate(key) if character == ".")]
    counts.update(key[:start] for start in starts if key[start:] in known)
  return max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default="")


def _check(
  match: Match, variables: Mapping[str, Any], state_dict: Mapping[str, np.ndarray], model_name: str
) -> None:
  """Raises WeightsError unless everything fits; the whole head may be missing."""
  if (found := dino_files.mismatch(state_dict, model_name)) is not None:
    raise WeightsError(f"the weights are of {found}, not of {model_name}")
  if not match.filled:
    example, expected = next(iter(state_dict), "nothing"), next(iter(names.table(model_name)))
    raise WeightsError(
      f"the weights are not for {model_name}: none of their {len(state_dict)} entries fits "
      f"(found {printable(example)}, ..., expected {expected}, ...)"
    )
  theirs, ours = head_num_parts(state_dict, model_name=model_name), _num_parts(variables, model_name)
  if None not in (theirs, ours) and theirs != ours:
    raise WeightsError(
      f"the weights' head is for {theirs} parts, but num_parts={ours}: set num_parts={theirs}, or remove the "
      "head with python -m scops_jax.weights FILE --drop_head --out=NEW.safetensors"
    )
  if not match.complete:
    raise WeightsError(f"the weights do not fit {model_name}: " + "; ".join(match.problems()))


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
  """Returns the shape after `_to_torch_layout`."""
  if len(shape) == 4:
    return (shape[3], shape[2], shape[0], shape[1])
  return shape[::-1] if len(shape) == 2 else shape
