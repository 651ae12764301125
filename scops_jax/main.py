"""Trains and evaluates: python -m scops_jax.main --config=configs/toy_faces.py --workdir=runs/toy_faces.

The same command goes on with a run that was interrupted, from its newest intact checkpoint. Exit codes:

  0    the run is finished and evaluated
  1    an error, in one line on standard error; what was saved before is intact
  130  ended by SIGINT (Ctrl-C), 143 by SIGTERM: the step in progress was finished and saved. A second signal
       ends the process at once, without saving. With --multihost a signal to one host stops all of them after
       the same step; those that got none end with 143.
"""

from absl import flags
from ml_collections import config_flags

from scops_jax import cli, progress
from scops_jax.catalogue import check_files
from scops_jax.config import check_values
from scops_jax.errors import UserError
from scops_jax.runs import saved_config

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "The run's configuration, configs/NAME.py. Default: that of the run in --workdir. A key is set with "
  "--config.KEY=VALUE, one that takes several values with --config.KEY=A,B.",
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run's directory, local, gs:// or s3://; a run found there is resumed."
)
_MODE = flags.DEFINE_enum(
  "mode", "train", ["train", "eval"], "train: train and evaluate; eval: evaluate the newest checkpoint."
)
_PROFILE = flags.DEFINE_bool(
  "profile", False, "Record a few training steps in WORKDIR/profile, for xprof or TensorBoard."
)
_PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "Print all keys with their values, and end.")
_MULTIHOST = flags.DEFINE_bool(
  "multihost", False, "Run on several hosts, each started with this command; they share --workdir."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator_address",
  None,
  "With --multihost: HOST:PORT of the first host; needed outside of a known cluster.",
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "With --multihost: the number of hosts, as above."
)
_TIMEOUT = flags.DEFINE_integer(
  "initialization_timeout",
  300,
  "With --multihost: how long to wait for the other hosts, seconds.",
  lower_bound=1,
)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --multihost: this host, from 0 on, as above.")


def main() -> None:
  """Checks what needs no library, then trains or evaluates."""
  config, workdir = _CONFIG.value, _WORKDIR.value
  if _PRINT_CONFIG.value:
    cli.print_config(config)
    return
  if workdir is None:
    raise UserError("give --workdir=DIR, where the run is kept")
  given = [f.name for f in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID) if f.value is not None]
  if given and not _MULTIHOST.value:
    raise UserError(f"--{given[0]} needs --multihost")
  if _PROFILE.value and _MODE.value == "eval":
    raise UserError("--profile needs --mode=train: it records training steps")
  check_values(config)
  if _MODE.value == "eval":
    saved_config.load_config(workdir)
  elif not _MULTIHOST.value:  # only the first host needs them
    check_files(config)
  with progress.phase("loading the libraries"):
    from scops_jax import train
    from scops_jax.runs import hosts
    from scops_jax.runs.interruption import leaving_together
  if _MULTIHOST.value:
    hosts.join(
      coordinator_address=_COORDINATOR.value,
      num_processes=_NUM_PROCESSES.value,
      process_id=_PROCESS_ID.value,
      timeout=_TIMEOUT.value,
    )
    if not hosts.is_first():
      progress.mute()
  with leaving_together():
    if _MODE.value == "eval":
      train.evaluate_run(config, workdir)
    else:
      train.train_and_evaluate(config, workdir, profile=_PROFILE.value)


if __name__ == "__main__":
  cli.run(main, resumes=True)
