"""DeepLab-v2 segmenters on a Caffe-style ResNet (Chen et al., arXiv 1606.00915), in the SCOPS release's form.

Stages 3 and 4 are dilated by 2 and 4 instead of strided, so the logits have stride 8. The head is the sum of
four dilated 3×3 convolutions (atrous spatial pyramid pooling), "head_conv0" … "head_conv3"; modules of the
trunk are named as in `resnet`.

Alignment: the pool after the stem rounds up, so n pixels give n / 8 + 1 cells if 8 divides n, and cell i is
centred on pixel 8 i. This project resizes with aligned corners, which puts cell i at pixel 8 i (n - 1) / n:
at most one pixel off, at the far border.
"""

import functools
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from scops_jax.models import resnet
from scops_jax.models.base import Path, Segmenter
from scops_jax.models.layers import Conv

STRIDE = 8
_HEAD_DILATIONS = (6, 12, 18, 24)
_MEAN_COLOR = (122.67891434, 116.66876762, 104.00698793)  # RGB, of ImageNet
_STAGES = ((1, 1), (2, 1), (1, 2), (1, 4))  # stride of the first block, dilation of every block
_NORMAL = nn.initializers.normal(0.01)

# How often the release's optimizer lists a parameter of a block and of its shortcut. It walks the modules
# recursively and lists at each of them all parameters below it, so that deeper ones come more often.
_BLOCK_UPDATES, _SHORTCUT_UPDATES = 3, 4


class DeepLab(Segmenter):
  """ResNet trunk and dilated head.

  BatchNorm uses the batch's statistics in training. As in the release, its scale and bias are frozen, except
  in the shortcuts of the two-branch variant.

  Attributes:
    num_parts: K.
    block_counts: of the four stages.
    two_branch: whether the head reads only the second half of the trunk's channels. No loss of the release
      reads the first half, which is kept so that weight files fit.
    stage_channels: of the middle convolutions of each stage.
  """

  uses_batch_statistics: ClassVar[bool] = True

  num_parts: int
  block_counts: Sequence[int]
  two_branch: bool
  stage_channels: Sequence[int] = resnet.STAGE_CHANNELS

  @nn.compact
  def __call__(
    self, images: jax.Array, train: bool = False, *, axis_name: str | None = None, passes: int = 1
  ) -> jax.Array:
    """Maps normalised images `[B, H, W, 3]` to logits `[B, H / 8 + 1, W / 8 + 1, K+1]` (H, W multiples of 8).

    Args:
      images: as `normalize` gives them.
      train: whether BatchNorm uses the batch's statistics and updates the running ones ("batch_stats").
      axis_name: of the pmap over whose devices these statistics are taken; None: this device's alone.
      passes: of training that the images hold, as in BatchNorm.
    """
    stem = functools.partial(
      resnet.stem, channels=self.stage_channels[0], ceil_mode=True, kernel_init=_NORMAL, train=train
    )
    # Its maps are large and cheap, so the gradient computes them again instead of keeping them.
    x = nn.remat(lambda _, images: stem(images, axis_name=axis_name, passes=passes))(self, images)
    for stage, (stride, dilation) in enumerate(_STAGES):
      for block in range(self.block_counts[stage]):
        x = resnet.TrainedBottleneck(
          self.stage_channels[stage],
          stride=stride if block == 0 else 1,
          dilation=dilation,
          projects=block == 0,
          strides_first=True,
          trainable_shortcut=self.two_branch,
          kernel_init=_NORMAL,
          name=f"layer{stage + 1}_{block}",
        )(x, train, axis_name, passes)
        if train and block == 0:
          # Written to memory, or XLA would keep the two maps that it is the sum of for the gradient.
          x = jax.lax.optimization_barrier(x)
    if self.two_branch:
      x = x[..., x.shape[-1] // 2 :]
    bound = (9 * x.shape[-1]) ** -0.5  # PyTorch's default: uniform within ± 1 / √(fan in)

    def bias_init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
      return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    branches = [
      Conv(self.num_parts + 1, 3, 1, dilation, _NORMAL, bias_init, name=f"head_conv{i}")(x)
      for i, dilation in enumerate(_HEAD_DILATIONS)
    ]
    return sum(branches[1:], start=branches[0])

  @nn.nowrap
  def is_trained(self, path: Path) -> bool:
    """As in Segmenter: all but BatchNorm's scale and bias, which only the two-branch shortcuts train."""
    layer = path[-2]
    return self.two_branch if layer == "downsample_bn" else not layer.startswith("bn")

  @nn.nowrap
  def release_update_count(self, path: Path) -> int:
    """As in Segmenter: PyTorch 0.4 updates a tensor as often as the release's optimizer lists it."""
    if path[-2].startswith("downsample_"):
      return _SHORTCUT_UPDATES
    return _BLOCK_UPDATES if len(path) > 2 else 1


def normalize(images: jax.Array) -> jax.Array:
  """Subtracts the mean colour from RGB 0..255."""
  return images - jnp.asarray(_MEAN_COLOR, images.dtype)
