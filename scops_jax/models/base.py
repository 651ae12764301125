"""What segmenters have in common, and references."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

_NORM_EPSILON = 1e-6

Path = tuple[Any, ...]  # to a parameter: the names of its modules and its own


class Segmenter(nn.Module):
  """A trained network: normalised images `[B, H, W, 3]` to logits `[B, h, w, K+1]` at its own resolution.

  Called as module(images, train=False), it computes in the images' dtype. One with batch statistics also
  takes axis_name, that of a pmap over whose devices the statistics are taken, and the number of passes that
  the images hold (`layers.BatchNorm`). Modules named "head_..." hold
  the parameters that are not in published files of classification networks.
  """

  # Whether training normalises with the statistics of the batch.
  uses_batch_statistics: ClassVar[bool] = False

  @nn.nowrap
  def is_trained(self, path: Path) -> bool:
    """Returns whether training changes a parameter."""
    del path
    return True

  @nn.nowrap
  def release_update_count(self, path: Path) -> int:
    """Returns how often the release's optimizer updates a parameter in one step."""
    del path
    return 1


class Reference(nn.Module, kw_only=True):
  """A frozen network: normalised images `[B, H, W, 3]` to a map `[B, h, w, C]` for each layer.

  Attributes:
    layers: the maps to return, in this order; layers after the last of them are not computed.
    l2_normalize: whether each position's features are divided by their norm (`normalize_features`).
  """

  # Whether features may be below 0: the part basis then needs a code of them (`nonnegative`).
  signed: ClassVar[bool] = False

  layers: tuple[str, ...]
  l2_normalize: bool = False


def take_layers(maps: Iterable[tuple[str, jax.Array]], layers: Sequence[str]) -> tuple[jax.Array, ...]:
  """Returns the maps of these layers, in their order, and computes no others behind them.

  Args:
    maps: a generator of layers' names and maps in the order of computation.
    layers: names.
  """
  found: dict[str, jax.Array] = {}
  for name, value in maps:
    if name in layers:
      found[name] = value
      if len(found) == len(set(layers)):
        break
  return tuple(found[layer] for layer in layers)


def normalize_features(features: jax.Array) -> jax.Array:
  """Divides each position's features by √(‖v‖² + 1e-6), an option of the release.

  Args:
    features: `[B, h, w, C]`.

  Returns:
    The same shape; norms over the last axis are about 1, or 0 where all features are.
  """
  wide = features.astype(jnp.promote_types(features.dtype, jnp.float32))
  squared_norm = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
  return features * jax.lax.rsqrt(squared_norm + _NORM_EPSILON).astype(features.dtype)
