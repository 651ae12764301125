"""Depthwise convolution that is also fast on a CPU.

XLA's grouped convolution on CPU is 4 to 25 times slower than the same sum written as shifted slices times weights,
which it fuses into one loop. GPUs and TPUs keep the convolution.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

_UNROLLED_IMAGES = 16  # of a batch, in the weights' gradient; more take longer to compile


def same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
  """Returns TensorFlow's SAME padding of an axis, (before, after): ceil(size / stride) outputs, the odd one after."""
  total = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
  return total // 2, total - total // 2


def depthwise_conv(x: jax.Array, kernel: jax.Array, *, stride: int = 1) -> jax.Array:
  """Convolves each channel with a kernel of its own, with SAME padding.

  out[b, y, x, c] = Σ_ij kernel[i, j, 0, c] · in[b, stride·y + i - before, stride·x + j - before, c]

  Args:
    x: [B, H, W, C].
    kernel: [k, k, 1, C], as lax.conv_general_dilated takes it for C groups; x's dtype.
    stride: of both axes.

  Returns:
    [B, ceil(H / stride), ceil(W / stride), C], x's dtype.

  Raises:
    ValueError: the shapes do not agree.
  """
  if x.ndim != 4 or kernel.ndim != 4 or kernel.shape[2:] != (1, x.shape[-1]):
    raise ValueError(f"expected x [B, H, W, C] and kernel [k, k, 1, C], got shapes {x.shape} and {kernel.shape}.")
  if jax.default_backend() == "cpu":
    return shifted_sum(x, kernel, stride)
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    _padding(x.shape, kernel.shape, stride),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=x.shape[-1],
  )


def _padding(shape: tuple[int, ...], kernel_shape: tuple[int, ...], stride: int) -> list[tuple[int, int]]:
  return [same_padding(n, k, stride) for n, k in zip(shape[1:3], kernel_shape[:2], strict=True)]


def _pad(x: jax.Array, padding: list[tuple[int, int]], *, batch: int = 0) -> jax.Array:
  """Pads with zeros in memory: fused into its readers, the test for the border would run at every read."""
  return lax.optimization_barrier(jnp.pad(x, ((0, batch), *padding, (0, 0))))


def _window(x: jax.Array, start: tuple[int, int], size: tuple[int, int], stride: int) -> jax.Array:
  """Takes every stride-th row and column from a start, `size` of them."""
  (top, left), (height, width) = start, size
  rows = slice(top, top + (height - 1) * stride + 1, stride)
  return x[:, rows, left : left + (width - 1) * stride + 1 : stride]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def shifted_sum(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """Computes depthwise_conv as k² shifted slices times weights; its derivatives are such sums too."""
  size = tuple(-(-n // stride) for n in x.shape[1:3])
  padded = _pad(x, _padding(x.shape, kernel.shape, stride))
  return sum(_window(padded, (i, j), size, stride) * kernel[i, j, 0] for i, j in _taps(kernel))


def _taps(kernel: jax.Array) -> list[tuple[int, int]]:
  return [(i, j) for i in range(kernel.shape[0]) for j in range(kernel.shape[1])]


def _forward(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return shifted_sum(x, kernel, stride), (x, kernel)


def _backward(
  stride: int, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
  x, kernel = residuals
  return _input_gradient(gradient, kernel, x.shape, stride), _kernel_gradient(x, kernel, gradient, stride)


shifted_sum.defvjp(_forward, _backward)


def _input_gradient(gradient: jax.Array, kernel: jax.Array, shape: tuple[int, ...], stride: int) -> jax.Array:
  """Sums, for each input pixel y, gradient[(y + before - i) / stride] · kernel[i] over the i that divide.

  The pixels y = stride·m + phase take the same i, so each phase is a shifted sum over the gradient's own lattice; the
  phases are then interleaved.
  """
  (top, _), (left, _) = _padding(shape, kernel.shape, stride)
  border = max(kernel.shape[:2])
  padded = _pad(gradient, [(border, border)] * 2)
  total = jnp.zeros(shape, gradient.dtype)
  for row_phase in range(min(stride, shape[1])):
    for column_phase in range(min(stride, shape[2])):
      size = -(-(shape[1] - row_phase) // stride), -(-(shape[2] - column_phase) // stride)
      phase = jnp.zeros((shape[0], *size, shape[3]), gradient.dtype)
      for i, j in _taps(kernel):
        row, column = row_phase + top - i, column_phase + left - j
        if row % stride == 0 and column % stride == 0:
          start = border + row // stride, border + column // stride
          phase += _window(padded, start, size, 1) * kernel[i, j, 0]
      if stride == 1:
        return phase
      spread = [
        (first, n - first - (count - 1) * stride - 1, stride - 1)
        for first, n, count in zip((row_phase, column_phase), shape[1:3], size, strict=True)
      ]
      zero = jnp.zeros((), gradient.dtype)
      total += lax.pad(lax.optimization_barrier(phase), zero, ((0, 0, 0), *spread, (0, 0, 0)))
  return total


def _kernel_gradient(x: jax.Array, kernel: jax.Array, gradient: jax.Array, stride: int) -> jax.Array:
  """Sums input times gradient over images and pixels for each tap.

  XLA's reductions on CPU that keep the last axis are slow; the sum over images is therefore unrolled, which leaves
  the reduction a small part of the work.
  """
  unrolled = min(x.shape[0], _UNROLLED_IMAGES)
  extra = -x.shape[0] % unrolled
  padded = _pad(x, _padding(x.shape, kernel.shape, stride), batch=extra)
  gradient = _pad(gradient, [(0, 0)] * 2, batch=extra)
  size = gradient.shape[1:3]
  sums = [
    sum(_window(padded[b::unrolled], tap, size, stride) * gradient[b::unrolled] for b in range(unrolled))
    for tap in _taps(kernel)
  ]
  sums = lax.optimization_barrier(jnp.stack(sums))
  return sums.sum(axis=(1, 2, 3)).reshape(kernel.shape)
