"""Checkpoints in stores that orbax does not know: written to a local copy of their folder and uploaded whole.

Orbax writes arrays by TensorStore, to disks and to Google's buckets only.
"""

import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import orbax.checkpoint as ocp

from scops_jax.runs import hosts
from scops_jax.storage.mirror import local_path, push
from scops_jax.storage.paths import filesystem, is_remote

COMPLETE = "commit_success.txt"  # orbax's last file of a checkpoint


def is_staged(path: pathlib.Path) -> bool:
  """Returns whether orbax can't write to `path`."""
  return is_remote(path) and not str(path).startswith("gs://")


@contextmanager
def readable(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a checkpoint's path, or that of a local copy where orbax can't read it."""
  if not is_staged(path):
    yield path
    return
  with tempfile.TemporaryDirectory(prefix="scops_jax_") as folder:
    copy = pathlib.Path(folder, path.name)
    filesystem(path).get(f"{path}/", f"{copy}/", recursive=True)
    yield copy


def complete_steps(folder: pathlib.Path) -> list[int]:
  """Returns the steps of a folder's checkpoints that are not being written.

  On a disk those have another name; in a bucket they lack the last file.
  """
  if not folder.is_dir():
    return []
  found = [path for path in folder.iterdir() if path.name.isdecimal()]
  return sorted(int(path.name) for path in found if not is_remote(path) or (path / COMPLETE).exists())


class StagedManager:
  """Stands for orbax's CheckpointManager; only the first host writes, as the others' disks lack its copy."""

  def __init__(self, folder: pathlib.Path, *, kept: int) -> None:
    """Takes the folder in a bucket, and how many of the newest checkpoints stay."""
    self._folder, self._kept = folder, kept
    self._thread = ThreadPoolExecutor(1)
    self._upload: Future | None = None
    if not hosts.is_first():
      return
    copy = local_path(folder)
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    options = ocp.CheckpointManagerOptions(
      preservation_policy=ocp.checkpoint_managers.LatestN(1),
      multiprocessing_options=ocp.options.MultiprocessingOptions(active_processes={0}),
      create=False,
    )
    self._manager = ocp.CheckpointManager(copy, options=options)

  def save(self, step: int, args: Any) -> None:
    """Starts writing; the state's arrays must be NumPy's, as orbax would wait for the hosts of JAX's."""
    if hosts.is_first():
      self._manager.save(step, args=args)
      self._upload = self._thread.submit(self._publish, step)

  def wait_until_finished(self) -> None:
    """Waits until everything is in the bucket; raises if it can't be written."""
    if self._upload is not None:
      self._upload.result()

  def close(self) -> None:
    """Ends the threads that write."""
    self._thread.shutdown()
    if hosts.is_first():
      self._manager.close()

  def _publish(self, step: int) -> None:
    self._manager.wait_until_finished()
    push(self._folder / str(step), last=COMPLETE)
    for old in complete_steps(self._folder)[: -self._kept]:
      remove(self._folder / str(old))


def remove(path: pathlib.Path, *, target: pathlib.Path | None = None) -> None:
  """Deletes a checkpoint in a bucket, or moves it to `target`; halfway it counts as none."""
  (path / COMPLETE).unlink()
  if target is None:
    filesystem(path).rm(str(path), recursive=True)
  else:
    filesystem(path).mv(str(path), str(target), recursive=True)
