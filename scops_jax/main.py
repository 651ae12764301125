"""Trains and evaluates: python -m scops_jax.main --config=configs/toy_faces.py --workdir=runs/toy_faces."""

from absl import flags
from ml_collections import config_flags

from scops_jax import cli, train

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run's configuration, configs/NAME.py.")
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where the run is kept; a run found there is resumed.", required=True
)
_MODE = flags.DEFINE_enum(
  "mode", "train", ["train", "eval"], "train: train and evaluate; eval: evaluate the newest checkpoint."
)


def main() -> None:
  """One call."""
  command = train.evaluate_run if _MODE.value == "eval" else train.train_and_evaluate
  command(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  cli.run(main)
