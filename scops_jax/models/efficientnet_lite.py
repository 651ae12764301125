"""EfficientNet-Lite0: classifier, frozen reference of feature maps, and segmenter backbone.

Architecture: Tan & Le, EfficientNet (arXiv 1905.11946), in the "lite" variant of the TensorFlow TPU
repository: relu6, no squeeze-and-excitation, stem and head of fixed width. BatchNorm always uses its running
statistics, folded into the convolution before it; its scale and bias are trainable.

Alignment: with SAME padding and a side of the form s m + 1, every stride-2 convolution pads both ends by the
same amount, so cell i of the stride-s map is centred on input pixel s i. These cells form the align-corners
lattice that this project's resizes and warps assume. Reference and segmenter therefore first resize images to
the next such side.
"""

from collections.abc import Iterator
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from scops_jax import geometry
from scops_jax.kernels.convolution import conv
from scops_jax.kernels.depthwise import depthwise_conv, same_padding
from scops_jax.kernels.reductions import add_bias
from scops_jax.models.base import Reference, Segmenter, normalize_features, take_layers
from scops_jax.models.layers import Dense

_BATCH_NORM_EPSILON = 1e-3
_STEM_CHANNELS, _HEAD_CHANNELS, _NUM_CLASSES = 32, 1280, 1000


class _Block(NamedTuple):
  """An inverted residual: 1×1 expansion, depthwise k×k, linear 1×1 projection."""

  kernel_size: int
  stride: int
  expansion: int
  channels: int


_STAGES = (  # repeats, and the first block; the repeats have stride 1
  (1, _Block(3, 1, 1, 16)),
  (2, _Block(3, 2, 6, 24)),
  (2, _Block(5, 2, 6, 40)),
  (3, _Block(3, 2, 6, 80)),
  (3, _Block(5, 1, 6, 112)),
  (4, _Block(5, 2, 6, 192)),
  (1, _Block(3, 1, 6, 320)),
)
_BLOCKS = [
  block if i == 0 else block._replace(stride=1) for repeats, block in _STAGES for i in range(repeats)
]

# The post-activation, thus non-negative, maps in the order of computation.
REFERENCE_LAYERS = (
  "stem",
  "block0_depthwise",  # block 0 has no expansion
  *(f"block{i}_{part}" for i in range(1, len(_BLOCKS)) for part in ("expand", "depthwise")),
  "head",
)


class _ConvBatchNorm(nn.Module):
  """Convolution with BatchNorm folded in: w' = w f, b' = bias - mean f, with f = scale / √(var + ε)."""

  channels: int
  kernel_size: int = 1
  stride: int = 1
  depthwise: bool = False
  activation: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (self.kernel_size, self.kernel_size, 1 if self.depthwise else x.shape[-1], self.channels)
    # As in the original: normal, deviation √(2 / fan out), where a depthwise filter's fan out is k².
    fan_out = self.kernel_size**2 * (1 if self.depthwise else self.channels)
    kernel = self.param("kernel", nn.initializers.normal((2.0 / fan_out) ** 0.5), shape)
    scale = self.param("scale", nn.initializers.ones, (self.channels,))
    bias = self.param("bias", nn.initializers.zeros, (self.channels,))
    mean = self.variable("batch_stats", "mean", jnp.zeros, (self.channels,)).value
    variance = self.variable("batch_stats", "var", jnp.ones, (self.channels,)).value
    factor = scale * lax.rsqrt(variance + _BATCH_NORM_EPSILON)
    kernel, bias = ((kernel * factor).astype(x.dtype), (bias - mean * factor).astype(x.dtype))
    x = add_bias(_convolve(x, kernel, stride=self.stride, depthwise=self.depthwise), bias)
    return relu6(x) if self.activation else x


@jax.custom_jvp
def relu6(x: jax.Array) -> jax.Array:
  """Clips to [0, 6]; the derivative is 0 at both kinks, as in PyTorch."""
  # Its rule reads the result alone, so that the gradient need not keep x.
  return jnp.clip(x, 0.0, 6.0)


@relu6.defjvp
def _relu6_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
  y = relu6(*primals)
  return y, jnp.where((y > 0) & (y < 6), tangents[0], 0)


def _convolve(x: jax.Array, kernel: jax.Array, *, stride: int, depthwise: bool) -> jax.Array:
  if depthwise:
    return depthwise_conv(x, kernel, stride=stride)
  rows, columns = (same_padding(n, k, stride) for n, k in zip(x.shape[1:3], kernel.shape[:2], strict=True))
  return conv(x, kernel, padding=(rows, columns), stride=stride)


def _trunk(x: jax.Array) -> Iterator[tuple[str, jax.Array]]:
  """Computes the classifier layer by layer; its modules become children of the calling compact module.

  Yields:
    The maps of REFERENCE_LAYERS, "block{i}", the signed output of block i, and "classifier", the logits.
  """
  x = _ConvBatchNorm(_STEM_CHANNELS, kernel_size=3, stride=2, name="stem")(x)
  yield "stem", x
  for i, block in enumerate(_BLOCKS):
    y = x
    if block.expansion > 1:
      y = _ConvBatchNorm(x.shape[-1] * block.expansion, name=f"block{i}_expand")(y)
      yield f"block{i}_expand", y
    y = _ConvBatchNorm(
      y.shape[-1],
      kernel_size=block.kernel_size,
      stride=block.stride,
      depthwise=True,
      name=f"block{i}_depthwise",
    )(y)
    yield f"block{i}_depthwise", y
    y = _ConvBatchNorm(block.channels, activation=False, name=f"block{i}_project")(y)
    x = x + y if block.stride == 1 and x.shape == y.shape else y
    yield f"block{i}", x
  x = _ConvBatchNorm(_HEAD_CHANNELS, name="head")(x)
  yield "head", x
  yield "classifier", nn.Dense(_NUM_CLASSES, dtype=x.dtype, name="classifier")(x.mean(axis=(1, 2)))


def _stride(layers: tuple[str, ...]) -> int:
  """Returns the stride in pixels of the coarsest map that is computed for these layers."""
  depth = max(REFERENCE_LAYERS.index(layer) for layer in layers)
  stride = 2
  for i, block in enumerate(_BLOCKS):
    if depth >= REFERENCE_LAYERS.index(f"block{i}_depthwise"):
      stride *= block.stride
  return stride


def _align(images: jax.Array, stride: int) -> jax.Array:
  """Resizes to the next sides of the form stride·m + 1."""
  height, width = (-(-(n - 1) // stride) * stride + 1 for n in images.shape[1:3])
  return images if images.shape[1:3] == (height, width) else geometry.resize_bilinear(images, height, width)


class EfficientNetLite0(nn.Module):
  """The classification network: normalised images `[B, H, W, 3]` to logits of the classes `[B, 1000]`."""

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    return take_layers(_trunk(images), ("classifier",))[0]


class EfficientNetLite0Reference(Reference):
  """Feature maps of REFERENCE_LAYERS."""

  @nn.compact
  def __call__(self, images: jax.Array) -> tuple[jax.Array, ...]:
    """Maps normalised images `[B, H, W, 3]` to a map `[B, h, w, C]` in [0, 6] for each layer."""
    found = take_layers(_trunk(_align(images, _stride(self.layers))), self.layers)
    return tuple(normalize_features(x) if self.l2_normalize else x for x in found)


class EfficientNetLite0Segmenter(Segmenter):
  """The trunk and a top-down decoder (feature pyramid, arXiv 1612.03144) from its last block to stride 4.

  The decoder's modules are named "head_...", the backbone's as in the reference.

  Attributes:
    blocks: whose outputs the decoder takes, the last one first.
    enlargement: of the images' sides before the trunk, which was trained on larger objects.
  """

  num_parts: int
  channels: int = 64
  blocks: tuple[int, ...] = (10, 4, 2)
  enlargement: int = 1

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """Maps normalised images `[B, H, W, 3]` to logits `[B, E H / 4 + 1, E W / 4 + 1, K+1]`.

    E is the enlargement.
    """
    del train  # no layer differs in training: the statistics of BatchNorm are frozen
    if self.enlargement > 1:
      height, width = (self.enlargement * n + 1 for n in images.shape[1:3])
      images = geometry.resize_bilinear(images, height, width)
    aligned = _align(images, 32 if self.blocks[0] > 10 else 16)
    deepest, *finer = take_layers(_trunk(aligned), tuple(f"block{i}" for i in self.blocks))
    x = Dense(self.channels, name=f"head_lateral{self.blocks[0]}")(deepest)
    for i, maps in zip(self.blocks[1:], finer, strict=True):
      lateral = Dense(self.channels, name=f"head_lateral{i}")(maps)
      x = nn.relu(lateral + geometry.resize_bilinear(x, *lateral.shape[1:3]))
      x = _Smooth(name=f"head_smooth{i}")(x)
    initializer = nn.initializers.normal(0.01)
    return Dense(self.num_parts + 1, kernel_init=initializer, name="head_logits")(x)


class _Smooth(nn.Module):
  """Depthwise 5×5, 1×1 and relu, with as many channels as the input."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels = x.shape[-1]
    kernel = self.param("kernel", nn.initializers.normal(0.2), (5, 5, 1, channels))  # deviation 1 / √25
    mix = Dense(channels, kernel_init=nn.initializers.he_normal(), name="pointwise")
    return nn.relu(mix(depthwise_conv(x, kernel.astype(x.dtype))))


def normalize(images: jax.Array) -> jax.Array:
  """Maps RGB 0..255 to the range this network was trained on, about -1 to 1."""
  return (images - 127.0) / 128.0
