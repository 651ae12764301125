"""Sums over images and pixels that are fast in a training step on a CPU too."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from scops_jax.kernels.compilation import is_traced_for_training
from scops_jax.kernels.platforms import target


def channel_sum(x: jax.Array) -> jax.Array:
  """Sums over all axes but the last, in float32 at least.

  Args:
    x: `[..., C]`.

  Returns:
    `[C]`, x's dtype.
  """
  sums = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  if not _is_traced_for_training_on_cpu():
    return jnp.sum(sums, axis=range(x.ndim - 1)).astype(x.dtype)
  # XLA's sums that keep the last axis are slow on a CPU without YNNPACK, so they are products with ones. They
  # go over one axis at a time, the last but one first: short sums lose few digits, and no axis is split, so
  # that a batch that is sharded over devices stays where it is.
  while sums.ndim > 1:
    rows = sums.reshape(math.prod(sums.shape[:-2]), *sums.shape[-2:])
    row_sums = jnp.einsum("rn,rnc->rc", jnp.ones(rows.shape[:2], rows.dtype), rows)
    sums = row_sums.reshape(*sums.shape[:-2], sums.shape[-1])
  return sums.astype(x.dtype)


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
  """Returns x + bias; the bias's gradient is a `channel_sum`.

  Args:
    x: `[..., C]`.
    bias: `[C]`, x's dtype.

  Returns:
    The shape and dtype of x.
  """
  return _add_in_training(x, bias) if _is_traced_for_training_on_cpu() else x + bias


@jax.custom_vjp
def _add_in_training(x: jax.Array, bias: jax.Array) -> jax.Array:
  return x + bias


def _backward(_: None, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
  gradient = lax.optimization_barrier(gradient)  # computed once for both
  return gradient, channel_sum(gradient)


_add_in_training.defvjp(lambda x, bias: (x + bias, None), _backward)


def _is_traced_for_training_on_cpu() -> bool:
  return is_traced_for_training() and target() == "cpu"
