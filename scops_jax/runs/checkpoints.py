"""Checkpoints: the training state and the input pipeline's position, written together by orbax.

A checkpoint is complete or absent: orbax writes to a temporary name and renames; in a bucket, which has no
renaming, it writes a last file that says so. It holds a digest of each
array, taken from the state in memory, and whoever restores a checkpoint compares what comes back with it. A
damaged checkpoint is reported and the one before it is used.
"""

import functools
import gc
import hashlib
import json
import pathlib
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from scops_jax.errors import UserError
from scops_jax.runs import hosts
from scops_jax.runs.staged_checkpoints import StagedManager, complete_steps, is_staged, readable, remove
from scops_jax.storage.paths import absolute, as_path, is_remote

T = TypeVar("T")

# The older one serves if the newer one is damaged.
_KEPT = 2
_LONGEST = 200  # characters of another library's message


class Checkpoints:
  """Writes the `checkpoints/` folder of a run; only the process that trains the run may open it."""

  def __init__(self, workdir: str | pathlib.Path) -> None:
    self._folder = _folder(workdir)
    options = ocp.CheckpointManagerOptions(
      preservation_policy=ocp.checkpoint_managers.LatestN(_KEPT), cleanup_tmp_directories=True
    )
    self._manager: Any = (
      StagedManager(self._folder, kept=_KEPT)
      if is_staged(self._folder)
      else ocp.CheckpointManager(self._folder, options=options)
    )
    self._step = 0  # being written
    self._hook = sys.unraisablehook

  def save(self, step: int, state: Any, *, position: dict[str, Any]) -> None:
    """Starts writing; the arrays are copied before this returns, so the state may be donated.

    Raises:
      UserError: the state has a number that is not finite, or this checkpoint or the one before it can't be
        written.
    """
    try:
      digests = {**_digests(state), "position": _position_digest(step, position)}
    except ValueError as error:
      raise UserError(
        f"step {step} is not saved, because {error}: go on from the checkpoint before it, or lower "
        "optimizer.learning_rate in another workdir"
      ) from error
    if is_staged(self._folder):
      state = jax.device_get(state)  # as StagedManager wants it
    items = ocp.args.Composite(
      state=ocp.args.StandardSave(state),
      position=ocp.args.JsonSave(position),
      digests=ocp.args.JsonSave(digests),
    )
    self.wait()
    self._step = step
    # A write that fails leaves others behind, which end later: the error is one line all the same.
    sys.unraisablehook = functools.partial(_report_unless_orbax, self._hook)
    self._written(lambda: self._manager.save(step, args=items))

  def wait(self) -> None:
    """Waits until everything is on disk; raises as `save` does."""
    self._written(self._manager.wait_until_finished)
    sys.unraisablehook = self._hook

  def close(self) -> None:
    """Waits as `wait` does, and ends the threads that write."""
    try:
      self.wait()
    finally:
      self._written(self._manager.close)

  def _written(self, write: Callable[[], Any]) -> None:
    try:
      write()
    except (OSError, ValueError, RuntimeError) as error:  # the storage library's, too
      raise UserError(
        f"checkpoint {self._step} can't be written to {self._folder}: {_reason(error)}. Those before it are "
        "intact: make room, and the same command goes on"
      ) from error


def latest_step(workdir: str | pathlib.Path) -> int:
  """Returns the step of the newest checkpoint, which may be damaged; 0 if there is none."""
  return max(_steps(workdir), default=0)


def is_intact(workdir: str | pathlib.Path, step: int) -> bool:
  """Returns whether the variables of that step's checkpoint can be restored; the same on every host."""
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return _try(lambda path: _read_variables(path, here), _folder(workdir) / str(step))[1] is None


def restore_state(workdir: str | pathlib.Path, template: Any) -> tuple[Any, dict[str, Any], int]:
  """Restores what training needs to go on, from the newest checkpoint that is intact.

  Damaged ones are moved to the run's folder `damaged/`, so that their steps can be saved again.

  Args:
    workdir: the run's directory, which the caller owns.
    template: the state's structure, shapes, dtypes and shardings.

  Returns:
    The state, the input pipeline's position, and the checkpoint's step.

  Raises:
    UserError: no checkpoint is intact.
  """
  (state, position), step = _newest_intact(workdir, lambda path: _read(path, lambda _: template), aside=True)
  return state, position, step


def restore_variables(workdir: str | pathlib.Path, *, sharding: jax.sharding.Sharding) -> tuple[Any, int]:
  """Restores the variables of the newest checkpoint that is intact, not the optimizer's; writes nothing.

  Args:
    workdir: the run's directory.
    sharding: of the arrays.

  Returns:
    The entries "params" and "batch_stats" of the training state, and the checkpoint's step.

  Raises:
    UserError: there is no checkpoint, or none is intact.
  """
  return _newest_intact(workdir, lambda path: _read_variables(path, sharding))


def read_position(workdir: str | pathlib.Path, step: int) -> dict[str, Any]:
  """Returns the input pipeline's position in a checkpoint that has been restored."""
  return _read_json(_folder(workdir) / str(step), "position")


def _newest_intact(
  workdir: str | pathlib.Path, read: Callable[[pathlib.Path], T], *, aside: bool = False
) -> tuple[T, int]:
  """Returns what `read` finds in the newest checkpoint that it can read, and its step.

  With `aside` the damaged ones that are newer are moved away.
  """
  steps = sorted(_steps(workdir), reverse=True)
  if not steps:
    raise UserError(f"workdir={workdir} holds no checkpoint yet: train there first")
  damaged: dict[int, str] = {}
  for step in steps:
    found, damage = _try(read, _folder(workdir) / str(step))
    if damage is None:
      break
    damaged[step] = damage
  else:
    listed = ", ".join(f"{step} ({damage})" for step, damage in damaged.items())
    raise UserError(
      f"workdir={workdir} holds no intact checkpoint: {listed}. Restore its checkpoints/ from a copy, or "
      "give another workdir to train from the start"
    )
  if hosts.is_first():
    for number, damage in damaged.items():
      print(f"checkpoint {number} is damaged ({damage}): going on from {step}", file=sys.stderr)
      if aside:
        _move_aside(as_path(workdir), number)
  return found, step


def _try(read: Callable[[pathlib.Path], T], path: pathlib.Path) -> tuple[T, str | None]:
  """Returns what `read` finds, and what is damaged on one of the hosts; None: nothing."""
  found, damage = None, None
  with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
    hook = sys.unraisablehook
    sys.unraisablehook = functools.partial(_report_unless_orbax, hook)
    try:
      with readable(path) as here:
        found = read(here)
    except ValueError as error:
      damage = _reason(error)
    if damage is None:
      sys.unraisablehook = hook
    else:
      gc.collect()
  if hosts.any_host(damage is not None):
    damage = damage or "another host can't read it"
  return found, damage  # type: ignore[return-value]


def _report_unless_orbax(report: Callable[[Any], Any], unraisable: Any) -> None:
  """Leaves out what orbax leaves behind: coroutines, and reads and writes that end after a failed one."""
  code = getattr(unraisable.object, "cr_code", None)
  of_orbax = code is not None and "orbax" in code.co_filename
  if not of_orbax and str(unraisable.exc_value) != "Event loop is closed":
    report(unraisable)


def _read_variables(path: pathlib.Path, sharding: jax.sharding.Sharding) -> Any:
  def template(saved: Any) -> Any:
    return jax.tree.map(
      lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding),
      {name: saved[name] for name in ("params", "batch_stats")},
    )

  return _read(path, template)[0]


def _read(path: pathlib.Path, template: Callable[[Any], Any]) -> tuple[Any, dict[str, Any]]:
  """Returns a part of the state, and the position; `template` gives that part of the saved structure.

  Raises:
    ValueError: they can't be read, or are not what was saved.
  """
  digests, position, _ = (_read_json(path, name) for name in ("digests", "position", "state"))
  handler = ocp.PyTreeCheckpointHandler()
  try:
    part = template(handler.metadata(path / "state"))
    restoring = ocp.checkpoint_utils.construct_restore_args(part)
    arguments = ocp.args.PyTreeRestore(part, restore_args=restoring, partial_restore=True)
    state = handler.restore(path / "state", args=arguments)
  except MemoryError:
    raise
  except Exception as error:  # of orbax and of the storage library: of many types
    raise ValueError(f"state, {_reason(error)}") from error
  found = {**_digests(state), "position": _position_digest(int(path.name), position)}
  for name, digest in found.items():
    if digests.get(name) != digest:
      raise ValueError(f"{name}, not what was saved")
  return state, position


def _read_json(path: pathlib.Path, item: str) -> Any:
  name = f"{item}/_METADATA" if item == "state" else f"{item}/metadata"
  try:
    return json.loads((path / name).read_bytes())
  except FileNotFoundError as error:
    raise ValueError(f"{name}, missing") from error
  except (OSError, ValueError) as error:
    raise ValueError(f"{name}, {_reason(error)}") from error


def _digests(tree: Any) -> dict[str, str]:
  """Returns a digest of each array's dtype, shape and bytes, by its path in the tree.

  Raises:
    ValueError: an array has a number that is not finite.
  """
  digests = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    array = np.ascontiguousarray(jax.device_get(leaf))
    if jnp.issubdtype(array.dtype, jnp.inexact) and not np.isfinite(array).all():
      raise ValueError(f"{name} holds numbers that are not finite")
    digest = hashlib.blake2b(f"{array.dtype} {np.shape(leaf)}".encode(), digest_size=16)
    digest.update(array.reshape(-1).view(np.uint8).data)
    digests[name] = digest.hexdigest()
  return digests


def _position_digest(step: int, position: Mapping[str, Any]) -> str:
  """Covers the step too: a directory may have been renamed."""
  text = json.dumps([step, position], sort_keys=True)
  return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _reason(error: Exception) -> str:
  """Returns an error's message in one line, without the details that the storage library appends."""
  text = " ".join(str(error).split()).split(" See full ")[0] or type(error).__name__
  return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"


def _move_aside(workdir: pathlib.Path, step: int) -> None:
  source, target = _folder(workdir) / str(step), workdir / "damaged" / str(step)
  try:
    if is_remote(workdir):
      remove(source, target=target)
      return
    target.parent.mkdir(exist_ok=True)
    if target.exists():
      shutil.rmtree(target)
    source.rename(target)
  except OSError as error:
    reason = error.strerror or error
    raise UserError(f"the damaged checkpoint can't be moved to {target}: {reason}") from error


def _steps(workdir: str | pathlib.Path) -> list[int]:
  """Returns the steps of all checkpoints that are not being written, damaged or not."""
  return complete_steps(_folder(workdir))


def _folder(workdir: str | pathlib.Path) -> pathlib.Path:
  return absolute(as_path(workdir)) / "checkpoints"
