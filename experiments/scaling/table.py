"""A Markdown table of what tpu_program wrote.

python -m experiments.scaling.table experiments/scaling/programs/*.json
"""

import argparse
import json
import pathlib
from typing import Any

COLUMNS = (
  *("program", "chip", "chips", "images a chip", "dtype", "TFLOP", "GB", "temporaries GiB", "code MiB"),
  *("collectives", "compile s", "arithmetic ms", "roofline ms"),
)


def row(program: dict[str, Any]) -> list[str]:
  """Returns the cells of a program's JSON."""
  config = pathlib.PurePath(program["config"]).stem
  name = f"{config} {program['step']}"
  if program["step"] == "train":
    name += f", {program['parallelism']}"
  return [
    name,
    program["topology"],
    str(program["chips"]),
    str(program["images_per_chip"]),
    program["compute_dtype"],
    f"{program['flops'] / 1e12:.3g}",
    f"{program['bytes_accessed'] / 1e9:.3g}",
    f"{program['temp_bytes'] / 2**30:.2f}",
    f"{program['code_bytes'] / 2**20:.0f}",
    str(sum(kind["count"] for kind in program["collectives"].values())),
    f"{program['compile_seconds']:.0f}",
    f"{program['arithmetic_ms']:.1f}",
    f"{program['roofline_ms']:.1f}",
  ]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("programs", nargs="+", type=pathlib.Path, help="JSON files of tpu_program")
  programs = [json.loads(path.read_text(encoding="utf-8")) for path in parser.parse_args().programs]
  for cells in (COLUMNS, ["---"] * 2 + ["---:"] * (len(COLUMNS) - 2), *map(row, programs)):
    print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
  main()
