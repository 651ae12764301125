"""Layers with PyTorch's conventions: symmetric padding, unbiased running variances, pools in ceil mode."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from scops_jax.kernels.batch_norm import STATISTICS, Moments, normalize_passes
from scops_jax.kernels.compilation import is_traced_for_training
from scops_jax.kernels.convolution import conv
from scops_jax.kernels.platforms import target
from scops_jax.kernels.reductions import add_bias, channel_sum

_BATCH_NORM_EPSILON = 1e-5
_BATCH_NORM_MOMENTUM = 0.1  # weight of the batch in the running statistics


class Conv(nn.Module):
  """Convolution `[B, H, W, C]` → `[B, h, w, channels]` in x's dtype, padded so that stride 1 keeps the size.

  Attributes:
    channels: of the output.
    kernel_size: odd.
    stride: of both axes; output i is centred on input stride · i.
    dilation: distance of the kernel's taps.
    kernel_init: of the kernel `[kernel_size, kernel_size, C, channels]`.
    bias_init: of the bias `[channels]`; None: no bias.
  """

  channels: int
  kernel_size: int
  stride: int = 1
  dilation: int = 1
  kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()
  bias_init: nn.initializers.Initializer | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.channels)
    kernel = self.param("kernel", self.kernel_init, shape).astype(x.dtype)
    padding = (self.dilation * (self.kernel_size // 2),) * 2
    x = conv(x, kernel, padding=(padding, padding), stride=self.stride, dilation=self.dilation)
    if self.bias_init is None:
      return x
    return add_bias(x, self.param("bias", self.bias_init, (self.channels,)).astype(x.dtype))


class Dense(nn.Module):
  """Linear map of the last axis `[B, H, W, C]` → `[B, H, W, channels]` in x's dtype.

  Has the parameters of flax's nn.Dense, whose gradient is slower because it transposes [B, H, W, C].

  Attributes:
    channels: of the output.
    kernel_init: of the kernel `[C, channels]`.
  """

  channels: int
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.channels)).astype(x.dtype)
    bias = self.param("bias", nn.initializers.zeros, (self.channels,)).astype(x.dtype)
    return add_bias(conv(x, kernel[None, None], padding=((0, 0), (0, 0))), bias)


class BatchNorm(nn.Module):
  """y = scale (x - mean) / √(var + ε) + bias, with ε = 1e-5, over the last axis (arXiv 1502.03167).

  In evaluation mean and var are the running statistics. In training they are the batch's, var with divisor n,
  and the running statistics move a tenth of the way to them. The running variance has divisor n - 1, as in
  PyTorch; flax's own BatchNorm has n. Statistics are computed in float32 at least.

  Attributes:
    trainable: whether scale and bias get gradients.
  """

  trainable: bool = True

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool, axis_name: str | None = None, passes: int = 1
  ) -> jax.Array:
    """Normalises x.

    Args:
      x: `[..., C]`.
      train: whether to use the batch's statistics, and to update the running ones.
      axis_name: of the pmap over whose devices the batch is spread; None: the batch is x.
      passes: of training that x holds, each with statistics of its own: image i is one of pass i modulo
        `passes`, and the running statistics move by each pass in turn. More than 1 is for GPUs and TPUs.

    Returns:
      Shape and dtype of x.

    Raises:
      ValueError: train is set and the batch has a single value per channel, so no variance.
    """
    shape = x.shape[-1:]
    scale = self.param("scale", nn.initializers.ones, shape)
    bias = self.param("bias", nn.initializers.zeros, shape)
    if not self.trainable:
      scale, bias = lax.stop_gradient((scale, bias))
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
    running_variance = self.variable("batch_stats", "var", jnp.ones, shape)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if train:
      count = x.size // x.shape[-1] // passes * (1 if axis_name is None else lax.axis_size(axis_name))
      if count < 2:
        raise ValueError(f"expected more than one value per channel in training, got x of shape {x.shape}")
      if target() == "cpu" and passes == 1:
        normalize = _normalize_in_training if is_traced_for_training() else _normalize
        y, *moments = normalize(wide, scale, bias, axis_name)
        means, variances = (moment[None] for moment in moments)
      else:
        shift = running_mean.value
        y, means, variances = normalize_passes(x, scale, bias, shift, _BATCH_NORM_EPSILON, passes, axis_name)
      if not self.is_initializing():
        for mean, variance in zip(means, variances * (count / (count - 1)), strict=True):
          running_mean.value = _average(running_mean.value, mean)
          running_variance.value = _average(running_variance.value, variance)
    else:
      factor = scale * lax.rsqrt(running_variance.value + _BATCH_NORM_EPSILON)
      y = (wide - running_mean.value) * factor + bias
    return y.astype(x.dtype)


def _normalize(x: jax.Array, scale: jax.Array, bias: jax.Array, axis_name: str | None) -> Moments:
  """Normalises x by its own mean and variance, which are returned too."""
  return _normalize_forward(x, scale, bias, axis_name)[0]


def _normalize_forward(
  x: jax.Array, scale: jax.Array, bias: jax.Array, axis_name: str | None
) -> tuple[Moments, tuple[jax.Array, ...]]:
  mean = checkpoint_name(_channel_mean(x, axis_name), STATISTICS)
  # In two passes: E[x²] - E[x]² cancels where the mean is large.
  variance = checkpoint_name(_channel_mean(jnp.square(x - mean), axis_name), STATISTICS)
  inverse = lax.rsqrt(variance + _BATCH_NORM_EPSILON)
  return ((x - mean) * (inverse * scale) + bias, mean, variance), (x, scale, mean, inverse)


def _normalize_backward(
  axis_name: str | None, residuals: tuple[jax.Array, ...], gradients: Moments
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """With x̂ = (x - mean) / √(var + ε): dx = scale / √(var + ε) (dy - mean(dy) - x̂ mean(x̂ dy))."""
  x, scale, mean, inverse = residuals
  gradient = gradients[0]
  bias_gradient = channel_sum(gradient)
  scale_gradient = channel_sum(gradient * (x - mean)) * inverse
  both = jnp.stack([bias_gradient, scale_gradient]) / (x.size // x.shape[-1])
  shift, slope = both if axis_name is None else lax.pmean(both, axis_name)
  x_gradient = (gradient - shift - (x - mean) * (inverse * slope)) * (inverse * scale)
  return x_gradient, scale_gradient, bias_gradient


# The gradient that JAX derives reads x once more, and its sums are slow on a CPU.
_normalize_in_training = jax.custom_vjp(_normalize, nondiff_argnums=(3,))
_normalize_in_training.defvjp(_normalize_forward, _normalize_backward)


def _channel_mean(x: jax.Array, axis_name: str | None) -> jax.Array:
  mean = channel_sum(x) / (x.size // x.shape[-1])
  return mean if axis_name is None else lax.pmean(mean, axis_name)


def _average(running: jax.Array, batch: jax.Array) -> jax.Array:
  return (1 - _BATCH_NORM_MOMENTUM) * running + _BATCH_NORM_MOMENTUM * batch


def max_pool(
  x: jax.Array, *, kernel_size: int, stride: int, padding: int = 0, ceil_mode: bool = False
) -> jax.Array:
  """Takes the maximum over windows; window i begins at input stride · i - padding, and outside is -∞.

  Args:
    x: `[B, H, W, C]`.
    kernel_size: of the square windows, pixels.
    stride: of both axes.
    padding: before both axes, at most half the kernel.
    ceil_mode: whether a last window counts that begins before x ends, but ends beyond the padding.

  Returns:
    `[B, h, w, C]`, x's dtype.
  """

  def pad(size: int) -> tuple[int, int]:
    span = size + 2 * padding - kernel_size
    windows = (-(-span // stride) if ceil_mode else span // stride) + 1
    if (windows - 1) * stride >= size + padding:  # the last one would hold padding only
      windows -= 1
    # Pixels at the end that are in no window stay: the pool rounds down by itself.
    return padding, max((windows - 1) * stride + kernel_size - size - padding, 0)

  padding_of_axes = [pad(size) for size in x.shape[1:3]]
  return nn.max_pool(x, (kernel_size, kernel_size), strides=(stride, stride), padding=padding_of_axes)
