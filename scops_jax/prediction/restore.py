"""The trained network of a run, restored without its data, its reference or the state of its optimizer."""

import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

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
    UserError: no run, or no checkpoint yet.
  """
  config = load_config(workdir)
  networks = create_networks(config)
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  variables, step = restore_variables(workdir, sharding=here)
  params = variables["params"]
  basis = np.asarray(networks.basis.apply({"params": params["basis"]}))
  return Segmenter(config, networks, params["segmenter"], variables["batch_stats"], basis, step)
