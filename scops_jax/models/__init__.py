"""Networks by name."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from scops_jax.models import efficientnet_lite
from scops_jax.models.part_basis import PartBasis

__all__ = ["PartBasis", "create_reference", "create_segmenter", "normalize"]

_SEGMENTERS = {"efficientnet_lite0": efficientnet_lite.EfficientNetLite0Segmenter}
_REFERENCES = {
  "efficientnet_lite0": (efficientnet_lite.EfficientNetLite0Reference, efficientnet_lite.REFERENCE_LAYERS)
}
_STRIDES = {"efficientnet_lite0": 16}
_NORMALIZERS = {"efficientnet_lite0": efficientnet_lite.normalize}


def create_segmenter(name: str, num_parts: int) -> nn.Module:
  """Creates the trained network by name.

  Args:
    name: of the network.
    num_parts: K ≥ 1, without the background.

  Returns:
    A module: `.init(key, images, train=False)` and `.apply(variables, images, train=False)` → logits
    `[B, h, w, K+1]` at the network's own resolution, channel 0 the background, cells on the align-corners
    lattice of the normalised images `[B, H, W, 3]`. Modules named "head_..." hold the new parameters; the
    others can come from a published file (`weights.apply_state_dict`).

  Raises:
    ValueError: an unknown name, or K < 1.
  """
  _check(name, _SEGMENTERS, "segmenter")
  if num_parts < 1:
    raise ValueError(f"expected num_parts >= 1, got {num_parts}")
  return _SEGMENTERS[name](num_parts=num_parts)


def create_reference(name: str, layers: Sequence[str]) -> nn.Module:
  """Creates the frozen feature network by name.

  Args:
    name: of the network.
    layers: names of the maps to return; layers after the last of them are not computed.

  Returns:
    A module: `.init(key, images)` and `.apply(variables, images)` → tuple of non-negative maps
    `[B, h, w, C]`, one a layer in the order given, cells on the align-corners lattice of the normalised
    images `[B, H, W, 3]`.

  Raises:
    ValueError: an unknown network or layer, or no layer.
  """
  _check(name, _REFERENCES, "reference")
  module, valid_layers = _REFERENCES[name]
  if not layers:
    raise ValueError(f"expected at least one layer of {name}, one of: {', '.join(valid_layers)}")
  for layer in layers:
    _check(layer, valid_layers, f"layer of {name}")
  return module(layers=tuple(layers))


def normalize(name: str, images: jax.Array) -> jax.Array:
  """Maps RGB images `[..., 3]` in 0..255 to what the network of this name expects.

  Raises:
    ValueError: an unknown name.
  """
  _check(name, _NORMALIZERS, "network")
  return _NORMALIZERS[name](images)


def check_image_size(name: str, size: int) -> None:
  """Raises ValueError unless images of `size` pixels a side fill the segmenter's cells."""
  _check(name, _SEGMENTERS, "segmenter")
  if size % _STRIDES[name]:
    lower = size // _STRIDES[name] * _STRIDES[name]
    raise ValueError(
      f"image_size={size} is not divisible by {_STRIDES[name]}, the stride of {name}: "
      f"take {lower or _STRIDES[name]} or {lower + _STRIDES[name]}"
    )


def _check(name: str, valid: Sequence[str] | dict, what: str) -> None:
  if name not in valid:
    raise ValueError(f"unknown {what} '{name}'; valid: {', '.join(valid)}")
