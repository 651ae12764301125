"""Dense convolution, in forms that are faster than XLA's on a CPU; GPUs and TPUs get XLA's.

* The gradient of a kernel is a sum of matrix products, of the shifted input and the output's gradient. XLA
  convolves with a window of the image's size, which takes 2 to 20 times as long.
* A convolution to few channels is one matrix product for all taps, whose results are shifted and added. XLA
  takes 2 to 3 times as long.
* A 3×3 convolution between many channels is computed in tiles (`winograd`), and so are its gradients.

These gradients are written out in training steps only (`compilation.jit`); elsewhere JAX derives them, in
both modes. In a training step on a CPU the input's gradient also waits for the kernel's. The step sums the
kernel gradients of two passes over a network. Without this order XLA computes those of the first pass only
when it needs the sums, and keeps the inputs and gradients of all layers until then.
"""

import functools
import math

import jax
import jax.export
import jax.numpy as jnp
from jax import lax

from scops_jax.kernels import platforms, winograd
from scops_jax.kernels.compilation import is_traced_for_training

Padding = tuple[tuple[int, int], tuple[int, int]]  # of rows and columns, (before, after)

# With fewer channels the matrix product of a single tap is too narrow, so all taps share one.
_FEW_CHANNELS = 16
# With at least so many channels, in and out, tiles save more time than it takes to make them.
_MANY_CHANNELS = 64
# With at least so many multiplications they also save more time than it takes to compile them.
_MANY_PRODUCTS = 2 << 30


def conv(
  x: jax.Array, kernel: jax.Array, *, padding: Padding, stride: int = 1, dilation: int = 1
) -> jax.Array:
  """Convolves images with a kernel, as lax.conv_general_dilated does.

  out[b, y, x, o] = Σ_ijc kernel[i, j, c, o] in[b, stride y + dilation i - before, …, c]

  Args:
    x: [B, H, W, C].
    kernel: [k, k, C, O], x's dtype.
    padding: zeros around the rows and columns.
    stride: of both axes.
    dilation: distance of the kernel's taps.

  Returns:
    [B, h, w, O], x's dtype.
  """

  def on_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
    form = _conv_in_training if is_traced_for_training() else _conv_on_cpu
    return form(x, kernel, padding, stride, dilation)

  def elsewhere(x: jax.Array, kernel: jax.Array) -> jax.Array:
    # XLA's compiler for GPUs, of jax 0.11.2, ends the process at the gradient of a product of every second
    # pixel ("Check failed: subdim_size_accumulator == dim_size"), so such pixels are convolved.
    form = _xla_conv if stride > 1 else _conv
    return form(x, kernel, padding, stride, dilation)

  return platforms.call(x, kernel, on_cpu=on_cpu, elsewhere=elsewhere)


def _conv(x: jax.Array, kernel: jax.Array, padding: Padding, stride: int, dilation: int) -> jax.Array:
  if kernel.shape[:2] == (1, 1) and padding == ((0, 0), (0, 0)):
    x = x[:, ::stride, ::stride]
    # Rows in one axis: XLA's product over several has a slow gradient.
    return (_rows(x) @ kernel[0, 0]).reshape(*x.shape[:-1], kernel.shape[-1])
  return _xla_conv(x, kernel, padding, stride, dilation)


def _xla_conv(x: jax.Array, kernel: jax.Array, padding: Padding, stride: int, dilation: int) -> jax.Array:
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    padding,
    rhs_dilation=(dilation, dilation),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


def _conv_on_cpu(x: jax.Array, kernel: jax.Array, padding: Padding, stride: int, dilation: int) -> jax.Array:
  if _in_tiles(x, kernel, padding, stride, dilation):
    return winograd.conv_3x3(x, kernel, dilation=dilation)
  if stride == 1 and kernel.shape[:2] != (1, 1) and kernel.shape[-1] < _FEW_CHANNELS <= x.shape[-1]:
    return _conv_to_few_channels(x, kernel, padding, dilation)
  return _conv(x, kernel, padding, stride, dilation)


def _forward(
  x: jax.Array, kernel: jax.Array, padding: Padding, stride: int, dilation: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return _conv_on_cpu(x, kernel, padding, stride, dilation), (x, kernel)


def _backward(
  padding: Padding, stride: int, dilation: int, inputs: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
  x, kernel = inputs
  if _in_tiles(x, kernel, padding, stride, dilation):
    x_gradient = winograd.input_gradient(gradient, kernel, dilation=dilation)
    kernel_gradient = winograd.kernel_gradient(x, gradient, dilation=dilation)
  else:
    (x_gradient,) = jax.linear_transpose(lambda x: _conv(x, kernel, padding, stride, dilation), x)(gradient)
    kernel_gradient = _kernel_gradient(x, kernel, gradient, padding, stride=stride, dilation=dilation)
  return lax.optimization_barrier((x_gradient, kernel_gradient))


_conv_in_training = jax.custom_vjp(_conv_on_cpu, nondiff_argnums=(2, 3, 4))
_conv_in_training.defvjp(_forward, _backward)


def _in_tiles(x: jax.Array, kernel: jax.Array, padding: Padding, stride: int, dilation: int) -> bool:
  return (
    kernel.shape[:2] == (3, 3)
    and min(kernel.shape[2:]) >= _MANY_CHANNELS
    and not jax.export.is_symbolic_dim(x.shape[0])  # the batch size of an exported program is unknown
    and math.prod(x.shape[:3]) * kernel.size >= _MANY_PRODUCTS
    and stride == 1
    and padding == ((dilation, dilation),) * 2
    and x.dtype in (jnp.float32, jnp.float64)  # sums of inputs, rounded to bfloat16, would lose accuracy
  )


def _kernel_gradient(
  x: jax.Array, kernel: jax.Array, gradient: jax.Array, padding: Padding, *, stride: int, dilation: int
) -> jax.Array:
  """Returns for each tap the sum over images and pixels of what it reads times the output's gradient."""
  taps = _taps(kernel, dilation)
  if stride == 1 and gradient.shape[-1] < _FEW_CHANNELS:
    return _by_shifted_gradients(x, kernel, gradient, padding, taps)
  padded = _pad(x, padding)
  reads = [_rows(window(padded, tap, gradient.shape[1:3], stride)) for tap in taps]
  columns = _rows(gradient)
  if x.shape[-1] < _FEW_CHANNELS:
    return (jnp.concatenate(reads, axis=1).T @ columns).reshape(kernel.shape)
  return jnp.stack([values.T @ columns for values in reads]).reshape(kernel.shape)


def _by_shifted_gradients(
  x: jax.Array, kernel: jax.Array, gradient: jax.Array, padding: Padding, taps: list[tuple[int, int]]
) -> jax.Array:
  """Returns the same at stride 1 by shifting the output's gradient, where that is the smaller array.

  Through tap t pixel p reaches the output p - t + before. With last - before zeros in front, that is row
  p + last - t of the gradient.
  """
  last = taps[-1]
  rows, columns = ((n - before, n - after) for n, (before, after) in zip(last, padding, strict=True))
  padded = _pad(gradient, (rows, columns))
  reached = [_rows(window(padded, (last[0] - t[0], last[1] - t[1]), x.shape[1:3], 1)) for t in taps]
  products = _rows(x).T @ jnp.concatenate(reached, axis=1)
  return jnp.moveaxis(products.reshape(x.shape[-1], *kernel.shape[:2], -1), 0, 2)


def _conv_to_few_channels(x: jax.Array, kernel: jax.Array, padding: Padding, dilation: int) -> jax.Array:
  """Multiplies every pixel with all taps, then sums for each output the products of the pixels it reads."""
  channels = kernel.shape[-1]
  all_taps = jnp.moveaxis(kernel, 2, 0).reshape(x.shape[-1], -1)
  products = jnp.matmul(_rows(x), all_taps, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))
  padded = lax.optimization_barrier(_pad(products.reshape(*x.shape[:-1], -1), padding))
  last = dilation * (kernel.shape[0] - 1), dilation * (kernel.shape[1] - 1)
  size = padded.shape[1] - last[0], padded.shape[2] - last[1]
  found = [
    window(padded[..., n * channels : (n + 1) * channels], tap, size, 1)
    for n, tap in enumerate(_taps(kernel, dilation))
  ]
  return functools.reduce(jnp.add, found).astype(x.dtype)


def _taps(kernel: jax.Array, dilation: int) -> list[tuple[int, int]]:
  return [(dilation * i, dilation * j) for i in range(kernel.shape[0]) for j in range(kernel.shape[1])]


def _pad(x: jax.Array, padding: Padding) -> jax.Array:
  return jnp.pad(x, ((0, 0), *padding, (0, 0)))


def _rows(x: jax.Array) -> jax.Array:
  return x.reshape(-1, x.shape[-1])


def window(x: jax.Array, start: tuple[int, int], size: tuple[int, ...], stride: int) -> jax.Array:
  """Returns `size` rows and columns of x [B, H, W, C], every stride-th from `start`."""
  rows, columns = (slice(a, a + (n - 1) * stride + 1, stride) for a, n in zip(start, size, strict=True))
  return x[:, rows, columns]
