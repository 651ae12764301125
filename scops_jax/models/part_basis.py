"""The learned part basis W (section 3.3)."""

import flax.linen as nn
import jax


class PartBasis(nn.Module):
  """Non-negative basis: relu of a free matrix that starts as |N(0, 1)|."""

  num_parts: int
  num_channels: int

  @nn.compact
  def __call__(self) -> jax.Array:
    """Returns `[K, C]` ≥ 0, a row for each part."""

    def initialize(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
      return abs(jax.random.normal(key, shape))

    return nn.relu(self.param("raw", initialize, (self.num_parts, self.num_channels)))
