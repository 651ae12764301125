"""Paths of local files, and of objects in buckets: gs:// (Google Cloud Storage) and s3://.

A bucket's paths have pathlib's methods for reading and listing (etils.epath on fsspec). What is written goes
through `files.replacing`; a bucket has no folders to be made.
"""

import functools
import importlib.util
import logging
import os
import pathlib
import re
from typing import Any, cast

from scops_jax.errors import UserError

_PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}  # fsspec's file system for each kind of bucket
# pathlib makes one slash of two.
_BUCKET = re.compile(r"(gs|s3):/+([^/]+)(?:/+(.*))?")
_OTHER = re.compile(r"[a-z][a-z0-9+.-]+://")


def is_remote(path: str | os.PathLike[str]) -> bool:
  """Returns whether a path is that of an object in a bucket."""
  return _BUCKET.fullmatch(os.fspath(path)) is not None


def as_path(path: str | os.PathLike[str]) -> pathlib.Path:
  """Returns a path as pathlib.Path, or as etils.epath.Path if it lies in a bucket.

  The first path of a bucket asks the store whether it can be reached.

  Raises:
    UserError: the store's package is not installed, the bucket can't be reached, or the scheme is unknown.
  """
  text = os.fspath(path)
  found = _BUCKET.fullmatch(text)
  if found is None:
    if _OTHER.match(text):
      raise UserError(f"{text}: expected a local path, gs://BUCKET/… or s3://BUCKET/…")
    return pathlib.Path(path)
  scheme, bucket, rest = found.groups()
  _reach(scheme, bucket)
  from etils import epath  # not at the top: local paths shall not pay for it

  return cast(pathlib.Path, epath.Path(f"{scheme}://{bucket}/{rest or ''}"))


def absolute(path: pathlib.Path) -> pathlib.Path:
  """Returns the path from the root; a bucket's as it is."""
  return path if is_remote(path) else path.absolute()


def filesystem(path: str | os.PathLike[str]) -> Any:
  """Returns fsspec's file system of a bucket's path."""
  import fsspec

  return fsspec.core.url_to_fs(os.fspath(path))[0]


@functools.cache
def _reach(scheme: str, bucket: str) -> None:
  """Prepares fsspec and etils for a kind of bucket, and asks whether this one is there; raises as as_path."""
  package = _PACKAGES[scheme]
  if importlib.util.find_spec(package) is None:
    raise UserError(f"{scheme}://{bucket} needs the Python package {package}: pip install 'scops_jax[cloud]'")
  # TensorFlow, where it is installed, can open neither kind without further packages.
  os.environ.setdefault("EPATH_USE_TF", "false")
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs a traceback of each error that it raises
  import fsspec

  # Kept listings would hide what other hosts write.
  for protocol in ("gcs", "gs", "s3"):
    fsspec.config.conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)
  try:
    filesystem(f"{scheme}://{bucket}").ls(f"{scheme}://{bucket}", detail=False)
  except Exception as error:  # of the store's library, of authentication and of the network: of many types
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    raise UserError(
      f"{scheme}://{bucket} can't be reached ({reason}): is the bucket's name right, and may you read it?"
    ) from error
