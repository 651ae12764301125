"""Files that are complete or absent."""

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import pathlib
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from scops_jax.storage.paths import as_path, filesystem, is_remote

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")


@contextmanager
def replacing(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a temporary path beside `path` to write to, and renames it to `path` unless there is an error.

  So a reader never sees a partly written file, not even after a power cut, and of several writers the last
  one wins. Makes the folder if it is missing. What killed writers left in the folder is deleted. If `path`
  lies in a bucket, the temporary file is local and is uploaded whole; the store shows it when all is there.

  Raises:
    OSError: the file can't be written; its `filename` is `path`.
  """
  path = as_path(path)
  if is_remote(path):
    with tempfile.TemporaryDirectory(prefix="scops_jax_") as folder:
      local = pathlib.Path(folder, path.name)
      yield local
      upload(local, path)
    return
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


def upload(local: pathlib.Path, path: pathlib.Path) -> None:
  """Copies a local file to a bucket, where it appears whole.

  Raises:
    OSError: the store does not take it; its `filename` is `path`.
  """
  with _store_errors(path):
    filesystem(path).put_file(str(local), str(path))


def download(path: pathlib.Path, local: pathlib.Path) -> None:
  """Copies an object of a bucket to a local file, which appears whole; raises OSError."""
  with replacing(local) as temporary, _store_errors(path):
    filesystem(path).get_file(str(path), str(temporary))


@contextmanager
def local_copy(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields `path`, or if it lies in a bucket a local copy, which is then deleted.

  For libraries that open files by themselves, and for files that are read in many small pieces.
  """
  path = as_path(path)
  if not is_remote(path):
    yield path
    return
  with tempfile.TemporaryDirectory(prefix="scops_jax_") as folder:
    local = pathlib.Path(folder, path.name)
    download(path, local)
    yield local


@contextmanager
def _store_errors(path: pathlib.Path) -> Iterator[None]:
  """Turns the errors of a store's library, which are of many types, into an OSError of `path`."""
  try:
    yield
  except FileNotFoundError as error:
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
  except Exception as error:
    raise OSError(errno.EIO, " ".join(str(error).split()) or type(error).__name__, str(path)) from error


def file_size(path: str | pathlib.Path) -> int:
  """Returns a file's size, bytes."""
  path = as_path(path)
  return filesystem(path).size(str(path)) if is_remote(path) else path.stat().st_size


def file_digest(path: str | pathlib.Path) -> str:
  """Returns the SHA-256 of a file's content in hexadecimal."""
  with as_path(path).open("rb") as file:
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
