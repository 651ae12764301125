"""Trains configs/toy_faces.py once per seed and prints a table.

python -m experiments.toy_faces.seeds --seeds=0,1,2

Finished runs are not trained again. Other settings follow --seeds: --seeds=0 --config.num_steps=2000.
"""

import json
import pathlib
import subprocess
import sys
import time

CONFIG = "configs/toy_faces.py"
COLUMNS = (
  "landmark_error_test",
  "landmark_error_train",
  "dff_error_test",
  "mean_shape_error_test",
  "foreground_iou",
  "nmi",
  "ari",
)


def run(seed: str, overrides: list[str]) -> dict:
  """Trains one seed in another process, and returns its evaluation and the minutes it took."""
  name = "_".join(["toy_faces", f"seed{seed}", *(item.removeprefix("--config.") for item in overrides)])
  workdir = pathlib.Path("runs") / name
  command = [sys.executable, "-m", "scops_jax.main", f"--config={CONFIG}", f"--workdir={workdir}"]
  began = time.monotonic()
  subprocess.run([*command, f"--config.seed={seed}", *overrides], check=True)
  results = json.loads((workdir / "evaluation.json").read_text(encoding="utf-8"))
  return {**results, "minutes": (time.monotonic() - began) / 60}


def main(arguments: list[str]) -> None:
  """Prints one row per seed."""
  seeds, overrides = arguments[0].removeprefix("--seeds=").split(","), arguments[1:]
  rows = {seed: run(seed, overrides) for seed in seeds}
  print("| seed | steps | " + " | ".join(COLUMNS) + " | smallest, largest part | minutes |")
  print("|" + "---|" * (len(COLUMNS) + 4))
  for seed, row in rows.items():
    areas = row["part_area_fractions"]
    cells = [f"{row[column]:.4f}" for column in COLUMNS]
    cells += [f"{min(areas):.3f}, {max(areas):.3f}", f"{row['minutes']:.1f}"]
    print(f"| {seed} | {row['step']} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
  main(sys.argv[1:])
