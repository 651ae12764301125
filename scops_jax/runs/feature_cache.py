"""The reference's features of the training images, computed once and kept (data.cache_reference_features).

A training step needs them of the untransformed images only, so they are the same in every epoch. One file
beside the prepared data set has a record for each image: the features as bfloat16 and the resized pixels,
which then need no decoding. The file's name is a digest of everything the features depend on.
"""

import functools
import hashlib
import itertools
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from ml_collections import ConfigDict
from numpy.typing import NDArray

from scops_jax.data.collection import Collection
from scops_jax.data.pipeline import Kept, evaluation_batches
from scops_jax.data.workers import num_workers
from scops_jax.errors import UserError
from scops_jax.progress import Bar
from scops_jax.storage.files import replacing
from scops_jax.storage.mirror import local_path, pull, push

_FORMAT = 2  # of the records; part of the digest
_DTYPE = np.dtype(jnp.bfloat16)
# Records are read in any order, so each is compressed alone. Many features are 0: fast compression halves the
# file and takes less time than reading the other half.
_OPTIONS = "group_size:1,zstd:1"
# What the features depend on besides the images and the weights.
_KEYS = (
  "image_size",
  "reference",
  "reference_layers",
  "reference_image_size",
  "reference_mirror",
  "reference_l2_normalize",
)

Features = Callable[[NDArray[np.uint8]], Sequence[jax.Array]]  # images [B, S, S, 3] → maps [B, h, w, C]
Shapes = Sequence[tuple[int, ...]]  # (h, w, C) of each map


class CachedFeatures(Sequence):
  """`features[i]`: the kept pixels and bfloat16 maps of training image i."""

  def __init__(self, path: Path, shapes: Shapes, image_size: int) -> None:
    """Opens what `cache_features` wrote."""
    self._path = path
    self._records = ArrayRecordDataSource(str(path))
    self._shapes = tuple(shapes)
    self._ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))
    self._image_shape = (image_size, image_size, 3)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Kept:  # type: ignore[override]
    try:
      record = self._records[int(index)]
    except (IndexError, RuntimeError, ValueError) as error:
      raise UserError(
        f"{self._path} was damaged after the start ({error}): the same command computes it again and goes on"
      ) from error
    values = np.frombuffer(record, _DTYPE, count=self._ends[-1])
    pieces = np.split(values, self._ends[:-1])
    return Kept(
      np.frombuffer(record, np.uint8, offset=values.nbytes).reshape(self._image_shape),
      tuple(piece.reshape(shape) for piece, shape in zip(pieces, self._shapes, strict=True)),
    )


def cache_features(
  collection: Collection,
  features: jax.stages.Wrapped,
  config: ConfigDict,
  *,
  variables: Any,
  settings: Sequence[Any] = (),
) -> CachedFeatures:
  """Opens the features of the training images; computes them first if they are missing.

  Args:
    collection: opened.
    features: the jitted function that computes them: variables, images `[B, S, S, 3]` → maps `[B, h, w, C]`.
    config: the run's.
    variables: of the reference.
    settings: what else the features depend on besides the images and `_KEYS`; JSON values.

  Returns:
    The features.

  Raises:
    UserError: they do not fit on the disk, or can't be written.
  """
  images = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.uint8)
  maps = features.trace(variables, images).out_info
  shapes = [tuple(each.shape[1:]) for each in maps]
  # The dtype that the maps are computed in, because "auto" depends on the device.
  dtypes = [str(each.dtype) for each in maps]
  digest = features_digest(collection, config, variables, dtypes, *settings)
  named = collection.folder / "reference_features" / f"{digest}.array_record"
  path = local_path(named)
  try:
    for each in (named, _digest_path(named)):
      pull(each)
  except OSError as error:
    raise UserError(f"the reference's features can't be copied from {named}: {error}") from error
  if not _is_intact(path):
    _check_space(collection, path, images.size + _DTYPE.itemsize * sum(map(math.prod, shapes)))
    try:
      _write(path, collection, functools.partial(features, variables), config)
      for each in (named, _digest_path(named)):
        push(each)
    except OSError as error:
      raise UserError(
        f"the reference's features can't be written to {path}: {error} (or set "
        "data.cache_reference_features=False)"
      ) from error
    print(f"kept the reference's features of {len(collection.train)} images: {named}")
  return CachedFeatures(path, shapes, config.image_size)


def features_digest(collection: Collection, config: ConfigDict, variables: Any, *settings: Any) -> str:
  """Returns a name for what is computed from a collection's features with these weights and settings."""
  decisive = [_FORMAT, collection.fingerprint, *(config[key] for key in _KEYS), *settings]
  return tree_digest(variables, json.dumps(decisive).encode())


def tree_digest(variables: Any, beginning: bytes = b"") -> str:
  """Returns a digest of `beginning` and of all arrays with their names."""
  digest = hashlib.sha256(beginning)
  for name, leaf in jax.tree_util.tree_leaves_with_path(variables):
    digest.update(jax.tree_util.keystr(name).encode())
    digest.update(np.asarray(leaf).tobytes())
  return digest.hexdigest()[:16]


def _is_intact(path: Path) -> bool:
  """Returns whether there are features, and they have the digest that was written after them."""
  if not path.exists():
    return False
  if _digest_path(path).exists() and _digest_path(path).read_bytes().strip() == _digest(path):
    return True
  print(f"{path} is damaged: the reference's features are computed again", file=sys.stderr)
  return False


def _digest_path(path: Path) -> Path:
  return path.with_suffix(".digest")


def _digest(path: Path) -> bytes:
  with path.open("rb") as file:
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest().encode()


def _check_space(collection: Collection, path: Path, record_bytes: int) -> None:
  needed = len(collection.train) * record_bytes
  free = shutil.disk_usage(local_path(collection.folder)).free
  if needed > free:
    raise UserError(
      f"the reference's features may take {needed / 1e9:.1f} GB in {path.parent}, where {free / 1e9:.1f} GB "
      "are free: make room, or set data.cache_reference_features=False"
    )


@contextmanager
def _array_record_errors() -> Iterator[None]:
  """Array_record reports a full disk by RuntimeError."""
  try:
    yield
  except RuntimeError as error:
    raise OSError(f"{error}") from error


def _write(path: Path, collection: Collection, features: Features, config: ConfigDict) -> None:
  batches = evaluation_batches(
    collection.train,
    batch_size=config.batch_size,
    image_size=config.image_size,
    num_threads=num_workers(config.data),
    fields=("image",),
  )
  progress = Bar(len(collection.train), "reference features", first="compiling")
  with replacing(path) as temporary, progress:
    writer = ArrayRecordWriter(str(temporary), _OPTIONS)
    for batch in batches:
      maps = [np.asarray(values.astype(_DTYPE)) for values in features(batch["image"])]
      count = int(batch["valid"].sum())
      with _array_record_errors():
        for i in range(count):
          writer.write(b"".join(values[i].tobytes() for values in (*maps, batch["image"])))
      progress.update(count)
    with _array_record_errors():
      writer.close()
    digest = _digest(temporary)
  with replacing(_digest_path(path)) as temporary:
    temporary.write_bytes(digest + b"\n")
