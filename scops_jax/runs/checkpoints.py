"""Checkpoints: the training state and the input pipeline's position, written together by orbax.

A checkpoint is complete or absent: orbax writes to a temporary name and renames.
"""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from scops_jax.errors import UserError

# The older one serves if the newer one is damaged.
_KEPT = 2


class Checkpoints:
  """Writes the `checkpoints/` folder of a run, and restores what training needs to go on."""

  def __init__(self, workdir: str | pathlib.Path) -> None:
    options = ocp.CheckpointManagerOptions(
      preservation_policy=ocp.checkpoint_managers.LatestN(_KEPT), cleanup_tmp_directories=True
    )
    self._manager = ocp.CheckpointManager(_folder(workdir), options=options)

  def save(self, step: int, state: Any, *, position: dict[str, Any]) -> None:
    """Starts writing; the arrays are copied before this returns, so the state may be donated."""
    items = ocp.args.Composite(state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position))
    self._manager.save(step, args=items)

  def restore(self, step: int, template: Any) -> tuple[Any, dict[str, Any]]:
    """Returns the state, with the template's structure and shardings, and the pipeline's position."""
    items = ocp.args.Composite(state=ocp.args.StandardRestore(template), position=ocp.args.JsonRestore())
    restored = self._manager.restore(step, args=items)
    return restored["state"], restored["position"]

  def close(self) -> None:
    """Waits until everything is on disk."""
    self._manager.wait_until_finished()
    self._manager.close()


def latest_step(workdir: str | pathlib.Path) -> int:
  """Returns the step of the newest complete checkpoint; 0 if there is none."""
  return max(ocp.utils.checkpoint_steps(_folder(workdir)), default=0)


def restore_variables(workdir: str | pathlib.Path, *, sharding: jax.sharding.Sharding) -> tuple[Any, int]:
  """Restores the newest checkpoint's variables, not the state of the optimizer; writes nothing.

  Args:
    workdir: the run's directory.
    sharding: of the arrays.

  Returns:
    The entries "params" and "batch_stats" of the training state, and the checkpoint's step.

  Raises:
    UserError: there is no checkpoint.
  """
  step = latest_step(workdir)
  if not step:
    raise UserError(f"--workdir={workdir} holds no checkpoint yet: train there first")
  path = _folder(workdir) / str(step) / "state"
  handler = ocp.PyTreeCheckpointHandler()
  saved = handler.metadata(path)
  template = jax.tree.map(
    lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding),
    {name: saved[name] for name in ("params", "batch_stats")},
  )
  arguments = ocp.args.PyTreeRestore(
    template, restore_args=ocp.checkpoint_utils.construct_restore_args(template), partial_restore=True
  )
  with ocp.Checkpointer(handler) as checkpointer:
    return checkpointer.restore(path, args=arguments), step


def _folder(workdir: str | pathlib.Path) -> pathlib.Path:
  return pathlib.Path(workdir).absolute() / "checkpoints"
