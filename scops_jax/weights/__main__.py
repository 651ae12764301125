"""Lists what a weight file holds, says which networks it fits, and converts it.

  python -m scops_jax.weights FILE                         entries, SHA-256, the networks it fits
  python -m scops_jax.weights FILE --out=NEW.safetensors   converts (also NEW.pth, NEW.npz)
  python -m scops_jax.weights WORKDIR --to=torch           exports the newest checkpoint of a run

FILE is a PyTorch, .safetensors or .npz file. A run's part basis goes to a file of its own, NEW_basis.*.
"""

import pathlib

import numpy as np
from absl import flags

from scops_jax import cli, weights
from scops_jax.prediction import restore
from scops_jax.weights import formats, inspection, names, published

_MODEL = flags.DEFINE_enum("model", None, names.MODELS, "The network the file is for; found if not given.")
_NUM_PARTS = flags.DEFINE_integer("num_parts", None, "K that the file's head should have.", lower_bound=1)
_TO = flags.DEFINE_enum("to", None, list(formats.SUFFIXES), "Convert to this format.")
_OUT = flags.DEFINE_string("out", None, "The file to write; its suffix is the format. Default: beside FILE.")
_DROP_HEAD = flags.DEFINE_bool("drop_head", False, "Leave a segmenter's head out of the file to write.")


def main(argument: str) -> None:
  """Reads a file or a run, reports, and writes."""
  source = pathlib.Path(argument)
  basis, model_name = None, _MODEL.value
  if source.is_dir():
    segmenter = restore.load_segmenter(source)
    basis, model_name = segmenter.part_basis, segmenter.config.segmenter
    variables = {"params": segmenter.params, "batch_stats": segmenter.batch_stats}
    state_dict = weights.to_state_dict(variables, model_name=model_name)
    print(f"{source}: {model_name} after {segmenter.step} steps")
  else:
    state_dict = weights.load_state_dict(source)
    print(f"{source}\nSHA-256 {published.sha256(source)}")
  fits = inspection.find_fits(state_dict, model_name=model_name, num_parts=_NUM_PARTS.value)
  print(inspection.describe(state_dict, fits, details=model_name is not None))
  if _TO.value is not None or _OUT.value is not None:
    if model_name is not None and not any(fit.complete for fit in fits):
      raise weights.WeightsError(f"{source} does not fit {model_name}, as listed: nothing is written")
    out = inspection.output_path(source, out=_OUT.value, to=_TO.value)
    outputs = {out: inspection.convert(state_dict, fits, suffix=out.suffix, drop_head=_DROP_HEAD.value)}
    if basis is not None:
      basis_path = out.with_stem(f"{out.stem}_basis")
      outputs[basis_path] = inspection.convert({"W": basis}, [], suffix=out.suffix)
    _write(outputs)


def _write(outputs: dict[pathlib.Path, dict[str, np.ndarray]]) -> None:
  for path in outputs:
    if path.exists():
      raise weights.WeightsError(f"{path} exists already: give another --out")
  for path, arrays in outputs.items():
    weights.save_state_dict(path, arrays)
    print(f"{path}\nSHA-256 {published.sha256(path)}")


if __name__ == "__main__":
  cli.run(main, argument="FILE")
