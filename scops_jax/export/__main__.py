"""Packs a run's network into one file: python -m scops_jax.export --workdir=DIR --out=NAME.scops.

The file holds what prediction needs (weights, config, K, part names, the run's evaluation). It can be kept,
sent and loaded on any machine with this package, in place of the run's directory:

  python -m scops_jax.predict --workdir=NAME.scops --images=FOLDER --out=OUT
  scops_jax.load_predictor("NAME.scops")

Nothing in the file is executed when it is read. It can't be trained further. For a program that runs without
this package see `python -m scops_jax.predict --help`, --export.
"""

import json
import pathlib
from typing import Any

from absl import flags

from scops_jax import cli
from scops_jax.errors import UserError
from scops_jax.prediction.sources import find_network
from scops_jax.progress import phase
from scops_jax.storage.files import file_size
from scops_jax.storage.paths import as_path

_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run whose newest checkpoint is packed, or a .scops file.", required=True
)
_OUT = flags.DEFINE_string("out", None, "The file to write, NAME.scops.", required=True)
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", ["float32", "float16"], "Of the weights in the file; float16 halves its size."
)
_PART_NAMES = flags.DEFINE_list(
  "part_names",
  None,
  "Names of parts 1 to K for legends: hair,eyes,mouth. Default: the file's, or none.",
)


def main() -> None:
  """Loads the network and writes it."""
  find_network(_WORKDIR.value)
  with phase("loading the libraries and the network"):
    from scops_jax.prediction.model_file import write_model
    from scops_jax.prediction.restore import load_segmenter

    segmenter = load_segmenter(_WORKDIR.value)
  if segmenter.evaluation is None:
    segmenter = segmenter._replace(evaluation=_read_evaluation(as_path(_WORKDIR.value), segmenter.step))
  if _PART_NAMES.value is not None:
    segmenter = segmenter._replace(part_names=tuple(_PART_NAMES.value))
  out = as_path(_OUT.value)
  try:
    write_model(segmenter, out, dtype=_DTYPE.value)
  except ValueError as error:
    raise UserError(f"dtype={_DTYPE.value}: {error}: take float32") from error
  config = segmenter.config
  print(
    f"{out}: {config.segmenter}, {config.num_parts} parts, {segmenter.step} steps, {_DTYPE.value}, "
    f"{file_size(out) / 1e6:.1f} MB"
  )


def _read_evaluation(workdir: pathlib.Path, step: int) -> dict[str, Any] | None:
  """Returns the run's evaluation if there is an intact one of this step."""
  try:
    evaluation = json.loads((workdir / "evaluation.json").read_bytes())
    return evaluation if evaluation["step"] == step else None
  except (OSError, ValueError, KeyError, TypeError):
    return None


if __name__ == "__main__":
  cli.run(main)
