"""Checkpoints: the training state and the input pipeline's position, written together by orbax.

A checkpoint is complete or absent: orbax writes to a temporary name and renames.
"""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

# The newest two are kept: the older one serves if the newer one's disk block is lost.
_KEPT = 2


class Checkpoints:
  """The `checkpoints/` folder of a run."""

  def __init__(self, workdir: str | pathlib.Path) -> None:
    options = ocp.CheckpointManagerOptions(
      preservation_policy=ocp.checkpoint_managers.LatestN(_KEPT), cleanup_tmp_directories=True
    )
    self._manager = ocp.CheckpointManager(pathlib.Path(workdir).absolute() / "checkpoints", options=options)

  def latest_step(self) -> int | None:
    """Returns the step of the newest complete checkpoint."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, *, position: dict[str, Any]) -> None:
    """Starts writing; the arrays are copied before this returns, so the state may be donated."""
    items = ocp.args.Composite(state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position))
    self._manager.save(step, args=items)

  def restore(self, step: int, template: Any) -> tuple[Any, dict[str, Any]]:
    """Returns the state, with the template's structure and placement, and the pipeline's position."""
    abstract = jax.tree.map(ocp.tree.to_shape_dtype_struct, template)
    items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), position=ocp.args.JsonRestore())
    restored = self._manager.restore(step, args=items)
    return restored["state"], restored["position"]

  def close(self) -> None:
    """Waits until everything is on disk."""
    self._manager.wait_until_finished()
    self._manager.close()
