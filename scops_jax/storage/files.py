"""Files that are whole or absent."""

import pathlib
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def replacing(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a temporary path beside `path` to write to, and renames it to `path` if no error comes.

  A reader sees the old file or the new one, never half of it. The folder is made if it is missing.
  """
  path = pathlib.Path(path)
  if not path.parent.is_dir():
    path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.tmp")
  try:
    yield temporary
    temporary.replace(path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise
