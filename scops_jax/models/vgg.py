"""VGG16 and VGG19 (Simonyan & Zisserman, arXiv 1409.1556) as frozen references.

The convolutions are named "features_{i}" by their index i in torchvision's `features`.

Alignment: each pool halves the map and rounds down, so cell i of stride s covers pixels s i … s i + s - 1.
Resizing with aligned corners, as in the release, therefore stretches the map by (s - 1) / 2 pixels at the
borders.
"""

from collections.abc import Iterator, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from scops_jax.models.base import Reference, normalize_features, take_layers
from scops_jax.models.layers import Conv, max_pool

VGG16, VGG19 = (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)  # convolutions of the five blocks
_CHANNELS = (64, 128, 256, 512, 512)
_IMAGENET_MEAN, _IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB, of 0..1


def reference_layers(convolutions: Sequence[int]) -> tuple[str, ...]:
  """Returns "relu{b}_{i}", after convolution i of block b, both from 1, in the order of computation."""
  return tuple(f"relu{b}_{i}" for b, count in enumerate(convolutions, 1) for i in range(1, count + 1))


class VggReference(Reference):
  """Maps after the relu of convolutions; block b has stride 2^(b - 1).

  Under l2_normalize the next convolution reads the normalised map, as in the release.

  Attributes:
    convolutions: of each block, VGG16 or VGG19.
  """

  convolutions: Sequence[int]

  @nn.compact
  def __call__(self, images: jax.Array) -> tuple[jax.Array, ...]:
    """Maps normalised images `[B, H, W, 3]` to a map `[B, ⌊H / s⌋, ⌊W / s⌋, C]` ≥ 0 for each layer."""

    def maps() -> Iterator[tuple[str, jax.Array]]:
      x, index = images, 0
      for block, count in enumerate(self.convolutions, 1):
        for i in range(1, count + 1):
          bias_init = nn.initializers.zeros
          x = nn.relu(Conv(_CHANNELS[block - 1], 3, bias_init=bias_init, name=f"features_{index}")(x))
          layer = f"relu{block}_{i}"
          if self.l2_normalize and layer in self.layers:
            x = normalize_features(x)
          yield layer, x
          index += 2  # past the convolution and its relu
        x = max_pool(x, kernel_size=2, stride=2)
        index += 1

    return take_layers(maps(), self.layers)


def normalize(images: jax.Array) -> jax.Array:
  """Maps RGB 0..255 to ImageNet's mean 0 and deviation 1, as torchvision's networks expect."""
  mean, deviation = (jnp.asarray(values, images.dtype) for values in (_IMAGENET_MEAN, _IMAGENET_DEVIATION))
  return (images / 255.0 - mean) / deviation
