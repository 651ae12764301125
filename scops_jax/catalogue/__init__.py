"""Files that configs need and this package does not contain: where people get them, their sizes and licences.

Nothing here takes time to load, so a command can name what is missing at once.
"""

import collections
import pathlib
from collections.abc import Iterator

from ml_collections import ConfigDict

from scops_jax.catalogue.published import COLLECTIONS
from scops_jax.catalogue.wanted import WantedFile
from scops_jax.catalogue.weights import weight_file
from scops_jax.errors import UserError

__all__ = ["COLLECTIONS", "WantedFile", "check_files", "missing_files", "weight_file"]


def check_files(config: ConfigDict) -> None:
  """Raises UserError with one line for each file that the config needs and that is not there."""
  missing = list(missing_files(config))
  if len(missing) == 1:
    raise UserError(missing[0])
  if missing:
    raise UserError(
      f"{len(missing)} of the config's files are missing (data.dir={config.data.dir}):", details=missing
    )


def missing_files(config: ConfigDict) -> Iterator[str]:
  """Yields a line for each file or folder that the config needs and that is not there.

  Args:
    config: the run's. Remote files are not looked for, nor those of a collection that is prepared.
  """
  for key, model in (("segmenter_weights", config.segmenter), ("reference_weights", config.reference)):
    source, wanted = config[key], weight_file(model)
    needed = f"; {model} needs {wanted}" if wanted else ""
    if source == "imagenet" and wanted:
      yield f"{key}=imagenet: no package contains it{needed}: set {key} to its path"
    elif source not in ("imagenet", "random") and _is_missing(source):
      yield f"{key}={source}: no such file{needed}; {key}=random takes random weights"
  if config.data.name == "image_folder" and _is_missing(config.data.dir):
    yield f"data.dir={config.data.dir}: there is no such folder; it should hold your images"
  if not _is_prepared(config):
    yield from _missing_of_collection(config)


def _missing_of_collection(config: ConfigDict) -> Iterator[str]:
  """Yields a line for each source of missing files."""
  root, missing = pathlib.Path(config.data.dir), collections.defaultdict(list)
  for wanted in COLLECTIONS.get(config.data.name, ()):
    places = [root / name.format(category=config.pascal.category) for name in wanted.names]
    if wanted.is_saliency and config.data.saliency_dir:
      places = [pathlib.Path(config.data.saliency_dir)]
    read = config.data.saliency == "collection" or not wanted.is_saliency
    if read and all(map(_is_missing, places)):
      missing[wanted.source, wanted.size, wanted.licence].append(str(places[0]))
  for facts, paths in missing.items():
    yield f"{', '.join(paths)}: {'; '.join(facts)}"


def _is_missing(path: str | pathlib.Path) -> bool:
  text = str(path)
  remote = ":/" in text  # pathlib has made one slash of two
  return not remote and not pathlib.Path(path).exists()


def _is_prepared(config: ConfigDict) -> bool:
  home = f"{config.data.cache_dir}/{config.data.name}"
  return "://" in home or any(pathlib.Path(home).glob("*/*/dataset_info.json"))
