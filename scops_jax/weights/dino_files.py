"""Files of DINO transformers: the layout of Hugging Face's transformers, and which network a file is of.

The authors' files have "blocks.0.attn.qkv.weight"; those of Hugging Face "encoder.layer.0.attention.
attention.query.weight" (DINOv2) or "layer.0.attention.q_proj.weight" (DINOv3), with key and value beside it.
"""

import re
from collections.abc import Mapping

import numpy as np

from scops_jax.models.dino import ARCHITECTURES
from scops_jax.models.vit import Architecture

_EMBEDDINGS = {
  "embeddings.cls_token": "cls_token",
  "embeddings.mask_token": "mask_token",
  "embeddings.position_embeddings": "pos_embed",
  "embeddings.register_tokens": "register_tokens",
  "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
  "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
  "embeddings.patch_embeddings.weight": "patch_embed.proj.weight",
  "embeddings.patch_embeddings.bias": "patch_embed.proj.bias",
  "layernorm.weight": "norm.weight",
  "layernorm.bias": "norm.bias",
  "norm.weight": "norm.weight",
  "norm.bias": "norm.bias",
}
_BLOCK = re.compile(r"(?:encoder\.|model\.)?layer\.(\d+)\.(.+)")
# Inside a block; queries, keys and values come together afterwards.
_PARTS = (
  (re.compile(r"attention\.(?:attention\.query|q_proj)\."), "attn.q."),
  (re.compile(r"attention\.(?:attention\.key|k_proj)\."), "attn.k."),
  (re.compile(r"attention\.(?:attention\.value|v_proj)\."), "attn.v."),
  (re.compile(r"attention\.(?:output\.dense|o_proj)\."), "attn.proj."),
  (re.compile(r"layer_scale([12])\.lambda1"), r"ls\1.gamma"),
  (re.compile(r"mlp\.up_proj\."), "mlp.fc1."),
  (re.compile(r"mlp\.down_proj\."), "mlp.fc2."),
)
_MARK = "embeddings.cls_token"


def to_published(state_dict: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
  """Returns a Hugging Face file's entries in the authors' layout; any other state dict as it is.

  Queries, keys and values are put together in this order; where the keys have no bias, as in DINOv3, it is 0.
  Entries that are not the transformer's (a classifier beside it) keep their names.
  """
  mark = next((key for key in state_dict if key == _MARK or key.endswith(f".{_MARK}")), None)
  if mark is None:
    return state_dict
  prefix = mark.removesuffix(_MARK)
  rotary = f"{prefix}embeddings.position_embeddings" not in state_dict
  found = {}
  for key, value in state_dict.items():
    name = _published_name(key.removeprefix(prefix)) if key.startswith(prefix) else None
    if rotary and name == "register_tokens":
      name = "storage_tokens"
    found[key if name is None else prefix + name] = value
  for query in [key for key in found if re.search(r"\.attn\.q\.(?:weight|bias)$", key)]:
    names = [query.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
    if rotary and query.endswith("bias"):
      found.setdefault(names[1], np.zeros_like(found[query]))
    if all(name in found for name in names):
      joined = np.concatenate([found.pop(name) for name in names])
      found[query.replace(".attn.q.", ".attn.qkv.")] = joined
  return found


def _published_name(name: str) -> str | None:
  if name in _EMBEDDINGS:
    return _EMBEDDINGS[name]
  match = _BLOCK.fullmatch(name)
  if match is None:
    return None
  part = match[2]
  for pattern, replacement in _PARTS:
    part = pattern.sub(replacement, part)
  return f"blocks.{match[1]}.{part}"


def mismatch(state_dict: Mapping[str, np.ndarray], model_name: str) -> str | None:
  """Says of which transformer a state dict is, if that is not the network of this name.

  Args:
    state_dict: in the authors' layout; a common prefix of all names does not matter.
    model_name: the network it is meant for.

  Returns:
    "dinov2_vits14", or the sizes of one that this project does not have; None if the state dict is of the
    network's sizes, is not of a DINO transformer, or leaves them open.
  """
  found = _sizes(state_dict)
  if found is None:
    return None
  if model_name in ARCHITECTURES and found == _expected(ARCHITECTURES[model_name]):
    return None
  for name, architecture in ARCHITECTURES.items():
    if found == _expected(architecture):
      return name
  patch, channels, registers, rotary = found
  positions = "rotary" if rotary else "learned"
  return (
    f"a transformer of patch {patch}, {channels} channels, {registers} registers and {positions} positions"
  )


_Sizes = tuple[int, int, int, bool]  # patch, channels, registers, rotary


def _expected(architecture: Architecture) -> _Sizes:
  return architecture.patch, architecture.channels, architecture.registers, architecture.rotary


def _sizes(state_dict: Mapping[str, np.ndarray]) -> _Sizes | None:
  end = "patch_embed.proj.weight"
  kernel = next((key for key in state_dict if key == end or key.endswith(f".{end}")), None)
  if kernel is None or state_dict[kernel].ndim != 4:
    return None
  prefix = kernel.removesuffix(end)
  registers = next(
    (
      state_dict[prefix + name].shape[-2]
      for name in ("register_tokens", "storage_tokens")
      if prefix + name in state_dict and state_dict[prefix + name].ndim > 1
    ),
    0,
  )
  channels, _, patch, _ = state_dict[kernel].shape
  return patch, channels, registers, f"{prefix}pos_embed" not in state_dict
