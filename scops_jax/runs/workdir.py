"""A run's work directory, its lock, and the resolved config in it, config.json.

The hosts of a run share it; only the first writes.
"""

import contextlib
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ml_collections import ConfigDict

from scops_jax.config import config_to_json, flat_values
from scops_jax.errors import UserError
from scops_jax.runs import hosts
from scops_jax.runs.saved_config import CONFIG, has_results, load_config, no_run
from scops_jax.storage.files import replacing
from scops_jax.storage.locks import InUseError, exclusive
from scops_jax.storage.paths import as_path, is_remote

_LOCK = "lock"
# Keys that decide neither what is trained nor on what: those of evaluation (with crf.*), of logging, of input
# threads, and folders, which may be moved.
_CHANGEABLE = (
  "log_every",
  "wandb_project",
  "eval_every",
  "checkpoint_every",
  "eval_batch_size",
  "predict_mirror",
  "predict_scales",
  "on_nonfinite_step",
  "compilation_cache_dir",
  "data.dir",
  "data.cache_dir",
  "data.num_threads",
  "data.landmark_normalizer",
)


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes all of it or nothing."""
  with replacing(path) as temporary:
    temporary.write_text(text, encoding="utf-8")


@contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
  """Turns an error of writing `path` or a file in it, such as a full disk, into a UserError."""
  try:
    yield
  except OSError as error:
    raise UserError(
      f"{error.filename or path} can't be written ({error.strerror or error}): make room or repair the disk; "
      "the same command then goes on from the last checkpoint"
    ) from error


@contextmanager
def owned(workdir: str | pathlib.Path) -> Iterator[None]:
  """Makes the directory and keeps other trainers out of it while the context is open, on the first host.

  The lock is the file `lock` (storage.locks). A directory that is left without a config.json is removed.

  Raises:
    UserError: another process trains there, or the directory can't be written.
  """
  path = as_path(workdir)
  if not hosts.is_first():
    yield
    return
  with contextlib.ExitStack() as stack:
    try:
      if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)
      stack.enter_context(exclusive(path / _LOCK))
    except InUseError as error:
      raise UserError(
        f"workdir={path} is being trained by {error}: wait for it, end it, or give another workdir"
      ) from error
    except OSError as error:
      raise UserError(
        f"workdir={path} can't be written ({error.filename or path}: {error.strerror or error}): give a "
        "writable directory"
      ) from error
    try:
      yield
    finally:
      if not is_remote(path) and not (path / CONFIG).exists():
        _remove_unused(path)


def _remove_unused(path: pathlib.Path) -> None:
  """Removes what `owned` has made, unless there is more."""
  with suppress(OSError):
    if [entry.name for entry in path.iterdir()] == [_LOCK]:
      (path / _LOCK).unlink()
      path.rmdir()


def open_workdir(workdir: str | pathlib.Path, config: ConfigDict, *, train: bool = True) -> pathlib.Path:
  """Checks that the directory holds a run of this config; with `train` the first host makes or updates it.

  Keys that do not decide what is trained may differ from those that the run began with. So may a larger
  num_steps; the schedule is then that of the new number.

  Raises:
    UserError: the directory holds a run of another config (the message names the keys that differ), or
      results without their config, can't be written, or holds no run although `train` is false or the first
      host has made it.
  """
  path = as_path(workdir)
  if (path / CONFIG).exists():
    changed = _accepted_changes(load_config(path), config, path)
    if not changed:
      return path
    if hosts.is_first():
      note = _schedule_note(config) if "num_steps" in changed else ""
      print(f"workdir={path} is used with other settings: {_listed(changed)}{note}")
  elif not train or has_results(path):
    raise UserError(no_run(path))
  elif not hosts.is_first():
    raise UserError(f"workdir={path} is not what the first host sees: give a directory that all hosts share")
  if train and hosts.is_first():
    with writing(path / CONFIG):
      write_text(path / CONFIG, config_to_json(config))
  return path


def _accepted_changes(before: ConfigDict, now: ConfigDict, path: pathlib.Path) -> dict[str, tuple[Any, Any]]:
  """Returns the old and the new value of the keys that differ; raises unless all of them may."""
  old, new = flat_values(before), flat_values(now)
  changed = {key: (old[key], new[key]) for key in sorted(new) if old[key] != new[key]}
  refused = {key: values for key, values in changed.items() if not _may_change(key, *values)}
  if refused:
    raise UserError(
      f"workdir={path} holds a run of another config: {_listed(refused)}. "
      "Give another workdir, or the same config to resume"
    )
  return changed


def _may_change(key: str, before: Any, now: Any) -> bool:
  return key in _CHANGEABLE or key.startswith("crf.") or (key == "num_steps" and now > before)


def _listed(changed: dict[str, tuple[Any, Any]]) -> str:
  shown = [f"{key} (was {before!r}, now {now!r})" for key, (before, now) in changed.items()]
  return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


def _schedule_note(config: ConfigDict) -> str:
  schedule, steps = config.optimizer.schedule, config.num_steps
  return f"; from here on the learning rate is that of a {schedule} schedule over {steps} steps"
