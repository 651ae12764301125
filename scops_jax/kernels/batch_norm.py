"""Batch normalisation for GPUs and TPUs, whose time goes into reading and writing maps and not into sums.

Both moments are summed in one pass, which XLA joins to the convolution that computes the map, and the scaling
is one product and one sum for each value, which it joins to the convolution that reads the result. Several
passes over a network may share one batch, each with statistics of its own: they share the network's program,
its reads of the kernels and one sum over devices for each layer.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from scops_jax.kernels.compilation import is_traced_for_training

STATISTICS = "statistics"  # what jax.checkpoint policies call means and variances

Moments = tuple[jax.Array, jax.Array, jax.Array]


def normalize_passes(
  x: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  shift: jax.Array,
  epsilon: float,
  passes: int,
  axis_name: str | None,
) -> Moments:
  """Normalises each pass of a batch by its own moments: scale (x - mean) / √(var + ε) + bias.

  The variance is E[(x - shift)²] - E[x - shift]² in float32. It loses digits where |mean - shift| is many
  deviations, so the shift is best near the mean; the running mean is, once training has begun.

  Args:
    x: `[B, …, C]`; image i belongs to pass i modulo `passes`.
    scale: `[C]`.
    bias: `[C]`.
    shift: `[C]`; results do not depend on it but for rounding.
    epsilon: ε.
    passes: divides B.
    axis_name: of the pmap over whose devices the batch is spread; None: the batch is x.

  Returns:
    The normalised x, of its dtype, and each pass's means and variances (divisor n) `[passes, C]`, float32. In
    a training step (`compilation.jit`) the gradient of these two is taken for 0.
  """
  form = _in_training if is_traced_for_training() else _normalize
  return form(x, scale, bias, shift, epsilon, passes, axis_name)


def _normalize(*arguments: Any) -> Moments:
  return _forward(*arguments)[0]


def _forward(
  x: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  shift: jax.Array,
  epsilon: float,
  passes: int,
  axis_name: str | None,
) -> tuple[Moments, tuple[jax.Array, ...]]:
  shift = lax.stop_gradient(shift)
  shifted = x.astype(jnp.float32) - shift
  first, second = checkpoint_name(_means(shifted, jnp.square(shifted), passes, axis_name), STATISTICS)
  mean, variance = first + shift, jnp.maximum(second - jnp.square(first), 0.0)
  inverse = lax.rsqrt(variance + epsilon)
  factor = inverse * scale
  offset = bias - mean * factor
  y = x.astype(jnp.float32) * _each_image(factor, x) + _each_image(offset, x)
  return (y.astype(x.dtype), mean, variance), (x, scale, mean, inverse)


def _backward(
  epsilon: float,
  passes: int,
  axis_name: str | None,
  residuals: tuple[jax.Array, ...],
  gradients: Moments,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """As `layers.BatchNorm`'s on CPUs: dx = scale / √(var + ε) (dy - mean(dy) - x̂ mean(x̂ dy)), by pass."""
  del epsilon
  x, scale, mean, inverse = residuals
  gradient = gradients[0].astype(jnp.float32)
  centered = x.astype(jnp.float32) - _each_image(mean, x)
  paired = gradient * centered
  shift, slope = _means(gradient, paired, passes, axis_name)
  slope = slope * jnp.square(inverse)
  x_gradient = gradient - _each_image(shift, x) - centered * _each_image(slope, x)
  x_gradient = (x_gradient * _each_image(inverse * scale, x)).astype(x.dtype)
  axes = tuple(range(1, x.ndim - 1))
  scale_gradient = (_by_pass(paired.sum(axes), passes) * inverse).sum(0)
  return x_gradient, scale_gradient, gradient.sum((0, *axes)), jnp.zeros_like(scale)


_in_training = jax.custom_vjp(_normalize, nondiff_argnums=(4, 5, 6))
_in_training.defvjp(_forward, _backward)


def _means(a: jax.Array, b: jax.Array, passes: int, axis_name: str | None) -> jax.Array:
  """Returns the means of two arrays `[B, …, C]` over the images and pixels of each pass, `[2, passes, C]`.

  Pixels are summed first and images after, so that the maps keep their layout.
  """
  axes = tuple(range(1, a.ndim - 1))
  sums = jnp.stack([_by_pass(values.sum(axes), passes) for values in (a, b)])
  means = sums / (a.size // a.shape[-1] // passes)
  return means if axis_name is None else lax.pmean(means, axis_name)


def _by_pass(values: jax.Array, passes: int) -> jax.Array:
  """Sums the images' values `[B, C]` over each pass: `[passes, C]`."""
  return values.reshape(-1, passes, values.shape[-1]).sum(0)


def _each_image(values: jax.Array, x: jax.Array) -> jax.Array:
  """Repeats the passes' values `[passes, C]` for the images of x `[B, …, C]`: `[B, 1, …, C]`."""
  repeated = jnp.tile(values, (x.shape[0] // values.shape[0], 1))
  return repeated.reshape(x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1])
