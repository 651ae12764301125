"""Kills, damages, fills and stops: python -m experiments.reliability [PHASE …] [--root=DIR] [--out=DIR].

  faults      each fault of fault_list.py, tried once and classified
  kills       processes killed at random moments and started again
  corruption  files with random damage, read in one process
  disk        a small disk that fills (needs root, to mount it)
  soak        a training stopped and resumed twenty times

Without a phase all of them. A phase that was interrupted goes on where it was; delete its JSON file in --out
to begin anew. At the end the tables of README.md are made from the JSON files.
"""

import os

# Before NumPy is loaded: a process with one thread can be forked.
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}

import argparse
import gc
import pathlib
import subprocess
import time
import warnings

from experiments.reliability import corruption, disk, faults, kills, soak, tables
from experiments.reliability.records import Records

PHASES = ("faults", "kills", "corruption", "disk", "soak")
_HERE = pathlib.Path(__file__).parent


def main() -> None:
  """Runs the phases."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("phases", nargs="*", choices=(*PHASES, []), help="default: all")
  parser.add_argument("--root", type=pathlib.Path, default="runs/reliability", help="where runs are made")
  parser.add_argument("--out", type=pathlib.Path, default=_HERE / "results", help="of the JSON files")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--faults", type=int, default=10**6, help="at most")
  parser.add_argument("--kills", type=int, default=1000)
  parser.add_argument("--files", type=int, default=10_000, help="damaged, a third of each kind")
  parser.add_argument("--fills", type=int, default=60, help="of the small disk")
  parser.add_argument("--stops", type=int, default=20, help="of the soak")
  options = parser.parse_args()
  warnings.filterwarnings("ignore", message="os.fork")  # JAX has started no thread yet
  root, seed = options.root.absolute(), options.seed
  root.mkdir(parents=True, exist_ok=True)
  assert len(os.listdir("/proc/self/task")) == 1, "a thread has been started: forking would not be safe"
  gc.freeze()

  def records(phase: str) -> Records:
    return Records(options.out / f"{phase}.json", seed=seed, commit=_commit())

  for phase in options.phases or PHASES:
    began = time.monotonic()
    if phase == "faults":
      faults.run(root, faults.make_template(root), count=options.faults, records=records(phase))
    elif phase == "kills":
      kills.run(root, seed=seed, count=options.kills, records=records(phase))
    elif phase == "corruption":
      corruption.run(root, faults.make_template(root), seed=seed, count=options.files, records=records(phase))
    elif phase == "disk" and disk.can_mount(root / "disk"):
      disk.run(root, faults.make_template(root), seed=seed, count=options.fills, records=records(phase))
    elif phase == "disk":
      print("disk: left out, because this process may not mount a small disk")
    elif phase == "soak":
      soak.run(root, seed=seed, count=options.stops, records=records(phase))
    print(f"{phase}: {(time.monotonic() - began) / 60:.1f} minutes", flush=True)
  tables.update(_HERE / "README.md", options.out)


def _commit() -> str:
  command = ["git", "-C", str(_HERE), "describe", "--always", "--abbrev=7", "--dirty"]
  return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


if __name__ == "__main__":
  main()
