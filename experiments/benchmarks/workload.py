"""The workload of a benchmark's contestants: config, images, weights and random draws, kept in a folder.

`prepare` makes it with JAX. Reading it needs only NumPy, so that PyTorch's process holds no JAX.
"""

import importlib
import json
import pathlib
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray

from scops_jax.config import config_from_json
from scops_jax.errors import UserError

DRAWN_STEPS = 3  # training steps whose random draws are kept
STATE_DICTS = ("segmenter", "reference")  # NAME.npz holds the weights in PyTorch's names and layouts
_ARRAYS = "arrays.npz"
_CONFIG = "config.json"

INFERENCE_BATCH, INFERENCE_SIZE = 32, 128

StateDict = dict[str, NDArray]


class Draws(NamedTuple):
  """The random draws of training steps 0 … DRAWN_STEPS - 1, one row per step."""

  source_points: NDArray[np.float32]  # [steps, B, 25, 2]
  factors: NDArray[np.float32]  # [steps, B, 3], of brightness, contrast and saturation
  hue: NDArray[np.float32]  # [steps, B], turns
  order: NDArray[np.int32]  # [steps, B, 4], of brightness, contrast, saturation, hue


class Arrays(NamedTuple):
  """The inputs of a step, and the part basis before the first one."""

  images: NDArray[np.uint8]  # [B, S, S, 3]
  saliency: NDArray[np.uint8]  # [B, S, S]
  basis: NDArray[np.float32]  # [K, C], unconstrained; W is its relu


def load_config(name: str, *, batch_size: int | None = None, image_size: int | None = None) -> ConfigDict:
  """Returns the config of configs/NAME.py, if asked with another batch or image size.

  The reference's input keeps its relation to the image: 2 × 128 + 1 becomes 2 × 64 + 1.

  Raises:
    UserError: there is no such config.
  """
  try:
    config: ConfigDict = importlib.import_module(f"configs.{name}").get_config()
  except ModuleNotFoundError as error:
    raise UserError(
      f"--config={name}: there is no configs/{name}.py (run in the repository's root)"
    ) from error
  if image_size is not None:
    factor, extra = divmod(config.reference_image_size, config.image_size)
    config.reference_image_size = factor * image_size + extra
    config.image_size = image_size
  if batch_size is not None:
    config.batch_size = batch_size
  return config


def save(
  folder: pathlib.Path, config: ConfigDict, arrays: Arrays, draws: Draws, **state_dicts: StateDict
) -> None:
  """Writes a workload to a folder that exists."""
  (folder / _CONFIG).write_text(json.dumps(config.to_dict()), encoding="utf-8")
  np.savez(folder / _ARRAYS, **arrays._asdict(), **draws._asdict())
  for name in STATE_DICTS:
    np.savez(folder / f"{name}.npz", **state_dicts[name])


def read_config(folder: pathlib.Path) -> ConfigDict:
  """Returns the workload's config, complete and locked."""
  return config_from_json(json.loads((folder / _CONFIG).read_text(encoding="utf-8")))


def read_arrays(folder: pathlib.Path) -> tuple[Arrays, Draws]:
  """Returns the workload's inputs and random draws."""
  with np.load(folder / _ARRAYS) as file:
    arrays, draws = ({name: file[name] for name in kind._fields} for kind in (Arrays, Draws))
  return Arrays(**arrays), Draws(**draws)


def read_state_dict(folder: pathlib.Path, name: str) -> StateDict:
  """Returns the weights of the "segmenter" or the "reference"."""
  with np.load(folder / f"{name}.npz") as file:
    return {key: file[key] for key in file.files}


def random_logits(config: ConfigDict, seed: int) -> NDArray[np.float32]:
  """Returns logits [B, S, S, K+1] to measure the losses on."""
  shape = (config.batch_size, config.image_size, config.image_size, config.num_parts + 1)
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def inference_images() -> NDArray[np.uint8]:
  """Returns images [INFERENCE_BATCH, INFERENCE_SIZE, INFERENCE_SIZE, 3]."""
  shape = (INFERENCE_BATCH, INFERENCE_SIZE, INFERENCE_SIZE, 3)
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)
