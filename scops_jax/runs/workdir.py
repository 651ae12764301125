"""A run's work directory and the resolved config in it, config.json.

The hosts of a run share it; only the first writes.
"""

import json
import pathlib

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from scops_jax.config import config_from_json
from scops_jax.errors import UserError
from scops_jax.runs import hosts
from scops_jax.storage.files import replacing


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes all of it or nothing."""
  with replacing(path) as temporary:
    temporary.write_text(text, encoding="utf-8")


def load_config(workdir: str | pathlib.Path) -> ConfigDict:
  """Returns the resolved, locked config of the run in `workdir`; a key that it lacks has the default.

  Raises:
    UserError: there is no run, or this version does not know its config.
  """
  path = pathlib.Path(workdir) / "config.json"
  try:
    saved = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(f"--workdir={workdir} holds no run that can be read ({path}: {error})") from error
  try:
    return config_from_json(saved)
  except (AttributeError, KeyError, TypeError) as error:
    detail = " ".join(str(error).split())
    raise UserError(f"{path} is the config of another version of scops_jax: {detail}") from error


def open_workdir(workdir: str | pathlib.Path, config: ConfigDict, *, create: bool = True) -> pathlib.Path:
  """Checks that the directory holds a run of this config; a new one is made by the first host.

  Raises:
    UserError: the directory holds a run of another config (the message names the keys that differ), can't be
      written, or holds no run although `create` is false or the first host has made it.
  """
  path = pathlib.Path(workdir)
  if (path / "config.json").exists():
    _check_same(load_config(path), config, path)
    return path
  if not create:
    raise UserError(f"--workdir={path} holds no run (no config.json): train there first")
  if not hosts.is_first():
    raise UserError(
      f"--workdir={path} is not what the first host sees: give a directory that all hosts share"
    )
  try:
    path.mkdir(parents=True, exist_ok=True)
    write_text(path / "config.json", json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n")
  except OSError as error:
    raise UserError(
      f"--workdir={path} can't be written ({error.strerror}): give a writable directory"
    ) from error
  return path


def _check_same(before: ConfigDict, now: ConfigDict, path: pathlib.Path) -> None:
  old, new = (flatten_dict(config.to_dict(), sep=".") for config in (before, now))
  keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
  if keys:
    shown = ", ".join(f"{key} (was {old.get(key)!r}, now {new.get(key)!r})" for key in keys[:5])
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    raise UserError(
      f"--workdir={path} holds a run of another config: {shown}{more}. "
      "Give another --workdir, or the same config to resume"
    )
