"""The code of a run's signed features, where it is fitted to the collection (signed_features.method).

It is fitted to the first training images, before anything else of the run, and kept beside the prepared data
set, so that a run that is resumed or evaluated has the same one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from scops_jax.data.collection import Collection
from scops_jax.data.pipeline import evaluation_batches
from scops_jax.errors import UserError
from scops_jax.models import nonnegative
from scops_jax.runs.feature_cache import features_digest
from scops_jax.storage.files import replacing


def with_code(
  collection: Collection, features: jax.stages.Wrapped, config: ConfigDict, *, variables: Any, method: str
) -> Any:
  """Returns the reference's variables with a collection "code", as train_step.reference_features takes it.

  Args:
    collection: opened.
    features: what computes the signed features, under jax.jit: variables, images `[B, S, S, 3]` → maps
      `[B, h, w, C]`.
    config: the run's.
    variables: of the reference.
    method: of models.nonnegative; if it is not fitted, the variables are returned as they are.

  Raises:
    UserError: the code can't be written or read.
  """
  if method not in nonnegative.FITTED:
    return variables
  fitted = config.signed_features
  digest = features_digest(collection, config, variables, method, fitted.num_images, fitted.num_components)
  path = collection.folder / "reference_features" / f"{digest}_code.npz"
  try:
    if not path.exists():
      _write(path, _fit(collection, features, config, variables=variables, method=method))
    codes = _read(path)
  except (OSError, ValueError, KeyError) as error:
    raise UserError(f"the features' code {path} can't be written or read ({error}): delete it") from error
  return {**variables, "code": codes}


def _fit(
  collection: Collection, features: jax.stages.Wrapped, config: ConfigDict, *, variables: Any, method: str
) -> list[dict[str, np.ndarray]]:
  batches = evaluation_batches(
    collection.train,
    batch_size=config.batch_size,
    image_size=config.image_size,
    limit=config.signed_features.num_images,
    num_threads=config.data.num_threads,
    fields=("image",),
  )
  fits: list[nonnegative.CodeFit] = []
  for batch in batches:
    maps = features(variables, batch["image"])
    if not fits:
      fits = [nonnegative.CodeFit(method, config.signed_features.num_components) for _ in maps]
    for fit, values in zip(fits, maps, strict=True):
      fit.add(np.asarray(values, np.float32)[batch["valid"]])
  return [fit.code() for fit in fits]


def _write(path: Path, codes: Sequence[dict[str, np.ndarray]]) -> None:
  arrays: Any = {f"{index}/{name}": value for index, code in enumerate(codes) for name, value in code.items()}
  with replacing(path) as temporary, temporary.open("wb") as file:
    np.savez(file, **arrays)


def _read(path: Path) -> tuple[dict[str, np.ndarray], ...]:
  codes: dict[int, dict[str, np.ndarray]] = {}
  with np.load(path, allow_pickle=False) as arrays:
    for key in arrays:
      index, name = key.split("/")
      codes.setdefault(int(index), {})[name] = arrays[key]
  return tuple(codes[index] for index in range(len(codes)))
