"""A trained network in one file, NAME.scops, that `load_predictor` and the commands load anywhere.

It is an uncompressed zip of model.json (format and version, config, K, part names, training step, evaluation,
digest) and weights.safetensors (the segmenter's variables and the part basis). Reading it executes nothing
and takes a few times its size in memory.
"""

import hashlib
import json
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

import scops_jax
from scops_jax.config import check_values, config_from_json, config_to_json, default_config
from scops_jax.errors import UserError, printable
from scops_jax.prediction.segmenter import Segmenter, check_finite
from scops_jax.storage.files import local_copy, replacing
from scops_jax.storage.paths import as_path
from scops_jax.train_step import create_networks
from scops_jax.weights.formats import MAX_HEADER

FORMAT_VERSION = 1
DTYPES = ("float32", "float16")
_FORMAT = "scops_jax model"
_DESCRIPTION, _WEIGHTS = "model.json", "weights.safetensors"
_MAX_DESCRIPTION = 1 << 20  # bytes
_MAX_NAME = 40  # characters of a part's name
_BASIS = "part_basis"
_TIME = (1980, 1, 1, 0, 0, 0)  # of all members: the same network gives the same bytes


def write_model(
  segmenter: Segmenter,
  path: str | pathlib.Path,
  *,
  dtype: str = "float32",
) -> None:
  """Writes a network; the file appears complete or not at all.

  Folders and paths of weight files are left out of its config: they are the writer's own.

  Args:
    segmenter: the network.
    path: ends with .scops.
    dtype: of the weights in the file, one of DTYPES. "float16" halves it; the labels of few pixels change.

  Raises:
    UserError: `path` ends otherwise or can't be written, or the network has not K part names.
    ValueError: the weights are not finite in this dtype.
  """
  path = as_path(path)
  if path.suffix != ".scops":
    raise UserError(f"out={path} should end with .scops")
  check_part_names(segmenter.part_names, segmenter.config.num_parts)
  variables = {"params": segmenter.params, "batch_stats": segmenter.batch_stats, _BASIS: segmenter.part_basis}
  arrays = {
    name: np.asarray(jax.device_get(value)).astype(dtype)
    for name, value in flatten_dict(variables, sep="/").items()
  }
  check_finite(arrays)
  weights = safetensors.numpy.save(
    {name: np.require(array, requirements="C") for name, array in arrays.items()}
  )
  description = {
    "format": _FORMAT,
    "format_version": FORMAT_VERSION,
    "scops_jax": scops_jax.__version__,
    "segmenter": segmenter.config.segmenter,
    "num_parts": segmenter.config.num_parts,
    "part_names": list(segmenter.part_names),
    "step": segmenter.step,
    "evaluation": segmenter.evaluation,
    "config": json.loads(config_to_json(_without_places(segmenter.config))),
  }
  description["digest"] = _digest(description, weights)
  text = json.dumps(description, indent=2, sort_keys=True) + "\n"
  try:
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
      archive.writestr(zipfile.ZipInfo(_DESCRIPTION, _TIME), text)
      archive.writestr(zipfile.ZipInfo(_WEIGHTS, _TIME), weights)
  except OSError as error:
    raise UserError(f"out={path} can't be written: {error.strerror}") from error


def read_model(path: str | pathlib.Path) -> Segmenter:
  """Reads a file of `write_model`; the weights come as float32.

  Raises:
    UserError: the file can't be read, is damaged or something else, or of a later version.
  """
  path = as_path(path)
  try:
    with local_copy(path) as local, zipfile.ZipFile(local) as archive:
      description = json.loads(_read(archive, _DESCRIPTION, limit=_MAX_DESCRIPTION))
      if description["format"] != _FORMAT:
        raise ValueError(f"{_DESCRIPTION} describes another format")
      if description["format_version"] != FORMAT_VERSION:
        raise ValueError(
          f"its format version is {description['format_version']}, this scops_jax reads {FORMAT_VERSION}"
        )
      weights = _read(archive, _WEIGHTS, limit=local.stat().st_size)
    if description.pop("digest") != _digest(description, weights):
      raise ValueError("its content is not what was written")
    return _open(description, weights)
  except Exception as error:  # of a stranger's file: of many types
    detail = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
    raise UserError(
      f"{path} is no model that can be used ({printable(detail) or type(error).__name__}): get an intact "
      "copy, or write it again with this version's python -m scops_jax.export"
    ) from error


def check_part_names(names: Sequence[str], num_parts: int) -> None:
  """Raises UserError unless there are no names or K of a length that fits into a legend."""
  if names and len(names) != num_parts:
    raise UserError(f"part_names has {len(names)} names, the network {num_parts} parts: give one for each")
  for name in names:
    if not name or len(name) > _MAX_NAME or not name.isprintable():
      raise UserError(f"part_names: {printable(name)!r} is not 1 to {_MAX_NAME} printable characters")


def _open(description: Mapping[str, Any], weights: bytes) -> Segmenter:
  """Builds the network that a file describes; raises many kinds of errors if it is not whole."""
  config = config_from_json(description["config"])
  check_values(config)
  networks = create_networks(config)
  names = tuple(description["part_names"])
  check_part_names(names, config.num_parts)
  arrays = _read_arrays(weights)
  basis = arrays.pop(_BASIS)
  if basis.shape != (config.num_parts, networks.basis.num_channels):
    raise ValueError(f"the part basis has shape {basis.shape}")
  image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), np.float32)
  expected = flatten_dict(dict(jax.eval_shape(networks.segmenter.init, jax.random.key(0), image)), sep="/")
  found = {name: array.shape for name, array in arrays.items()}
  if found != {name: leaf.shape for name, leaf in expected.items()}:
    raise ValueError(f"its weights are not those of {config.segmenter} with {config.num_parts} parts")
  variables = unflatten_dict(arrays, sep="/")
  return Segmenter(
    config=config,
    networks=networks,
    params=variables["params"],
    batch_stats=variables.get("batch_stats", {}),
    part_basis=basis,
    step=int(description["step"]),
    part_names=names,
    evaluation=description["evaluation"],
  )


def _read_arrays(weights: bytes) -> dict[str, np.ndarray]:
  if int.from_bytes(weights[:8], "little") > MAX_HEADER:
    raise ValueError(f"the header of {_WEIGHTS} has more than {MAX_HEADER} bytes")
  arrays = safetensors.numpy.load(weights)
  for name, array in arrays.items():
    if array.dtype.name not in DTYPES:
      raise ValueError(f"{printable(name)} is {array.dtype}, not {' or '.join(DTYPES)}")
  check_finite(arrays)
  return {name: array.astype(np.float32) for name, array in arrays.items()}


def _read(archive: zipfile.ZipFile, name: str, *, limit: int) -> bytes:
  """Returns an uncompressed member: no small file inflates to a large one."""
  member = archive.getinfo(name)
  if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
    raise ValueError(f"{name} is compressed")
  if member.file_size > limit:
    raise ValueError(f"{name} has {member.file_size} bytes, more than {limit}")
  return archive.read(member)


def _digest(description: Mapping[str, Any], weights: bytes) -> str:
  digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
  digest.update(weights)
  return digest.hexdigest()


def _without_places(config: ConfigDict) -> ConfigDict:
  """Returns the config with the default folders, and weight files by their name only."""
  config, default = config.copy_and_resolve_references(), default_config()
  with config.unlocked():
    for key in ("dir", "cache_dir", "saliency_dir"):
      config.data[key] = default.data[key]
    for key in ("segmenter_weights", "reference_weights"):
      config[key] = pathlib.Path(config[key]).name
  return config
