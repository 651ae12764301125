"""Builds the data set of a config's collection: python -m scops_jax.prepare --config=configs/toy_faces.py.

With --config.data.saliency=auto also its saliency maps, PNGs that you may edit before training.
"""

from ml_collections import config_flags

from scops_jax import cli
from scops_jax.catalogue import check_files
from scops_jax.config import check_values
from scops_jax.progress import phase

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run's configuration, configs/NAME.py.")


def main() -> None:
  """Prepares what is missing."""
  check_values(_CONFIG.value)
  check_files(_CONFIG.value)
  with phase("loading the libraries"):
    from scops_jax.runs import setup
  setup.prepare(_CONFIG.value)


if __name__ == "__main__":
  cli.run(main)
