"""Depthwise convolution. GPUs and TPUs get XLA's grouped convolution; a CPU gets a sum of shifted slices.

XLA fuses that sum into one loop, while its grouped convolution takes 4 to 25 times as long.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from scops_jax.kernels import platforms
from scops_jax.kernels.compilation import is_traced_for_training
from scops_jax.kernels.convolution import Padding, window
from scops_jax.kernels.reductions import channel_sum

_UNROLLED_IMAGES = 16  # in the kernel's gradient; unrolling more makes compiling slow


def same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
  """Returns TensorFlow's SAME padding (before, after) of an axis, for ceil(size / stride) outputs."""
  total = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
  return total // 2, total - total // 2


def depthwise_conv(x: jax.Array, kernel: jax.Array, *, stride: int = 1) -> jax.Array:
  """Convolves each channel with its own kernel, with SAME padding.

  out[b, y, x, c] = Σ_ij kernel[i, j, 0, c] in[b, stride y + i - before, stride x + j - before, c]

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
    raise ValueError(
      f"expected x [B, H, W, C] and kernel [k, k, 1, C], got shapes {x.shape} and {kernel.shape}."
    )
  rows, columns = (same_padding(n, k, stride) for n, k in zip(x.shape[1:3], kernel.shape[:2], strict=True))

  def on_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
    form = _shifted_sum_in_training if is_traced_for_training() else shifted_sum
    return form(x, kernel, stride, (rows, columns))

  elsewhere = functools.partial(
    lax.conv_general_dilated,
    window_strides=(stride, stride),
    padding=(rows, columns),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=x.shape[-1],
  )
  return platforms.call(x, kernel, on_cpu=on_cpu, elsewhere=elsewhere)


def shifted_sum(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
  """Returns a depthwise convolution as a sum of k² shifted slices times weights."""
  return _sum_windows(_pad(x, padding), kernel, stride)


def _sum_windows(padded: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  size = tuple((n - k) // stride + 1 for n, k in zip(padded.shape[1:3], kernel.shape[:2], strict=True))
  return _sum([window(padded, tap, size, stride) * kernel[*tap, 0] for tap in _taps(kernel)])


def _forward(
  x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  padded = _pad(x, padding)
  # Written to memory: XLA would compute it again for the gradient of the activation that follows.
  return lax.optimization_barrier(_sum_windows(padded, kernel, stride)), (padded, kernel)


def _backward(
  stride: int, padding: Padding, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
  padded, kernel = residuals
  wide = jnp.promote_types(padded.dtype, jnp.float32)  # for the sums over all pixels
  return (
    _input_gradient(gradient, kernel, stride, padding, padded.shape),
    _kernel_gradient(padded.astype(wide), kernel, gradient.astype(wide), stride).astype(kernel.dtype),
  )


_shifted_sum_in_training = jax.custom_vjp(shifted_sum, nondiff_argnums=(2, 3))
_shifted_sum_in_training.defvjp(_forward, _backward)


def _pad(x: jax.Array, padding: Padding) -> jax.Array:
  """Pads rows and columns with zeros."""
  # Written to memory: XLA would fuse it into the slices, each of which would test for the border.
  return lax.optimization_barrier(jnp.pad(x, ((0, 0), *padding, (0, 0))))


def _taps(kernel: jax.Array) -> list[tuple[int, int]]:
  return [(i, j) for i in range(kernel.shape[0]) for j in range(kernel.shape[1])]


def _sum(terms: list[jax.Array]) -> jax.Array:
  return functools.reduce(jnp.add, terms)


def _input_gradient(
  gradient: jax.Array, kernel: jax.Array, stride: int, padding: Padding, padded_shape: tuple[int, ...]
) -> jax.Array:
  """Returns for each input pixel y the sum of gradient[(y + before - i) / stride] kernel[i].

  The sum is over the taps i for which the division leaves no remainder. These are the same for all pixels
  y = stride m + phase, so each phase is a shifted sum over the gradient, and the phases are interleaved.
  """
  (top, bottom), (left, right) = padding
  height, width = padded_shape[1] - top - bottom, padded_shape[2] - left - right
  border = max(kernel.shape[:2])
  padded = _pad(gradient, ((border, border), (border, border)))
  interleaved = []
  for phase in [(a, b) for a in range(min(stride, height)) for b in range(min(stride, width))]:
    size = -(-(height - phase[0]) // stride), -(-(width - phase[1]) // stride)
    terms = []
    for i, j in _taps(kernel):
      row, column = phase[0] + top - i, phase[1] + left - j
      if row % stride == 0 and column % stride == 0:
        start = border + row // stride, border + column // stride
        terms.append(window(padded, start, size, 1) * kernel[i, j, 0])
    gaps = [
      (first, n - first - (count - 1) * stride - 1, stride - 1)
      for first, n, count in zip(phase, (height, width), size, strict=True)
    ]
    zero = jnp.zeros((), gradient.dtype)
    interleaved.append(lax.pad(lax.optimization_barrier(_sum(terms)), zero, ((0, 0, 0), *gaps, (0, 0, 0))))
  return _sum(interleaved)


def _kernel_gradient(padded: jax.Array, kernel: jax.Array, gradient: jax.Array, stride: int) -> jax.Array:
  """Returns for each tap the sum of input times gradient over images and pixels."""
  # The sum over images is unrolled: XLA's reductions that keep the last axis are slow on CPUs.
  unrolled = min(gradient.shape[0], _UNROLLED_IMAGES)
  missing = -gradient.shape[0] % unrolled  # images to the next multiple
  if missing:
    padded, gradient = (jnp.pad(a, ((0, missing), (0, 0), (0, 0), (0, 0))) for a in (padded, gradient))
  padded, gradient = lax.optimization_barrier((padded, gradient))
  size = gradient.shape[1:3]
  sums = [
    _sum([window(padded[n::unrolled], tap, size, stride) * gradient[n::unrolled] for n in range(unrolled)])
    for tap in _taps(kernel)
  ]
  return jax.vmap(channel_sum)(lax.optimization_barrier(jnp.stack(sums))).reshape(kernel.shape)
