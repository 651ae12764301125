"""The trained network of a run, restored without its data, its reference or the state of its optimizer."""

import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from scops_jax.errors import UserError
from scops_jax.runs.checkpoints import restore_variables
from scops_jax.runs.workdir import load_config
from scops_jax.train_step import Networks, create_networks


class Segmenter(NamedTuple):
  """The trained network of a run."""

  config: ConfigDict
  networks: Networks
  params: Any  # of the segmenter
  batch_stats: Any
  part_basis: np.ndarray  # [K, C] ≥ 0
  step: int  # of the checkpoint it comes from


def load_segmenter(workdir: str | pathlib.Path) -> Segmenter:
  """Restores the network of the newest checkpoint in `workdir`.

  Raises:
    UserError: no run, no checkpoint yet, or one with numbers that are not finite.
  """
  config = load_config(workdir)
  networks = create_networks(config)
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  variables, step = restore_variables(workdir, sharding=here)
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    if not np.isfinite(np.asarray(leaf)).all():
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      raise UserError(
        f"checkpoint {step} of --workdir={workdir} can't be used: {name} has NaN or infinite numbers; its "
        "training diverged, or the file is damaged"
      )
  params = variables["params"]
  basis = np.asarray(networks.basis.apply({"params": params["basis"]}))
  return Segmenter(config, networks, params["segmenter"], variables["batch_stats"], basis, step)
