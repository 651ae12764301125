"""DINOv2 and DINOv3 vision transformers as frozen references and as segmenter backbones.

Alignment: cell i of a transformer is centred in its patch, at pixel p i + (p - 1) / 2, so that the outermost
cells lie half a patch inside the image, where the align-corners lattice that this project's resizes, losses
and warps assume has them on the border. Maps are therefore resampled onto the lattice they are taken for:
linearly between cells; what lies outside the outermost cells' centres, less than half a patch, gets their
values, since extrapolation has negative weights and amplifies noise.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from scops_jax import geometry
from scops_jax.models import vit
from scops_jax.models.base import Reference, Segmenter, normalize_features
from scops_jax.models.layers import Conv, Dense
from scops_jax.models.vit import Architecture

_SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}  # channels, blocks, heads
_REGISTERS = 4


def _architectures() -> dict[str, Architecture]:
  found = {}
  for size, sizes in _SIZES.items():
    found[f"dinov2_vit{size}14"] = Architecture(14, *sizes)
    found[f"dinov2_vit{size}14_reg"] = Architecture(14, *sizes, registers=_REGISTERS)
  for size, sizes in _SIZES.items():
    found[f"dinov3_vit{size}16"] = Architecture(16, *sizes, registers=_REGISTERS, rotary=True, epsilon=1e-5)
  return found


ARCHITECTURES = _architectures()


@functools.lru_cache(maxsize=64)
def lattice_matrix(cells: int, patch: int, new_size: int) -> NDArray:
  """Returns the matrix that resamples an axis of patch-centred cells onto an align-corners lattice.

  Lattice point o lies at pixel o (cells · patch - 1) / (new_size - 1), that is (pixel - (patch - 1) / 2) /
  patch in cells; the row has the weights of linear interpolation there, clamped to the outermost cells.

  Args:
    cells: on the axis, which has cells · patch pixels.
    patch: pixels.
    new_size: lattice points, the first and last on the centres of the outermost pixels; a single one lies in
      the middle of the axis.

  Returns:
    float64 [new_size, cells]; its rows add up to 1.
  """
  last = cells * patch - 1
  pixels = np.linspace(0, last, new_size) if new_size > 1 else np.array([last / 2])
  positions = np.clip((pixels - (patch - 1) / 2) / patch, 0, cells - 1)
  matrix = np.maximum(0.0, 1.0 - np.abs(positions[:, None] - np.arange(cells)))
  matrix.flags.writeable = False
  return matrix


def to_lattice(tokens: jax.Array, patch: int, height: int, width: int) -> jax.Array:
  """Resamples patch tokens `[B, h, w, C]` onto the align-corners lattice `[B, height, width, C]`."""
  dtype = geometry.accumulation_dtype(tokens)
  rows = jnp.asarray(lattice_matrix(tokens.shape[1], patch, height), dtype)
  columns = jnp.asarray(lattice_matrix(tokens.shape[2], patch, width), dtype)
  resampled = jnp.einsum("Hh,Ww,bhwc->bHWc", rows, columns, tokens.astype(dtype), precision=geometry.HIGHEST)
  return resampled.astype(tokens.dtype)


class DinoReference(Reference):
  """Patch tokens after blocks "block0" …, or after the final LayerNorm, "norm"; they are signed.

  Attributes:
    architecture: of the network.
  """

  signed = True

  architecture: Architecture

  @nn.compact
  def __call__(self, images: jax.Array) -> tuple[jax.Array, ...]:
    """Maps normalised images `[B, H, W, 3]` to a map `[B, H / patch, W / patch, C]` for each layer.

    Raises:
      ValueError: H or W is no multiple of the patch.
    """
    tokens = vit.compute_layers(images, self.architecture, self.layers)
    found = []
    for layer in self.layers:
      cells = tokens[layer]
      x = to_lattice(cells, self.architecture.patch, *cells.shape[1:3])
      found.append(normalize_features(x) if self.l2_normalize else x)
    return tuple(found)


class DinoSegmenter(Segmenter):
  """A transformer's last patch tokens, and a light head that adds edges from the image, at stride 4.

  Modules of the trunk are "embed", "block{i}_attention", "block{i}_mlp" and "norm":
  optimizer.frozen_modules = ("embed", "block", "norm") trains the head alone.

  Attributes:
    num_parts: K.
    architecture: of the trunk.
    channels: of the head.
  """

  num_parts: int
  architecture: Architecture
  channels: int = 64

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """Maps normalised images `[B, H, W, 3]` to logits `[B, ⌈(H - 1) / 4⌉ + 1, ⌈(W - 1) / 4⌉ + 1, K+1]`.

    Raises:
      ValueError: H or W is no multiple of the patch.
    """
    patch = self.architecture.patch
    tokens = vit.compute_layers(images, self.architecture, ("norm",), train=train)["norm"]
    # With sides of the form 4 m + 1 the cells of both strided convolutions lie on the align-corners lattice.
    height, width = (-(-(side - 1) // 4) for side in images.shape[1:3])
    zeros = nn.initializers.zeros
    x = Dense(self.channels, name="head_lateral")(tokens)
    x = to_lattice(x, patch, height + 1, width + 1)
    pixels = geometry.resize_bilinear(images, 4 * height + 1, 4 * width + 1)
    edges = nn.relu(Conv(self.channels // 2, 3, stride=2, bias_init=zeros, name="head_stem0")(pixels))
    x = nn.relu(x + Conv(self.channels, 3, stride=2, bias_init=zeros, name="head_stem1")(edges))
    x = nn.relu(Conv(self.channels, 3, bias_init=zeros, name="head_smooth")(x))
    return Dense(self.num_parts + 1, kernel_init=nn.initializers.normal(0.01), name="head_logits")(x)
