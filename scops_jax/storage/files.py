"""Files that are complete or absent."""

import pathlib
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def replacing(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a temporary path beside `path` to write to, and renames it to `path` unless there is an error.

  So a reader never sees a partly written file. Makes the folder if it is missing.
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
