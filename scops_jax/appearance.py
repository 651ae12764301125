"""The appearance transform: brightness, contrast, saturation and hue changed at random, in a random order.

The first three are blends of the image with black, with its mean grey level or with its grey version. So
every order of the four is three blends, a hue shift and three more blends; blends that an image's order does
not have change nothing. There are no branches, and the costly hue conversion runs once.
"""

from typing import NamedTuple

import chex
import dm_pix
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from scops_jax.geometry import check_array

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class ColorJitter(NamedTuple):
  """The colour changes drawn for each image of a batch.

  Attributes:
    factors: [B, 3], of brightness, contrast and saturation; 1 changes nothing.
    hue: [B], the shift in turns.
    order: [B, 4], a permutation of 0 brightness, 1 contrast, 2 saturation, 3 hue, first operation first.
  """

  factors: chex.Array
  hue: chex.Array
  order: chex.Array


def jitter_colors(key: chex.PRNGKey, images: chex.Array, appearance: ConfigDict) -> jax.Array:
  """Changes the images' colours at random: the appearance transform T_a (paper, section 3.2).

  Args:
    key: a PRNG key.
    images: [B, H, W, 3], RGB in 0..255.
    appearance: `config.appearance`.

  Returns:
    [B, H, W, 3] of the images' dtype, in 0..255.

  Raises:
    TypeError, ValueError: `images` is not floating point [B, H, W, 3].

  Differs from the release: images stay floats, where the release rounds down to 8 bits before and after.
  """
  check_array("images", images, "[B, H, W, 3]", (None, None, None, 3))
  return apply_jitter(images, sample_jitter(key, images.shape[0], appearance))


def sample_jitter(key: chex.PRNGKey, batch_size: int, appearance: ConfigDict) -> ColorJitter:
  """Draws factors uniform in 1 ± value (at least 0), hue shifts uniform in ± value turns, and orders."""
  factor_key, hue_key, order_key = jax.random.split(key, 3)
  spread = jnp.array([appearance.brightness, appearance.contrast, appearance.saturation], jnp.float32)
  draws = jax.random.uniform(factor_key, (batch_size, 3), jnp.float32, -1.0, 1.0)
  hue = jax.random.uniform(hue_key, (batch_size,), jnp.float32, -appearance.hue, appearance.hue)
  order = jnp.argsort(jax.random.uniform(order_key, (batch_size, 4)), axis=1)
  return ColorJitter(jnp.maximum(1.0 + spread * draws, 0.0), hue, order)


def apply_jitter(images: chex.Array, jitter: ColorJitter) -> jax.Array:
  """Applies given colour changes, each clipped to 0..255, as torchvision and Pillow define them.

  Args:
    images: [B, H, W, 3], RGB in 0..255.
    jitter: the changes of each image.

  Returns:
    [B, H, W, 3] of the images' dtype, in 0..255.

  Raises:
    TypeError, ValueError: `images` is not floating point [B, H, W, 3].
  """
  check_array("images", images, "[B, H, W, 3]", (None, None, None, 3))
  planes = jnp.moveaxis(images, -1, 0).astype(jnp.float32) / 255.0
  hue_slot = jnp.argmax(jitter.order == HUE, axis=1)
  for slot in (0, 1, 2):
    planes = _blend(planes, jitter, slot, active=slot < hue_slot)
  planes = dm_pix.adjust_hue(planes, jitter.hue[:, None, None], channel_axis=0)
  for slot in (1, 2, 3):
    planes = _blend(planes, jitter, slot, active=slot > hue_slot)
  return jnp.moveaxis(planes * 255.0, 0, -1).astype(images.dtype)


def _blend(planes: jax.Array, jitter: ColorJitter, slot: int, *, active: jax.Array) -> jax.Array:
  """Applies the operation at `slot` of each image's order to the images whose `active` is set.

  Args:
    planes: [3, B, H, W], RGB in [0, 1].
    jitter: the changes of each image.
    slot: 0..3, a position in the order.
    active: [B], set only where the slot holds brightness, contrast or saturation.
  """
  operation = jnp.where(active, jitter.order[:, slot], HUE)
  factor = jnp.take_along_axis(jitter.factors, jnp.minimum(operation, SATURATION)[:, None], axis=1)[:, 0]
  factor = jnp.where(active, factor, 1.0)[:, None, None]
  grey = jnp.tensordot(jnp.array(_LUMA), planes, axes=1)
  operation = operation[:, None, None]
  other = jnp.where(operation == CONTRAST, grey.mean(axis=(1, 2), keepdims=True), grey)
  other = jnp.where(operation == BRIGHTNESS, 0.0, other)
  return jnp.clip(factor * planes + (1.0 - factor) * other, 0.0, 1.0)
