"""Builds the data set of a config's collection: python -m scops_jax.prepare --config=configs/toy_faces.py.

With --config.data.saliency=auto also its saliency maps, PNGs that you may edit before training.
"""

from absl import flags
from ml_collections import config_flags

from scops_jax import cli
from scops_jax.runs import setup

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run's configuration, configs/NAME.py.")


def main() -> None:
  """Prepares what is missing."""
  setup.prepare(_CONFIG.value)


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  cli.run(main)
