"""Opens a page to try a network on photographs: python -m scops_jax.demo --workdir=RUN.

RUN is a run's directory, a file NAME.scops of `python -m scops_jax.export`, or toy_faces, a network for drawn
faces that comes with this package. Given twice, the page shows both networks' parts side by side. Needs the
extra "demo": pip install "scops_jax[demo]".

Photographs stay on this machine: the page is served to its browsers only, loads nothing from elsewhere, and
uploaded files are deleted when the command ends (Ctrl-C).
"""

import importlib.util
import os
import pathlib
import tempfile
import threading

from absl import flags

from scops_jax import cli
from scops_jax.errors import UserError
from scops_jax.prediction.sources import find_network
from scops_jax.progress import phase

_WORKDIR = flags.DEFINE_multi_string(
  "workdir", ["toy_faces"], "A run, a .scops file, or toy_faces; repeat it to compare two."
)
_PORT = flags.DEFINE_integer(
  "port", 7860, "The page is http://127.0.0.1:PORT.", lower_bound=1, upper_bound=65535
)


def main() -> None:
  """Loads the networks and serves the page until a signal comes."""
  if len(_WORKDIR.value) > 2:
    raise UserError(f"workdir= is given {len(_WORKDIR.value)} times: give one network, or two to compare")
  with tempfile.TemporaryDirectory(prefix="scops_jax_demo_") as folder:
    # Gradio reads these when it is imported: no reports to its makers, uploads in a folder that is deleted.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1", GRADIO_TEMP_DIR=folder)
    for source in _WORKDIR.value:
      find_network(source)  # a wrong path shows at once
    if importlib.util.find_spec("gradio") is None:
      raise UserError('the page needs Gradio, which is not installed: pip install "scops_jax[demo]"')
    with phase("loading the libraries and the networks"):
      from scops_jax.demo import page
      from scops_jax.demo.photos import Network

      titles = [pathlib.Path(source).name for source in _WORKDIR.value]
      if len(set(titles)) < len(titles):
        titles = [f"{number} {source}" for number, source in enumerate(_WORKDIR.value, 1)]
      networks = [Network(source, title) for source, title in zip(_WORKDIR.value, titles, strict=True)]
    try:
      with page.serve(networks, port=_PORT.value) as address:
        print(f"{address} is open in this machine's browsers; Ctrl-C ends it", flush=True)
        threading.Event().wait()
    except OSError as error:
      raise UserError(f"port={_PORT.value} can't be opened: give another one") from error


if __name__ == "__main__":
  cli.run(main)
