"""Amazon's store in this process's memory: what s3:// paths are in tests."""

from datetime import UTC, datetime

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from scops_jax.storage import mirror, paths


class MemoryStore(MemoryFileSystem):
  """fsspec's memory under the names of s3fs: "bucket/key"."""

  protocol = ("s3",)
  store: dict = {}  # noqa: RUF012
  pseudo_dirs: list = ["", "/bucket"]  # noqa: RUF012

  def find(self, path, **kwargs):
    found = super().find(path, **kwargs)
    return {name: _dated(entry) for name, entry in found.items()} if kwargs.get("detail") else found

  def info(self, path, **kwargs):
    return _dated(super().info(path, **kwargs))

  @classmethod
  def _strip_protocol(cls, path):
    return "/" + str(path).removeprefix("s3://").strip("/")


def _dated(info):
  created = info.get("created") or 0.0
  return info | {
    "LastModified": datetime.fromtimestamp(created, UTC) if isinstance(created, float) else created
  }


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """The path of an empty bucket's folder."""
  fsspec.register_implementation("s3", MemoryStore, clobber=True)
  monkeypatch.setitem(paths._PACKAGES, "s3", "fsspec")
  monkeypatch.setattr(mirror, "CACHE", str(tmp_path / "cache"))
  MemoryStore.store.clear()
  return paths.as_path("s3://bucket/folder")
