"""Local copies of what lies in a bucket, for libraries that read local files only: tfds, array_record.

`pull` copies what is newer in the bucket to the copy, `push` what is newer in the copy to the bucket; local
paths they leave as they are. The copies stay below CACHE, so that a host copies a data set once.
"""

import os
import pathlib
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

from scops_jax.storage.files import download, upload
from scops_jax.storage.paths import as_path, filesystem, is_remote

CACHE = "~/.cache/scops_jax/buckets"
_THREADS = 16  # they wait for the network
_SLACK = 1.0  # seconds; stores and disks round times


def local_path(path: str | pathlib.Path) -> pathlib.Path:
  """Returns where the local copy of a bucket's file or folder is or would be; a local path itself."""
  named = as_path(path)
  if not is_remote(named):
    return named
  scheme, _, rest = str(named).partition("://")
  return pathlib.Path(CACHE).expanduser() / scheme / rest


def modified(path: pathlib.Path) -> float:
  """Returns when a file was written, seconds since 1970."""
  return _time(filesystem(path).info(str(path))) if is_remote(path) else os.path.getmtime(path)


def pull(path: str | pathlib.Path, *, flat: bool = False) -> pathlib.Path:
  """Copies a file, or the files of a folder, that the copy lacks or has in an older version.

  Args:
    path: of the file or folder; it need not exist.
    flat: leave out the folder's subfolders.

  Returns:
    The path of the copy.

  Raises:
    OSError: they can't be copied.
  """
  named, local = as_path(path), local_path(path)
  if not is_remote(named):
    return local

  def copy(entry: tuple[str, dict[str, Any]]) -> None:
    (name, info), target = entry, local / entry[0]
    time = _time(info)
    if not target.exists() or target.stat().st_size != info["size"] or time > modified(target) + _SLACK:
      download(named / name, target)
      os.utime(target, (time, time))

  with ThreadPoolExecutor(_THREADS) as threads:
    list(threads.map(copy, _entries(named, flat=flat).items()))
  return local


def push(path: str | pathlib.Path, *, flat: bool = False, last: str = "") -> None:
  """Copies the copy's file, or the files of its folder, that the bucket lacks or has in an older version.

  Args:
    path: of the bucket's file or folder.
    flat: leave out the folder's subfolders.
    last: the name of a file of the folder that is copied after all others: it says that they are there.

  Raises:
    OSError: they can't be copied.
  """
  named, local = as_path(path), local_path(path)
  if not is_remote(named):
    return
  there = _entries(named, flat=flat)

  def copy(file: pathlib.Path) -> None:
    name = file.relative_to(local).as_posix()
    info = there.get(name)
    if info is None or info["size"] != file.stat().st_size or modified(file) > _time(info) + _SLACK:
      upload(file, named / name)
      time = modified(named / name)
      os.utime(file, (time, time))  # by the store's clock; otherwise `pull` would find it newer there

  found = [local] if local.is_file() else local.glob("*" if flat else "**/*")
  files = [file for file in found if file.is_file() and file.name != last]
  with ThreadPoolExecutor(_THREADS) as threads:
    list(threads.map(copy, files))
  if last:
    copy(local / last)


def _entries(path: pathlib.Path, *, flat: bool) -> dict[str, dict[str, Any]]:
  """Returns the store's entries of files by their names below `path`; "." is `path` itself."""
  store = filesystem(path)
  root = store._strip_protocol(str(path))
  try:
    found = store.find(str(path), detail=True)
  except FileNotFoundError:
    return {}
  entries = {os.path.relpath(name, root): info for name, info in found.items()}
  return {name: info for name, info in entries.items() if not (flat and "/" in name)}


def _time(info: dict[str, Any]) -> float:
  """Returns when an object was written: text of Google's store, a datetime of Amazon's."""
  found = info.get("updated") or info["LastModified"]
  return (datetime.fromisoformat(found) if isinstance(found, str) else found).timestamp()
