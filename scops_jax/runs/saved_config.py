"""The config that a run saved, config.json in its work directory.

Also a config file: --config=scops_jax/runs/saved_config.py:WORKDIR is that run's config, which `main` takes
when it is given none. So this imports nothing that takes time to load.
"""

import json
import pathlib

from ml_collections import ConfigDict

from scops_jax.config import config_from_json
from scops_jax.errors import UserError
from scops_jax.storage.paths import as_path

CONFIG = "config.json"
CURE = "restore it from a copy, or give another workdir"


def get_config(workdir: str) -> ConfigDict:
  """Returns `load_config(workdir)`; for the command line."""
  return load_config(workdir)


def load_config(workdir: str | pathlib.Path) -> ConfigDict:
  """Returns the resolved, locked config of the run in `workdir`; a key that it lacks has the default.

  Raises:
    UserError: there is no run, its config is damaged, or this version does not know it.
  """
  path = as_path(workdir) / CONFIG
  try:
    saved = json.loads(path.read_bytes())
  except FileNotFoundError as error:
    raise UserError(no_run(path.parent)) from error
  except (OSError, ValueError) as error:
    raise UserError(f"{path} can't be read ({error}): {CURE}") from error
  try:
    return config_from_json(saved)
  except ValueError as error:
    raise UserError(f"{path} is damaged: {error}: {CURE}") from error
  except (AttributeError, KeyError, TypeError) as error:
    detail = " ".join(str(error).split())
    raise UserError(
      f"{path} is damaged, or the config of another version of scops_jax: {detail}: {CURE}"
    ) from error


def has_results(path: pathlib.Path) -> bool:
  """Returns whether there is more in a work directory than its config."""
  return (path / "checkpoints").exists() or (path / "evaluation.json").exists()


def no_run(path: pathlib.Path) -> str:
  """Returns what is wrong with a work directory without a config."""
  if has_results(path):
    return f"workdir={path} holds results, but no {CONFIG} that says of which settings: {CURE}"
  return f"workdir={path} holds no run (no {CONFIG}): train there first"
