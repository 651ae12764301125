"""Loads a trained network from a run, from a .scops file, or from those that come with this package."""

import pathlib

import jax
import numpy as np

from scops_jax.errors import UserError
from scops_jax.prediction.model_file import read_model
from scops_jax.prediction.segmenter import Segmenter, check_finite
from scops_jax.prediction.sources import find_network
from scops_jax.runs.checkpoints import restore_variables
from scops_jax.runs.workdir import load_config
from scops_jax.train_step import create_networks


def load_segmenter(source: str | pathlib.Path) -> Segmenter:
  """Loads the network for prediction, without its data, its reference or the state of its optimizer.

  Args:
    source: a run's directory, whose newest intact checkpoint is used; a file of `python -m scops_jax.export`;
      or "toy_faces", a network that comes with this package, unless a file or directory has that name.

  Raises:
    UserError: it is none of these, the file is damaged, or the run has no checkpoint yet, or one with numbers
      that are not finite.
  """
  path = find_network(source)
  return read_model(path) if path.is_file() else _restore_run(path)


def _restore_run(workdir: pathlib.Path) -> Segmenter:
  config = load_config(workdir)
  networks = create_networks(config)
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  variables, step = restore_variables(workdir, sharding=here)
  try:
    check_finite(variables)
  except ValueError as error:
    raise UserError(
      f"checkpoint {step} of workdir={workdir} can't be used: {error}; its training diverged, or the file is "
      "damaged"
    ) from error
  params = variables["params"]
  basis = np.asarray(networks.basis.apply({"params": params["basis"]}))
  return Segmenter(config, networks, params["segmenter"], variables["batch_stats"], basis, step)
