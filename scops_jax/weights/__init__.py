"""Published weight files in, state dicts out; also a command, `python -m scops_jax.weights`."""

from scops_jax.weights.conversion import (
  WeightsError,
  apply_state_dict,
  head_num_parts,
  match_state_dict,
  to_state_dict,
)
from scops_jax.weights.formats import load_state_dict, save_state_dict
from scops_jax.weights.published import imagenet_weights_path, resolve

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
