"""Loads a trained network from a run, from a .scops file, or from those that come with this package."""

import pathlib

import jax
import numpy as np

from scops_jax.errors import UserError
from scops_jax.prediction.model_file import read_model
from scops_jax.prediction.segmenter import Segmenter, check_finite
from scops_jax.runs.checkpoints import restore_variables
from scops_jax.runs.workdir import load_config
from scops_jax.storage.paths import as_path
from scops_jax.train_step import create_networks

# Networks that are installed with this package; ready/README.md says how they were made.
_READY = pathlib.Path(__file__).parent / "ready"


def load_segmenter(source: str | pathlib.Path) -> Segmenter:
  """Loads the network for prediction, without its data, its reference or the state of its optimizer.

  Args:
    source: a run's directory, whose newest intact checkpoint is used; a file of `python -m scops_jax.export`;
      or "toy_faces", a network that comes with this package, unless a file or directory has that name.

  Raises:
    UserError: it is none of these, the file is damaged, or the run has no checkpoint yet, or one with numbers
      that are not finite.
  """
  path = as_path(source)
  if path.is_file():
    return read_model(path)
  ready = {file.stem: file for file in _READY.glob("*.scops")}
  if not path.exists() and str(source) in ready:
    return read_model(ready[str(source)])
  if not path.exists():
    raise UserError(
      f"workdir={source}: there is no such run or .scops file: give one of these, or {' or '.join(ready)}, "
      "a network that comes with scops_jax"
    )
  return _restore_run(path)


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
