"""Writes a run's report again, or sets two runs side by side.

  python -m scops_jax.report RUN                                     writes RUN/report/index.html again
  python -m scops_jax.report RUN_A --against=RUN_B --out=FILE.html   compares two runs on one collection

Both read what the runs' last evaluations left; nothing is trained or evaluated.
"""

import functools
import json
from typing import Any

from absl import flags

from scops_jax import cli
from scops_jax.errors import UserError
from scops_jax.progress import phase
from scops_jax.runs.saved_config import load_config
from scops_jax.storage.paths import as_path

_AGAINST = flags.DEFINE_string("against", None, "The work directory of a second run, to compare with.")
_OUT = flags.DEFINE_string(
  "out", None, "The HTML file to write. Default: RUN/report/index.html, or comparison.html with --against."
)


def main(workdir: str) -> None:
  """Reads the runs and writes the page."""
  folders = [folder for folder in (workdir, _AGAINST.value) if folder is not None]
  found = {folder: (load_config(folder), _evaluation(folder)) for folder in folders}
  with phase("loading the libraries"):
    from scops_jax.report.comparison import Run, write_comparison
    from scops_jax.report.gallery import GALLERY_FILE, Gallery
    from scops_jax.report.page import write_report
    from scops_jax.runs.metrics import read_metrics

  def read(name: str) -> Run:
    folder, (config, results) = as_path(name), found[name]
    records = [record for record in read_metrics(folder) if record["step"] <= results["step"]]
    gallery = Gallery.load(folder / "report" / GALLERY_FILE)
    if gallery.landmark_normalizer:  # of the last evaluation, which may have had another than the training
      config.data.landmark_normalizer = gallery.landmark_normalizer
    return Run(folder.name or folder.absolute().name, results, records, config, gallery)

  one = read(workdir)
  if _AGAINST.value is None:
    out = as_path(_OUT.value or as_path(workdir) / "report" / "index.html")
    shown = {"results": one.results, "records": one.records, "config": one.config, "gallery": one.gallery}
    write = functools.partial(write_report, out, **shown)
  else:
    out = as_path(_OUT.value or "comparison.html")
    write = functools.partial(write_comparison, out, one, read(_AGAINST.value))
  try:
    write()
  except OSError as error:
    raise UserError(f"out={out} can't be written: {error.strerror or error}") from error
  print(out)


def _evaluation(workdir: str) -> dict[str, Any]:
  path = as_path(workdir) / "evaluation.json"
  try:
    return json.loads(path.read_bytes())
  except (OSError, ValueError) as error:
    raise UserError(f"{path} can't be read ({error}): evaluate the run first") from error


if __name__ == "__main__":
  cli.run(main, argument="RUN")
