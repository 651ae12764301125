"""Lists what a weight file contains, says which networks it fits, and converts it.

  python -m scops_jax.weights FILE                         lists entries, SHA-256, the networks it fits
  python -m scops_jax.weights FILE --out=NEW.safetensors   converts it (also to NEW.npz)
  python -m scops_jax.weights WORKDIR --to=safetensors     exports the newest checkpoint of a run

FILE is a PyTorch, .safetensors or .npz file. A run's part basis is written to a second file, NEW_basis.*.
PyTorch's own format is read but not written: PyTorch loads .safetensors files with
safetensors.torch.load_file(path), in place of torch.load(path).
"""

import pathlib
from typing import Any

from absl import flags

from scops_jax import cli
from scops_jax.errors import UserError, printable
from scops_jax.progress import phase
from scops_jax.storage.files import file_digest
from scops_jax.storage.paths import as_path

_MODEL = flags.DEFINE_string("model", None, "The network the file is for. Default: found.")
_NUM_PARTS = flags.DEFINE_integer("num_parts", None, "K that the file's head should have.", lower_bound=1)
_TO = flags.DEFINE_enum(
  "to",
  None,
  ["safetensors", "npz"],
  "Convert to this format. PyTorch loads safetensors with safetensors.torch.load_file(path).",
)
_OUT = flags.DEFINE_string("out", None, "The file to write; its ending is the format. Default: next to FILE.")
_DROP_HEAD = flags.DEFINE_bool("drop_head", False, "Do not write a segmenter's head.")


def main(argument: str) -> None:
  """Reads a file or a run, describes it, and converts it if asked to."""
  source = as_path(argument)
  if not source.exists():
    raise UserError(f"there is no file {printable(str(source))}")
  with phase("loading the libraries"):
    from scops_jax import weights
    from scops_jax.prediction import restore
    from scops_jax.weights import inspection, names
  if _MODEL.value not in (None, *names.MODELS):
    raise UserError(f"--model={_MODEL.value} is not one of {', '.join(names.MODELS)}")
  basis, model_name = None, _MODEL.value
  if source.is_dir():
    segmenter = restore.load_segmenter(source)
    basis, model_name = segmenter.part_basis, segmenter.config.segmenter
    variables = {"params": segmenter.params, "batch_stats": segmenter.batch_stats}
    state_dict = weights.to_state_dict(variables, model_name=model_name)
    print(f"{source}: {model_name} after {segmenter.step} steps")
  else:
    state_dict = weights.load_state_dict(source)
    print(f"{printable(str(source))}\nSHA-256 {file_digest(source)}")
  fits = inspection.find_fits(state_dict, model_name=model_name, num_parts=_NUM_PARTS.value)
  print(inspection.describe(state_dict, fits, details=model_name is not None))
  if _TO.value is not None or _OUT.value is not None:
    if model_name is not None and not any(fit.match.complete for fit in fits):
      raise weights.WeightsError(f"{source} does not fit {model_name}, as listed: nothing is written")
    out = inspection.output_path(source, out=_OUT.value, to=_TO.value)
    outputs = {out: inspection.convert(state_dict, fits, drop_head=_DROP_HEAD.value)}
    if basis is not None:
      outputs[out.with_stem(f"{out.stem}_basis")] = {"W": basis}
    _write(outputs)


def _write(outputs: dict[pathlib.Path, dict[str, Any]]) -> None:
  from scops_jax import weights

  for path in outputs:
    if path.exists():
      raise weights.WeightsError(f"{path} already exists: give another --out")
  for path, arrays in outputs.items():
    weights.save_state_dict(path, arrays)
    print(f"{path}\nSHA-256 {file_digest(path)}")


if __name__ == "__main__":
  cli.run(main, argument="FILE")
