"""Vision transformers (Dosovitskiy et al., arXiv 2010.11929) in the forms of DINOv2 and DINOv3.

DINOv2 (arXiv 2304.07193) learns an embedding of every position of a 37 × 37 grid; its later variants have
register tokens (arXiv 2309.16588). DINOv3 (arXiv 2508.10104) turns queries and keys by rotary embeddings
instead. Both scale each residual branch by a vector (LayerScale). Written from the papers and from the
documentation of Hugging Face's transformers; nothing of the authors' code is in it.

Modules: "embed" makes the tokens, "block{i}_attention" and "block{i}_mlp" are the halves of block i, "norm"
is the final LayerNorm.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from scops_jax.geometry import HIGHEST
from scops_jax.models.position_embedding import bicubic_matrix, rotary_tables

_MLP_RATIO = 4
# Names of what a block keeps for its gradient, see `compute_layers`.
_QKV, _ATTENDED, _HIDDEN = "qkv", "attended", "hidden"
_NORMAL = nn.initializers.truncated_normal(0.02)


@dataclasses.dataclass(frozen=True)
class Architecture:
  """The sizes of a vision transformer, and how it knows where its patches are."""

  patch: int  # pixels a side
  channels: int
  depth: int  # blocks
  heads: int
  registers: int = 0  # tokens beside the class token and the patches
  rotary: bool = False  # rotary embeddings and no bias of the keys (DINOv3), else learned positions
  grid: int = 37  # learned positions a side
  epsilon: float = 1e-6  # of the LayerNorms

  @property
  def layers(self) -> tuple[str, ...]:
    """The maps there are, in the order of computation."""
    return (*(f"block{i}" for i in range(self.depth)), "norm")


def check_sides(images: jax.Array, architecture: Architecture) -> None:
  """Raises ValueError unless the patches fill the images `[B, H, W, 3]`."""
  patch = architecture.patch
  if any(side % patch for side in images.shape[1:3]):
    raise ValueError(
      f"expected images whose sides are multiples of the patch, {patch} pixels, got {images.shape[1:3]}"
    )


def compute_layers(
  images: jax.Array, architecture: Architecture, wanted: tuple[str, ...], *, train: bool = False
) -> dict[str, jax.Array]:
  """Runs the transformer up to the last wanted layer, in the images' dtype.

  Its modules become children of the calling compact module.

  Args:
    images: `[B, H, W, 3]`, normalised; H and W are multiples of the patch.
    architecture: of the network.
    wanted: names of `architecture.layers`.
    train: whether a gradient is to be computed. A half block then keeps its input, the queries, keys and
      values, what attention gives, and the first layer of its MLP; the rest, above all the attention of all
      tokens to all, is computed again. No large product but that one is computed twice.

  Returns:
    The patch tokens `[B, H / patch, W / patch, C]` of each wanted layer: signed, cells centred in their
    patches.

  Raises:
    ValueError: the patches do not fill the images.
  """
  check_sides(images, architecture)
  height, width = (side // architecture.patch for side in images.shape[1:3])
  prefix = 1 + architecture.registers

  def patches(tokens: jax.Array) -> jax.Array:
    return tokens[:, prefix:].reshape(tokens.shape[0], height, width, -1)

  attention, mlp = _AttentionBranch, _MlpBranch
  if train:
    policy = jax.checkpoint_policies.save_only_these_names(_QKV, _ATTENDED, _HIDDEN)
    attention, mlp = nn.remat(attention, policy=policy), nn.remat(mlp, policy=policy)
  found: dict[str, jax.Array] = {}
  x = _Embedding(architecture, name="embed")(images)
  for i in range(architecture.depth):
    x = attention(architecture, height, width, name=f"block{i}_attention")(x)
    x = mlp(architecture, name=f"block{i}_mlp")(x)
    if f"block{i}" in wanted:
      found[f"block{i}"] = patches(x)
      if len(found) == len(set(wanted)):
        return found
  found["norm"] = patches(_layer_norm(x, architecture, "norm"))
  return found


def _layer_norm(x: jax.Array, architecture: Architecture, name: str) -> jax.Array:
  # Tokens have a few channels of large values, where the fast variance E[x²] - E[x]² cancels.
  norm = nn.LayerNorm(architecture.epsilon, dtype=x.dtype, use_fast_variance=False, name=name)
  return norm(x)


class _Embedding(nn.Module):
  """Images to tokens `[B, 1 + registers + patches, C]`: the class token, registers, patches row by row."""

  architecture: Architecture

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    net = self.architecture
    batch, height, width = images.shape[0], *(side // net.patch for side in images.shape[1:3])
    kernel = self.param("kernel", _NORMAL, (net.patch, net.patch, 3, net.channels)).astype(images.dtype)
    bias = self.param("bias", nn.initializers.zeros, (net.channels,)).astype(images.dtype)
    # The convolution whose windows are the patches, as a product.
    x = images.reshape(batch, height, net.patch, width, net.patch, 3).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(batch, height * width, -1) @ kernel.reshape(-1, net.channels) + bias
    class_token = self.param("cls_token", _NORMAL, (1, 1, net.channels))
    if not net.rotary:
      positions = self.param("pos_embed", _NORMAL, (1, 1 + net.grid**2, net.channels))
      class_token = class_token + positions[:, :1]
      x = x + _resized_positions(positions[0, 1:], net, height, width).astype(x.dtype)
    first = [class_token]
    if net.registers:
      first.append(self.param("register_tokens", _NORMAL, (1, net.registers, net.channels)))
    prefix = jnp.concatenate(first, axis=1).astype(x.dtype)
    return jnp.concatenate([jnp.broadcast_to(prefix, (batch, *prefix.shape[1:])), x], axis=1)


def _resized_positions(positions: jax.Array, net: Architecture, height: int, width: int) -> jax.Array:
  """Interpolates the learned positions `[grid², C]` to `[height · width, C]`.

  Models with registers were published with antialiasing, those without them with an offset in the scale.
  """
  if height == width == net.grid:
    return positions
  options = {"antialias": True} if net.registers else {"offset": 0.1}
  rows, columns = (jnp.asarray(bicubic_matrix(net.grid, n, **options), jnp.float32) for n in (height, width))
  grid = positions.reshape(net.grid, net.grid, -1)
  resized = jnp.einsum("yg,xh,ghc->yxc", rows, columns, grid, precision=HIGHEST)
  return resized.reshape(height * width, -1)


class _AttentionBranch(nn.Module):
  """x + γ ∘ attention(LayerNorm(x)) over all tokens, in several heads.

  Attributes:
    architecture: of the network.
    height: patches.
    width: patches.
  """

  architecture: Architecture
  height: int
  width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    net = self.architecture
    y = _Qkv(net, name="qkv")(_layer_norm(x, net, "norm"))
    y = checkpoint_name(y, _QKV).reshape(*x.shape[:2], 3, net.heads, -1)
    query, key, value = (y[:, :, i] for i in range(3))
    if net.rotary:
      query, key = (self._rotate(tokens) for tokens in (query, key))
    y = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
    y = nn.Dense(net.channels, dtype=x.dtype, kernel_init=_NORMAL, name="proj")(checkpoint_name(y, _ATTENDED))
    return x + self.param("gamma", nn.initializers.ones, (net.channels,)).astype(x.dtype) * y

  def _rotate(self, tokens: jax.Array) -> jax.Array:
    """Turns patch tokens `[B, T, heads, c]` by their angles: (a, b) → (a cos - b sin, b cos + a sin).

    a and b are the halves of a head's channels. Other tokens, which have no place, stay.
    """
    prefix = tokens.shape[1] - self.height * self.width
    cos, sin = (
      jnp.asarray(table)[:, None] for table in rotary_tables(self.height, self.width, tokens.shape[-1])
    )
    patches = tokens[:, prefix:].astype(jnp.float32)
    a, b = jnp.split(patches, 2, axis=-1)
    turned = patches * cos + jnp.concatenate([-b, a], axis=-1) * sin
    return jnp.concatenate([tokens[:, :prefix], turned.astype(tokens.dtype)], axis=1)


class _Qkv(nn.Module):
  """Queries, keys and values `[B, T, 3C]` in one linear map; rotary networks have no bias of the keys."""

  architecture: Architecture

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    net = self.architecture
    kernel = self.param("kernel", _NORMAL, (net.channels, 3 * net.channels))
    bias = self.param("bias", nn.initializers.zeros, (3 * net.channels,))
    if net.rotary:
      bias = bias * jnp.repeat(jnp.array([1.0, 0.0, 1.0]), net.channels)
    return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)


class _MlpBranch(nn.Module):
  """x + γ ∘ fc2(gelu(fc1(LayerNorm(x)))), four times as many channels between them."""

  architecture: Architecture

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    net = self.architecture
    dense = functools.partial(nn.Dense, dtype=x.dtype, kernel_init=_NORMAL)
    y = dense(_MLP_RATIO * net.channels, name="fc1")(_layer_norm(x, net, "norm"))
    y = nn.gelu(checkpoint_name(y, _HIDDEN), approximate=False)
    y = dense(net.channels, name="fc2")(y)
    return x + self.param("gamma", nn.initializers.ones, (net.channels,)).astype(x.dtype) * y
