"""ResNets of bottlenecks (He et al., arXiv 1512.03385): the blocks, and frozen references.

Modules are named as the entries of the published PyTorch files: conv1, bn1, then block b of stage s is
"layer{s}_{b}" with conv1 … bn3 and, in the first block of a stage, downsample_conv and downsample_bn.

Alignment: with symmetric padding cell i of stride s is centred on input pixel s i.
"""

from collections.abc import Iterator, Sequence

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from scops_jax.models.base import Reference, normalize_features, take_layers
from scops_jax.models.layers import STATISTICS, BatchNorm, Conv, max_pool

BLOCK_COUNTS = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3)}  # of the four stages, by the depth's name
REFERENCE_LAYERS = ("layer1", "layer2", "layer3", "layer4")
STAGE_CHANNELS = (64, 128, 256, 512)  # of the middle convolutions; a block's output has four times as many
_EXPANSION = 4
_CONVOLVED = "convolved"  # what TrainedBottleneck calls the convolutions' results

_FAN_OUT_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def stem(
  images: jax.Array,
  *,
  channels: int = STAGE_CHANNELS[0],
  ceil_mode: bool = False,
  kernel_init: nn.initializers.Initializer = _FAN_OUT_NORMAL,
  train: bool = False,
  axis_name: str | None = None,
  passes: int = 1,
) -> jax.Array:
  """Computes conv1, bn1 and the pool; the modules become children of the calling compact module.

  Args:
    images: normalised, `[B, H, W, 3]`.
    channels: of the result.
    ceil_mode: of the pool: whether a window that reaches over the end counts.
    kernel_init: of the convolution.
    train: as in BatchNorm.
    axis_name: as in BatchNorm.
    passes: as in BatchNorm.

  Returns:
    `[B, h, w, channels]`, where an even H gives H / 4 rows, in ceil mode H / 4 + 1 if 4 divides it.
  """
  x = Conv(channels, 7, stride=2, kernel_init=kernel_init, name="conv1")(images)
  x = nn.relu(BatchNorm(trainable=False, name="bn1")(x, train=train, axis_name=axis_name, passes=passes))
  return max_pool(x, kernel_size=3, stride=2, padding=1, ceil_mode=ceil_mode)


class Bottleneck(nn.Module):
  """relu(bn3(conv3 1×1(relu(bn2(conv2 3×3(relu(bn1(conv1 1×1(x)))))))) + shortcut(x)).

  Attributes:
    channels: of the first two convolutions; the result has four times as many.
    stride: of the block.
    dilation: of the 3×3 convolution.
    projects: whether the shortcut is a 1×1 convolution and BatchNorm, else the identity.
    strides_first: whether the first 1×1 convolution carries the stride (Caffe), else the 3×3 (torchvision).
    trainable_shortcut: whether the shortcut's BatchNorm is trainable; the others are not.
    kernel_init: of the convolutions.
  """

  channels: int
  stride: int = 1
  dilation: int = 1
  projects: bool = False
  strides_first: bool = False
  trainable_shortcut: bool = False
  kernel_init: nn.initializers.Initializer = _FAN_OUT_NORMAL

  @nn.compact
  def __call__(
    self, x: jax.Array, train: bool = False, axis_name: str | None = None, passes: int = 1
  ) -> jax.Array:
    """Maps `[B, H, W, C]` to `[B, ⌈H / stride⌉, ⌈W / stride⌉, 4 channels]` ≥ 0; options as in BatchNorm."""

    def conv(x: jax.Array, name: str, channels: int, kernel_size: int, *, stride: int = 1) -> jax.Array:
      dilation = self.dilation if kernel_size > 1 else 1
      module = Conv(channels, kernel_size, stride, dilation, self.kernel_init, name=name)
      # A projecting block adds two wide results, and DeepLab keeps their sum instead.
      wide = self.projects and channels > self.channels
      return module(x) if wide else checkpoint_name(module(x), _CONVOLVED)

    def batch_norm(x: jax.Array, name: str, *, trainable: bool = False) -> jax.Array:
      return BatchNorm(trainable=trainable, name=name)(x, train=train, axis_name=axis_name, passes=passes)

    strides = (self.stride, 1) if self.strides_first else (1, self.stride)
    y = nn.relu(batch_norm(conv(x, "conv1", self.channels, 1, stride=strides[0]), "bn1"))
    y = nn.relu(batch_norm(conv(y, "conv2", self.channels, 3, stride=strides[1]), "bn2"))
    y = batch_norm(conv(y, "conv3", _EXPANSION * self.channels, 1), "bn3")
    if self.projects:
      x = conv(x, "downsample_conv", _EXPANSION * self.channels, 1, stride=self.stride)
      x = batch_norm(x, "downsample_bn", trainable=self.trainable_shortcut)
    return nn.relu(x + y)


# The block for training. For the gradient it keeps its input, the named convolutions' results, means and
# variances. The results of BatchNorms and relus, which take as much memory, are computed again.
TrainedBottleneck = nn.remat(
  Bottleneck,
  static_argnums=(2, 3, 4),
  policy=jax.checkpoint_policies.save_only_these_names(_CONVOLVED, STATISTICS),
)


class ResNetReference(Reference):
  """Outputs of stages "layer1" … "layer4", after their relu, at strides 4, 8, 16 and 32 (torchvision's form).

  Under l2_normalize the returned maps are normalised, but the next stage reads them as they were.

  Attributes:
    block_counts: of the four stages.
    stage_channels: of the middle convolutions of each stage.
  """

  block_counts: Sequence[int]
  stage_channels: Sequence[int] = STAGE_CHANNELS

  @nn.compact
  def __call__(self, images: jax.Array) -> tuple[jax.Array, ...]:
    """Maps normalised images `[B, H, W, 3]` to a map `[B, h, w, C]` ≥ 0 for each layer."""

    def maps() -> Iterator[tuple[str, jax.Array]]:
      x = stem(images, channels=self.stage_channels[0])
      for stage, (count, channels) in enumerate(zip(self.block_counts, self.stage_channels, strict=True)):
        for block in range(count):
          first = block == 0
          stride = 2 if first and stage > 0 else 1
          x = Bottleneck(channels, stride=stride, projects=first, name=f"layer{stage + 1}_{block}")(x)
        yield f"layer{stage + 1}", x

    found = take_layers(maps(), self.layers)
    return tuple(normalize_features(x) if self.l2_normalize else x for x in found)
