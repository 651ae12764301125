"""Files that are complete or absent."""

import contextlib
import fcntl
import functools
import hashlib
import os
import pathlib
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")


@contextmanager
def replacing(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a temporary path beside `path` to write to, and renames it to `path` unless there is an error.

  So a reader never sees a partly written file, not even after a power cut, and of several writers the last
  one wins. Makes the folder if it is missing. What killed writers left in the folder is deleted.

  Raises:
    OSError: the file can't be written; its `filename` is `path`.
  """
  path = pathlib.Path(path)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    _delete_leftovers(path.parent)
    with _locked_temporary(path) as temporary:
      try:
        yield temporary
        with temporary.open("rb") as written:
          os.fsync(written.fileno())
        temporary.replace(path)
      except BaseException:
        temporary.unlink(missing_ok=True)
        raise
  except OSError as error:
    # The disk is full, a name is too long, …: a user knows the file, but not the temporary one.
    if error.errno is None or (error.filename and not _TEMPORARY.fullmatch(_name(error.filename))):
      raise
    raise OSError(error.errno, error.strerror, str(path)) from error


def file_digest(path: str | pathlib.Path) -> str:
  """Returns the SHA-256 of a file's content in hexadecimal."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _name(path: str | bytes) -> str:
  return os.path.basename(os.fsdecode(path))


@contextmanager
def _locked_temporary(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Makes an empty file with a name of its own; the lock on it says that its writer lives."""
  while True:
    # A name may have 255 bytes, a character up to 4.
    temporary = path.with_name(f".{path.name[:50]}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    try:
      with contextlib.suppress(OSError):  # some file systems have no locks
        fcntl.flock(descriptor, fcntl.LOCK_EX)
      if not temporary.exists():
        continue  # another process took it for a leftover before it was locked
      yield temporary
      return
    finally:
      os.close(descriptor)


@functools.cache
def _delete_leftovers(folder: pathlib.Path) -> None:
  """Deletes the temporary files that no process has locked; once for each folder."""
  for temporary in folder.glob(".*.tmp"):
    if _TEMPORARY.fullmatch(temporary.name):
      with contextlib.suppress(OSError), temporary.open("r+b") as file:  # it may be locked or another user's
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        temporary.unlink()
