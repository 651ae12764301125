"""A trained segmentation network, ready to predict."""

from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from scops_jax.train_step import Networks


class Segmenter(NamedTuple):
  """The trained network of a run."""

  config: ConfigDict
  networks: Networks
  params: Any  # of the segmenter
  batch_stats: Any
  part_basis: np.ndarray  # [K, C] ≥ 0
  step: int  # of the checkpoint it comes from
  part_names: tuple[str, ...] = ()  # of parts 1..K; empty: they have no names
  evaluation: dict[str, Any] | None = None  # evaluation.json's numbers at this step, of a .scops file


def check_finite(variables: Any) -> None:
  """Raises ValueError, naming the array, if one has a number that is not finite."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    if not np.isfinite(np.asarray(leaf)).all():
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      raise ValueError(f"{name} has NaN or infinite numbers")
