"""Where a network for prediction comes from; loads nothing, so a wrong path shows at once."""

import pathlib

from scops_jax.errors import UserError
from scops_jax.runs.saved_config import load_config
from scops_jax.storage.paths import as_path

# Networks that are installed with this package; ready/README.md says how they were made.
_READY = pathlib.Path(__file__).parent / "ready"


def find_network(source: str | pathlib.Path) -> pathlib.Path:
  """Returns the run's directory or the .scops file that `source` means.

  Args:
    source: a run's directory; a .scops file; or "toy_faces", a network that comes with this package, unless a
      file or directory has that name.

  Raises:
    UserError: it is none of these, or the directory holds no run.
  """
  path = as_path(source)
  if path.is_dir():
    load_config(path)
  if path.exists():
    return path
  ready = {file.stem: file for file in _READY.glob("*.scops")}
  if str(source) not in ready:
    raise UserError(
      f"workdir={source}: there is no such run or .scops file: give one of these, or {' or '.join(ready)}, "
      "a network that comes with scops_jax"
    )
  return ready[str(source)]
