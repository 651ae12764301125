"""The code of a run's signed features, for the methods of models.nonnegative that are fitted.

It is fitted once, to the first training images, and kept beside the prepared data set, so that a run that is
resumed has the same one.
"""

import itertools
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray

from scops_jax.data.collection import Collection
from scops_jax.data.pipeline import evaluation_batches
from scops_jax.data.workers import num_workers
from scops_jax.errors import UserError
from scops_jax.models import nonnegative
from scops_jax.runs.feature_cache import features_digest
from scops_jax.storage.files import replacing
from scops_jax.storage.mirror import local_path, pull, push


def add_code(
  collection: Collection, features: jax.stages.Wrapped, config: ConfigDict, *, variables: Any
) -> dict[str, Any]:
  """Returns the reference's variables and a collection "code", as train_step.reference_features takes them.

  Args:
    collection: opened.
    features: the jitted function that computes the signed features: variables, images `[B, S, S, 3]` → maps
      `[B, h, w, C]`.
    config: the run's.
    variables: of the reference.

  Raises:
    UserError: the code can't be written or read.
  """
  code = config.signed_features
  digest = features_digest(collection, config, variables, code.method, code.num_images, code.num_components)
  named = collection.folder / "reference_features" / f"{digest}_code.npz"
  path = local_path(named)
  try:
    pull(named)
    if not path.exists():
      _write(path, _fit(collection, features, config, variables=variables))
      push(named)
    codes = _read(path)
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(f"the features' code {path} can't be written or read ({error}): delete it") from error
  return {**variables, "code": codes}


def _fit(
  collection: Collection, features: jax.stages.Wrapped, config: ConfigDict, *, variables: Any
) -> list[NDArray[np.float32]]:
  code = config.signed_features
  batches = evaluation_batches(
    collection.train,
    batch_size=config.batch_size,
    image_size=config.image_size,
    num_threads=num_workers(config.data),
    fields=("image",),
  )
  fits: list[nonnegative.CodeFit] = []
  for batch in itertools.islice(batches, -(-code.num_images // config.batch_size)):
    maps = features(variables, batch["image"])
    fitted = batch["valid"] & (batch["index"] < code.num_images)
    if not fits:
      fits = [nonnegative.CodeFit(code.method, code.num_components) for _ in maps]
    for fit, values in zip(fits, maps, strict=True):
      fit.add(np.asarray(values, np.float32)[fitted])
  return [fit.code() for fit in fits]


def _write(path: Path, codes: list[NDArray[np.float32]]) -> None:
  with replacing(path) as temporary, temporary.open("wb") as file:
    np.savez(file, *codes)


def _read(path: Path) -> tuple[NDArray[np.float32], ...]:
  with np.load(path, allow_pickle=False) as arrays:
    return tuple(arrays[f"arr_{index}"] for index in range(len(arrays)))
