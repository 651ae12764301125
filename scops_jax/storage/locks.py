"""Locks that keep other processes out of a folder until the owner ends or dies, on disk and in buckets.

On disk a lock is flock's: the system releases it when its process ends in any way. A bucket knows nothing of
processes. There a lock is an object that is created only if it is absent (a condition that Google's and
Amazon's stores check themselves). Its owner writes it again every BEAT seconds; whoever finds it watches it
for EXPIRY seconds, and takes it if nobody has written it meanwhile. So clocks need not agree.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from scops_jax.storage.paths import filesystem, is_remote

BEAT, EXPIRY = 20.0, 70.0  # seconds
_POLL = 2.0  # seconds between two looks at another's lock


class InUseError(Exception):
  """Another process has the lock; the message says which."""


@contextmanager
def exclusive(path: pathlib.Path) -> Iterator[None]:
  """Holds the lock `path` while the context is open.

  A file system without locks keeps nobody out, and neither does a store that ignores conditions from one who
  asks at the same moment. In a bucket the lock is deleted at the end; on disk the file stays, empty of locks.

  Raises:
    InUseError: another process has it.
    OSError: it can't be written.
  """
  if is_remote(path):
    try:
      lock = _ObjectLock(path)
    except (InUseError, OSError):
      raise
    except Exception as error:  # of the store's library
      raise OSError(errno.EIO, str(error), str(path)) from error
    with contextlib.closing(lock):
      yield
    return
  with path.open("a+", encoding="utf-8") as file:
    try:
      lock_file(file)
    except BlockingIOError as error:
      file.seek(0)
      raise InUseError(file.read().strip() or "another process") from error
    file.truncate(0)
    file.write(f"{_owner()}\n")
    file.flush()
    yield


def lock_file(file: IO[Any], *, wait: bool = False) -> None:
  """Locks an open file on disk until it is closed; does nothing where the file system has no locks.

  Args:
    file: open.
    wait: until another process gives the lock back.

  Raises:
    BlockingIOError: another process has the lock, and `wait` is not set.
    OSError: the system refuses it.
  """
  try:
    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
  except OSError as error:
    if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
      raise


def _owner() -> str:
  return f"process {os.getpid()} on {socket.gethostname()}"


def _machine() -> str:
  """Returns what identifies this machine until it is started again; "" where the system does not tell."""
  try:
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespace = os.stat("/proc/self/ns/pid").st_ino  # containers number their processes on their own
    return f"{socket.gethostname()} {boot} {namespace}"
  except OSError:
    return ""


class _ObjectLock:
  """A lock in a bucket."""

  def __init__(self, path: pathlib.Path, *, lost: Callable[[str], None] | None = None) -> None:
    """Takes the lock, or raises as `exclusive`; `lost` is called if another process has taken it."""
    self._path, self._store = str(path), filesystem(path)
    self._lost = lost or self._end
    self._token, self._beats = secrets.token_hex(8), 0
    self._closed = threading.Event()
    self._take()
    self._thread = threading.Thread(target=self._keep, daemon=True)
    self._thread.start()

  def close(self) -> None:
    """Gives the lock back."""
    self._closed.set()
    self._thread.join()
    with contextlib.suppress(Exception):  # a lock that can't be deleted expires
      if self._is_mine():
        self._store.rm_file(self._path)

  def _take(self) -> None:
    content = self._read()
    if content is not None:
      self._wait_for_death(content)
      with contextlib.suppress(FileNotFoundError):
        self._store.rm_file(self._path)
    try:
      self._store.pipe_file(self._path, self._content(), mode="create")
    except FileExistsError as error:
      raise InUseError(_field(self._read(), "owner") or "another process") from error
    if content is not None:
      # Another process may have seen the same dead lock, and delete this one for it.
      time.sleep(_POLL)
      if not self._is_mine():
        raise InUseError(_field(self._read(), "owner") or "another process")

  def _wait_for_death(self, content: bytes) -> None:
    """Raises InUseError if the lock's owner lives; returns when it is known to be dead."""
    owner = _field(content, "owner") or "another process"
    if _machine() and _field(content, "machine") == _machine():
      if _is_alive(_field(content, "process"), _field(content, "started")):
        raise InUseError(owner)
      return
    print(
      f"{self._path} is that of {owner}: waiting up to {EXPIRY:.0f} s for a sign of life", file=sys.stderr
    )
    end = time.monotonic() + EXPIRY
    while time.monotonic() < end:
      time.sleep(_POLL)
      now = self._read()
      if now is None:
        return
      if now != content:
        raise InUseError(_field(now, "owner") or owner)

  def _keep(self) -> None:
    while not self._closed.wait(BEAT):
      # While the network is down this process can't write to the run either.
      with contextlib.suppress(Exception):
        if not self._is_mine():
          self._lost(self._path)
          return
        self._beats += 1
        self._store.pipe_file(self._path, self._content())

  def _content(self) -> bytes:
    process = str(os.getpid())
    values = {"owner": _owner(), "machine": _machine(), "process": process, "started": _start_time(process)}
    return json.dumps({**values, "token": self._token, "beats": self._beats}).encode()

  def _read(self) -> bytes | None:
    try:
      return self._store.cat_file(self._path)
    except FileNotFoundError:
      return None

  def _is_mine(self) -> bool:
    return _field(self._read(), "token") == self._token

  @staticmethod
  def _end(path: str) -> None:
    """Ends this process at once: two must not write to one run."""
    print(
      f"error: {path} was taken by another process while this one stood still", file=sys.stderr, flush=True
    )
    os._exit(1)


def _field(content: bytes | None, name: str) -> str:
  """Returns an entry of a lock's content; "" if it has none."""
  try:
    return str(json.loads(content or b"{}").get(name, ""))
  except (ValueError, AttributeError):
    return ""


def _is_alive(process: str, started: str) -> bool:
  """Returns whether the process that started then runs; its number alone may be another's by now.

  Locks of earlier versions do not say when ("").
  """
  try:
    os.kill(int(process), 0)
  except (ValueError, ProcessLookupError):
    return False
  except PermissionError:
    pass
  return started in ("", _start_time(process))


def _start_time(process: str) -> str:
  """Returns when a process started, in ticks since the machine did; "" where the system does not tell."""
  try:
    text = pathlib.Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
  except OSError:
    return ""
  return text.rpartition(")")[2].split()[19]  # field 22; the second, in brackets, may hold spaces
