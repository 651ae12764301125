"""What a run logs, also to Weights & Biases (config.wandb_project); imported only then."""

import hashlib
import importlib.util
import pathlib
from typing import Any

from ml_collections import ConfigDict

from scops_jax.errors import UserError
from scops_jax.storage.paths import absolute


class WandbLog:
  """A run of Weights & Biases, which is resumed with the work directory. wandb's variables, such as
  WANDB_MODE=offline, decide where it goes.
  """

  def __init__(self, workdir: pathlib.Path, config: ConfigDict) -> None:
    """Begins or resumes it.

    Raises:
      UserError: wandb is not installed, or can't begin.
    """
    if importlib.util.find_spec("wandb") is None:
      raise UserError(
        f"wandb_project={config.wandb_project} needs the Python package wandb: pip install 'scops_jax[wandb]'"
      )
    import wandb

    try:
      self._run = wandb.init(
        project=config.wandb_project,
        name=workdir.name,
        id=hashlib.sha256(str(absolute(workdir)).encode()).hexdigest()[:16],
        resume="allow",
        config=config.to_dict(),
      )
    except Exception as error:  # of wandb, of the network, of signing in
      detail = " ".join(str(error).split())
      raise UserError(
        f"wandb_project={config.wandb_project}: Weights & Biases can't begin: {detail}"
      ) from error

  def write(self, step: int, scalars: dict[str, Any]) -> None:
    """Logs scalars by name."""
    self._run.log(scalars, step=step)

  def close(self) -> None:
    """Ends it."""
    self._run.finish()
