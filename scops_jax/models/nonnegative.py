"""Non-negative codes of signed features.

The part basis and DFF describe a position by a non-negative sum of non-negative vectors (arXiv 1905.01298,
section 3.3), and the background by 0. A transformer's features are signed. Clipping them would lose what is
below 0, so that a part whose features point the other way would look like background.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from scops_jax.geometry import HIGHEST, accumulation_dtype

FITTED = ("minimum", "pca")  # methods that are fitted to a collection


def encode(
  maps: Sequence[jax.Array],
  method: str,
  codes: Sequence[jax.Array | NDArray] | None = None,
  *,
  mean_square: float = 0.0,
) -> tuple[jax.Array, ...]:
  """Returns a non-negative code of each map.

  "split": [relu(v), relu(-v)]. Lengths are kept, and the inner products of features with the same signs.
  "minimum": relu(v - m), m each channel's minimum over the collection. The number of channels stays, but all
    features have a large part in common, which the basis must also describe.
  "pca": "split" of the coordinates Pᵀv along the principal directions P, with fewer channels. No mean is
    subtracted before: features near the mean would then be near 0, which stands for the background.

  Args:
    maps: `[B, h, w, C_i]`.
    method: one of these.
    codes: for a method of FITTED, what CodeFit returns for each map.
    mean_square: if > 0, each position's code is scaled to this mean square over its channels (a position of
      zeros stays), so that loss weights do not depend on the network.

  Returns:
    Maps ≥ 0 `[B, h, w, num_channels(...)]` of the dtypes of `maps`.

  Raises:
    ValueError: an unknown method, or one of FITTED without codes.
  """
  if method in FITTED and codes is None:
    raise ValueError(f"the method {method!r} must be fitted to a collection first")
  fitted: list[Any] = [None] * len(maps) if codes is None else list(codes)
  encoded = []
  for values, code in zip(maps, fitted, strict=True):
    x = values.astype(accumulation_dtype(values))
    if method == "minimum":
      x = jax.nn.relu(x - code)
    elif method == "pca":
      x = _split(jnp.matmul(x, jnp.asarray(code, x.dtype), precision=HIGHEST))
    elif method == "split":
      x = _split(x)
    else:
      raise ValueError(f"unknown method {method!r}; valid: split, minimum, pca")
    if mean_square > 0:
      current = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
      x = x * jnp.sqrt(mean_square / jnp.where(current > 0, current, 1.0))
    encoded.append(x.astype(values.dtype))
  return tuple(encoded)


def _split(x: jax.Array) -> jax.Array:
  return jnp.concatenate([jax.nn.relu(x), jax.nn.relu(-x)], axis=-1)


def num_channels(channels: int, method: str, num_components: int) -> int:
  """Returns the number of channels of the code of a map with `channels` channels."""
  if method == "pca":
    return 2 * min(num_components, channels)
  return 2 * channels if method == "split" else channels


class CodeFit:
  """Fits the code of one map to a collection, batch by batch."""

  def __init__(self, method: str, num_components: int) -> None:
    """`method` is one of FITTED; `num_components` is "pca"'s P."""
    self._method, self._num_components = method, num_components
    self._statistic: NDArray | None = None

  def add(self, features: NDArray) -> None:
    """Adds feature vectors `[..., C]`."""
    rows = np.asarray(features, np.float64).reshape(-1, features.shape[-1])
    if self._method == "minimum":
      found = rows.min(axis=0)
      self._statistic = found if self._statistic is None else np.minimum(self._statistic, found)
    else:
      found = rows.T @ rows
      self._statistic = found if self._statistic is None else self._statistic + found

  def code(self) -> NDArray[np.float32]:
    """Returns the channels' minima `[C]`, or the principal directions `[C, min(P, C)]`, strongest first.

    Raises:
      ValueError: nothing was added.
    """
    if self._statistic is None:
      raise ValueError("expected features to fit to")
    if self._method == "minimum":
      return self._statistic.astype(np.float32)
    _, vectors = np.linalg.eigh(self._statistic)
    directions = vectors[:, ::-1][:, : self._num_components]
    # The sign of an eigenvector is arbitrary: make its largest entry positive.
    largest = np.take_along_axis(directions, abs(directions).argmax(axis=0)[None], axis=0)
    return (directions * np.sign(largest)).astype(np.float32)
