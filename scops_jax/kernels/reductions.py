"""Sums over images and pixels that are fast in a training step on a CPU too."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from scops_jax.kernels.compilation import is_traced_for_training
from scops_jax.kernels.transposition import Arrays, linear_call


def channel_sum(x: jax.Array) -> jax.Array:
  """Sums over all axes but the last, in float32 at least.

  Args:
    x: `[..., C]`.

  Returns:
    `[C]`, x's dtype.
  """
  sums = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  if not is_traced_for_training():
    return jnp.sum(sums, axis=range(x.ndim - 1)).astype(x.dtype)
  # XLA's sums that keep the last axis are slow on a CPU without YNNPACK, so they are products with ones. They
  # go over one axis at a time, the last but one first: short sums lose few digits, and no axis is split, so
  # that a batch that is sharded over devices stays where it is.
  while sums.ndim > 1:
    rows = sums.reshape(math.prod(sums.shape[:-2]), *sums.shape[-2:])
    row_sums = jnp.einsum("rn,rnc->rc", jnp.ones(rows.shape[:2], rows.dtype), rows)
    sums = row_sums.reshape(*sums.shape[:-2], sums.shape[-1])
  return sums.astype(x.dtype)


@jax.custom_jvp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
  """Returns x + bias; the bias's gradient is a `channel_sum`.

  Args:
    x: `[..., C]`.
    bias: `[C]`, x's dtype.

  Returns:
    The shape and dtype of x.
  """
  return x + bias


@add_bias.defjvp
def _add_bias_jvp(
  primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
  def add(_: Arrays, tangents: Arrays) -> Arrays:
    return (tangents[0] + tangents[1],)

  def transposed(_: Arrays, gradients: Arrays) -> Arrays:
    gradient = lax.optimization_barrier(gradients[0])  # computed once for both
    return gradient, channel_sum(gradient)

  (tangent,) = linear_call(add, transposed, (), tangents)
  return add_bias(*primals), tangent
