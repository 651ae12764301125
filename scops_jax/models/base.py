"""What the training step knows of a network, whatever its architecture."""

from collections.abc import Mapping
from typing import Any, ClassVar

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from scops_jax import geometry

_NORM_EPSILON = 1e-6


class Segmenter(nn.Module):
  """A trained network: normalised images `[B, H, W, 3]` to logits `[B, h, w, K+1]` at its own resolution.

  Called as module(images, train=False), it computes in the images' dtype. One with batch statistics also
  takes axis_name, that of a pmap over whose devices the statistics are taken. Modules named "head_..." hold
  the parameters that no published classification network brings.
  """

  # Whether training normalises with the statistics of the batch, so that what shares a batch matters.
  uses_batch_statistics: ClassVar[bool] = False

  @nn.nowrap
  def parameter_visits(self, params: chex.ArrayTree) -> chex.ArrayTree:
    """Returns how often the release's optimizer updates each of the parameters in one step; 0 = frozen.

    Args:
      params: this network's, or their shapes.

    Returns:
      A tree of int like `params`.
    """
    return jax.tree.map(lambda _: 1, params)


class Reference(nn.Module, kw_only=True):
  """A frozen network: normalised images `[B, H, W, 3]` to a map `[B, h, w, C]` a layer.

  Attributes:
    layers: the maps to return, in this order; layers after the last of them are not computed.
    l2_normalize: whether each position's features are divided by their norm (`normalize_features`).
  """

  # Whether features may be below 0: the part basis then needs a code of them (`nonnegative`).
  signed: ClassVar[bool] = False

  layers: tuple[str, ...]
  l2_normalize: bool = False


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


def segment_pair(
  segmenter: Segmenter,
  variables: Mapping[str, chex.ArrayTree],
  images: jax.Array,
  warped_images: jax.Array,
  *,
  axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array, chex.ArrayTree]:
  """Segments a batch and its warped version in training mode.

  With batch statistics these are two passes, as in the release: each has statistics of its own, and the
  running ones are updated twice. On a CPU they are always two, because a smaller pass stays nearer to the
  caches. Else it is one pass over both.

  Args:
    segmenter: the network.
    variables: its "params" and "batch_stats" (empty if it has none).
    images: `[B, H, W, 3]`, normalised.
    warped_images: the same shape.
    axis_name: of the pmap over whose devices batch statistics are taken; None: each device's alone.

  Returns:
    Logits of both `[B, H, W, K+1]`, resized to the images, float32; the batch statistics after both.
  """
  if segmenter.uses_batch_statistics or jax.default_backend() == "cpu":
    options = {"axis_name": axis_name} if segmenter.uses_batch_statistics else {}
    logits, batch_stats = _segment(segmenter, variables, images, **options)
    variables = {**variables, "batch_stats": batch_stats}
    return logits, *_segment(segmenter, variables, warped_images, **options)
  # Neighbours in memory, so that a batch that is sharded over devices stays where it is.
  both = jnp.stack([images, warped_images], axis=1).reshape(-1, *images.shape[1:])
  logits, batch_stats = _segment(segmenter, variables, both)
  return logits[0::2], logits[1::2], batch_stats


def _segment(
  segmenter: Segmenter, variables: Mapping[str, chex.ArrayTree], images: jax.Array, **options: Any
) -> tuple[jax.Array, chex.ArrayTree]:
  logits, updates = segmenter.apply(variables, images, train=True, mutable=["batch_stats"], **options)
  resized = geometry.resize_bilinear(logits.astype(jnp.float32), *images.shape[1:3])
  return resized, updates.get("batch_stats", variables["batch_stats"])
