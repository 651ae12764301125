"""The files of a prepared data set: written under a lock, verified, and replaced when they are damaged."""

import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging
from ml_collections import ConfigDict

from scops_jax.data.builder import CollectionBuilder
from scops_jax.errors import UserError
from scops_jax.storage.files import file_digest, replacing
from scops_jax.storage.locks import lock_file

DIGESTS = "digests.txt"  # SHA-256 of its second line, which has size and SHA-256 of each file of a data set


@contextmanager
def quiet_tfds() -> Iterator[None]:
  """Suppresses tfds's messages, which speak of downloads although there are none."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  tfds.disable_progress_bar()
  try:
    with redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.set_verbosity(verbosity)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
  """Holds the lock of a data set's folder, which the system releases if the process dies.

  A folder on a read-only file system has no writer and needs none.
  """
  path = folder / "lock"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    lock = path.open("w")
  except OSError as error:
    if error.errno == errno.EROFS and folder.is_dir():
      yield
      return
    if not (error.errno in (errno.EACCES, errno.EPERM) and path.exists()):
      raise
    lock = path.open()  # another user's file, which can be locked all the same
  with lock:
    lock_file(lock, wait=True)
    yield


def find_damage(folder: Path) -> str | None:
  """The first file of a data set that is not as it was written, and why; None if all are."""
  record = folder / DIGESTS
  try:
    digest, _, text = record.read_text(encoding="utf-8").partition("\n")
    if digest != hashlib.sha256(text.encode()).hexdigest():
      return f"{record} is damaged"
    written = {folder / name: (size, digest) for name, (size, digest) in json.loads(text).items()}
    for path, (size, _) in written.items():
      if path.stat().st_size != size:
        return f"{path} is damaged: it has {path.stat().st_size} bytes instead of {size}"
    for path, (_, digest) in written.items():
      if file_digest(path) != digest:
        return f"{path} is damaged: its content has changed"
  except FileNotFoundError as error:
    return f"{error.filename} is missing"
  except UnicodeDecodeError:
    return f"{record} is damaged"
  return None


def write(builder_class: type[CollectionBuilder], config: ConfigDict, folder: Path) -> None:
  """Prepares a data set that is not there.

  Raises:
    OSError: the disk is full or broken.
    UserError: the collection can't be read.
  """
  for leftover in folder.parent.glob("incomplete.*"):  # of a killed preparation
    shutil.rmtree(leftover)
  options = tfds.download.DownloadConfig(try_download_gcs=False)
  with quiet_tfds():
    builder = builder_class(config, variant=folder.parent.name)
    try:
      builder.download_and_prepare(download_config=options, file_format="array_record")
    except RuntimeError as error:  # array_record has no other for a full or broken disk
      for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS):
        if os.strerror(code) in str(error):
          raise OSError(code, os.strerror(code), str(folder)) from error
      raise
  written = {path.name: (path.stat().st_size, file_digest(path)) for path in sorted(folder.iterdir())}
  _take_caches(_damaged_folder(folder), folder)
  # A data set without this record counts as incomplete.
  with replacing(folder / DIGESTS) as temporary:
    text = json.dumps(written)
    temporary.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def rebuild(builder_class: type[CollectionBuilder], config: ConfigDict, folder: Path, damage: str) -> None:
  """Prepares a damaged data set again; if that fails, it raises as `write` and leaves the damaged one."""
  damaged = _damaged_folder(folder)
  _take_caches(damaged, folder)  # the preparation that was to follow was killed
  folder.rename(damaged)
  try:
    write(builder_class, config, folder)
  except BaseException as error:
    if damaged.exists():
      shutil.rmtree(folder, ignore_errors=True)
      damaged.rename(folder)
    if isinstance(error, UserError):
      raise UserError(
        f"{damage}, and preparing the data set again from data.dir={config.data.dir} failed: {error}"
      ) from error
    raise


def _take_caches(damaged: Path, folder: Path) -> None:
  """Moves what was computed from a data set, whose names depend on its content, and removes the rest."""
  if not damaged.is_dir():
    return
  for cache in damaged.iterdir():
    if cache.is_dir() and not (folder / cache.name).exists():
      cache.rename(folder / cache.name)
  shutil.rmtree(damaged)


def _damaged_folder(folder: Path) -> Path:
  return folder.with_name(f"damaged.{folder.name}")
