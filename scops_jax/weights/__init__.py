"""Published weight files in, state dicts out; also a command, `python -m scops_jax.weights`.

What is exported here is imported on first use, so that the command answers without loading JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from scops_jax.weights.conversion import (
    WeightsError,
    apply_state_dict,
    head_num_parts,
    match_state_dict,
    to_state_dict,
  )
  from scops_jax.weights.formats import load_state_dict, save_state_dict
  from scops_jax.weights.published import imagenet_weights_path, resolve

_MODULES = {
  "WeightsError": "conversion",
  "apply_state_dict": "conversion",
  "head_num_parts": "conversion",
  "imagenet_weights_path": "published",
  "load_state_dict": "formats",
  "match_state_dict": "conversion",
  "resolve": "published",
  "save_state_dict": "formats",
  "to_state_dict": "conversion",
}

__all__ = [
  "WeightsError",
  "apply_state_dict",
  "head_num_parts",
  "imagenet_weights_path",
  "load_state_dict",
  "match_state_dict",
  "resolve",
  "save_state_dict",
  "to_state_dict",
]


def __getattr__(name: str) -> Any:
  if name in _MODULES:
    return getattr(importlib.import_module(f"scops_jax.weights.{_MODULES[name]}"), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
