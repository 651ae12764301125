"""What a weight file contains, which networks it fits, and what a converted file contains."""

import math
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scops_jax import models
from scops_jax.errors import printable
from scops_jax.models.dino import ARCHITECTURES
from scops_jax.storage.paths import as_path
from scops_jax.weights import dino_files, names
from scops_jax.weights.conversion import (
  Match,
  WeightsError,
  head_num_parts,
  match_state_dict,
  own_entries,
)
from scops_jax.weights.formats import SUFFIXES, find_part_basis

# The last map that each reference offers: a network up to there has all variables.
_LAST_LAYERS = {
  "efficientnet_lite0": "head",
  "vgg16": "relu5_3",
  "vgg19": "relu5_4",
  "resnet50": "layer4",
  "resnet101": "layer4",
  **dict.fromkeys(ARCHITECTURES, "norm"),
}
# Every network takes this size, which matters to no variable's shape.
_IMAGES = jax.ShapeDtypeStruct((1, 112, 112, 3), jnp.float32)


class Fit(NamedTuple):
  """How a state dict fits one network."""

  model_name: str
  role: str  # "segmenter" or "reference"
  num_parts: int | None  # K of the state dict's head
  match: Match

  def __str__(self) -> str:
    match = self.match
    counts = {
      "matched": len(match.filled),
      "unused": len(match.unused),
      "unknown": len(match.unknown),
      "mis-shaped": len(match.misshaped),
      "missing": len(match.missing),
    }
    head = "" if self.role == "reference" else f", head of {self.num_parts} parts"
    if match.random_head:
      head = ", no head in the file: it would stay random"
    listed = ", ".join(f"{count} {what}" for what, count in counts.items())
    return f"{self.model_name} ({self.role}): {'fits' if match.complete else 'does not fit'}: {listed}{head}"


def find_fits(
  state_dict: Mapping[str, np.ndarray], *, model_name: str | None = None, num_parts: int | None = None
) -> list[Fit]:
  """Compares a state dict with the networks that it may belong to; the best fit comes first.

  Args:
    state_dict: as load_state_dict returns it.
    model_name: the only network to compare with; None: all that know most of the entries' names (of DINO's
      transformers, which share them, the one of these sizes).
    num_parts: K of the segmenter; None: what the state dict's head has.
  """
  fits = []
  state_dict = dino_files.to_published(state_dict)
  for name in [model_name] if model_name else names.MODELS:
    table = names.table(name)
    known = sum(key in table for key in own_entries(state_dict, model_name=name))
    if model_name is None and (2 * known <= len(state_dict) or dino_files.mismatch(state_dict, name)):
      continue
    theirs = head_num_parts(state_dict, model_name=name)
    for role, module in _modules(name, num_parts or theirs or 1).items():
      variables = jax.eval_shape(module.init, jax.random.key(0), _IMAGES)
      match = match_state_dict(variables, state_dict, model_name=name)
      fits.append(Fit(name, role, theirs, match))
  return sorted(fits, key=lambda fit: (not fit.match.complete, -len(fit.match.filled)))


def describe(state_dict: Mapping[str, np.ndarray], fits: list[Fit], *, details: bool) -> str:
  """Returns a table of the entries, their number, and a line for each network that fits.

  Args:
    state_dict: as load_state_dict returns it.
    fits: as find_fits returns them; if none is complete, the two closest are described.
    details: whether to list what does not fit.
  """
  rows = [
    (printable(name) or "(bare tensor)", str(a.dtype), "×".join(map(str, a.shape)))
    for name, a in state_dict.items()
  ]
  widths = [max(len(row[i]) for row in rows) for i in range(2)]
  lines = [f"  {name:<{widths[0]}}  {dtype:<{widths[1]}}  {shape}" for name, dtype, shape in rows]
  numbers = sum(math.prod(array.shape) for array in state_dict.values())
  lines.append(f"{len(rows)} entries, {numbers} numbers")
  basis = find_part_basis(state_dict)
  if basis is not None:
    lines.append(f"part basis: {basis.shape[0]} parts, {basis.shape[1]} channels")
  elif not fits:
    lines.append("fits none of this project's networks")
  for fit in [fit for fit in fits if fit.match.complete] or fits[:2]:
    lines.append(str(fit))
    if details:
      lines += [f"  {problem}" for problem in fit.match.problems()]
  return "\n".join(lines)


def convert(
  state_dict: Mapping[str, np.ndarray], fits: list[Fit], *, drop_head: bool = False
) -> dict[str, np.ndarray]:
  """Returns the entries to write when a file is converted.

  Args:
    state_dict: as load_state_dict returns it.
    fits: as find_fits returns them.
    drop_head: whether to remove a segmenter's head.

  Returns:
    The entries of the network that fits, without their common prefix; `W` [K, C], the parameter before its
    relu, if the file is a part basis; all entries unchanged if it is anything else.

  Raises:
    WeightsError: the head is to be dropped, but the file fits no segmenter, or has no head.
  """
  fit = next((fit for fit in fits if fit.match.complete), None)
  if drop_head and (fit is None or fit.num_parts is None):
    raise WeightsError("--drop_head: the file has no head of a segmenter that it fits")
  if fit is not None:
    return own_entries(state_dict, model_name=fit.model_name, head=not drop_head)
  basis = find_part_basis(state_dict)
  return dict(state_dict) if basis is None else {"W": basis}


def output_path(source: pathlib.Path, *, out: str | None, to: str | None) -> pathlib.Path:
  """Returns the file to write.

  Args:
    source: the weight file, or a run's directory.
    out: the file's name; None: next to `source`, or inside it if it is a directory.
    to: the format, a key of formats.SUFFIXES; None: what `out` ends with.

  Raises:
    WeightsError: `out` does not end as `to` asks.
  """
  if out is None:
    suffix = SUFFIXES[to or "safetensors"]
    return source / f"segmenter{suffix}" if source.is_dir() else source.with_suffix(suffix)
  path = as_path(out)
  if to is not None and path.suffix != SUFFIXES[to]:
    raise WeightsError(f"--out={out} does not end with {SUFFIXES[to]}, as --to={to} asks for")
  return path


def _modules(model_name: str, num_parts: int) -> dict[str, nn.Module]:
  """Returns the networks that have this name, by role."""
  modules: dict[str, nn.Module] = {}
  if names.logits_bias(model_name):
    modules["segmenter"] = models.create_segmenter(model_name, num_parts)
  if model_name in _LAST_LAYERS:
    modules["reference"] = models.create_reference(model_name, (_LAST_LAYERS[model_name],))
  return modules
