"""Projects how training scales over chips, from the compiler's costs and the chips' published figures.

python -m experiments.scaling.projection experiments/scaling/costs.jsonl
"""

import argparse
import dataclasses
import json
import math
import pathlib
from typing import Any

# TPU v5e, published figures.
FLOPS = 197e12  # per second and chip, in bfloat16
HBM = 819e9  # bytes per second and chip
ICI = 1600e9 / 8  # bytes per second and chip, over four links in both directions
CHIPS_A_HOST = {8: 8}  # a slice of 8 chips has one host; larger slices have hosts of 4
_CORES_A_CHIP = 28  # 112 or 224 virtual CPUs per host

# Assumptions; README.md says why.
MXU_SHARE = 0.4  # share of FLOPS that convolutions of these shapes reach
ICI_SHARE = 0.5  # share of ICI for a large all-reduce, which sends and receives
HOP = 1e-6  # seconds from a chip to its neighbour, in each direction of a small all-reduce
LAUNCH = 5e-6  # seconds that even the smallest collective takes

CHIPS = (8, 16, 32, 64, 128, 256)


@dataclasses.dataclass(frozen=True)
class Cost:
  """A step's cost for a chip with n images: fixed + each · n."""

  flops: tuple[float, float]  # (fixed, each)
  bytes_accessed: tuple[float, float]
  reduced_bytes: float  # of all-reduces, independent of the batch
  num_reductions: int
  batch_bytes: float  # of an image and its map, sent from host to chip
  memory: tuple[float, float]  # bytes that a step holds, arguments and temporaries

  @classmethod
  def from_lines(cls, lines: list[dict[str, Any]]) -> "Cost":
    """Fits the lines of step_cost for two numbers of images per chip."""
    low, high = sorted(lines, key=lambda line: line["images_per_device"])
    images = low["images_per_device"], high["images_per_device"]

    def line_through(name: str) -> tuple[float, float]:
      each = (high[name] - low[name]) / (images[1] - images[0])
      return low[name] - each * images[0], each

    for entry in (low, high):
      entry["memory"] = entry["temporary_bytes"] + entry["argument_bytes"]
    reduced = high["collectives"]["all-reduce"]
    return cls(
      line_through("flops"),
      line_through("bytes_accessed"),
      reduced["bytes"],
      reduced["count"],
      high["batch_bytes"] / images[1],
      line_through("memory"),
    )


@dataclasses.dataclass(frozen=True)
class Step:
  """The time of a step by cause, in seconds."""

  arithmetic: float
  memory: float
  reduction: float
  latency: float

  @property
  def total(self) -> float:
    """Assumes that arithmetic and memory traffic overlap in a chip, and communication does not."""
    return max(self.arithmetic, self.memory) + self.reduction + self.latency


def project(cost: Cost, *, chips: int, images: float) -> Step:
  """Returns the time of a step with `images` images per chip."""
  fixed, each = cost.flops
  fixed_bytes, each_bytes = cost.bytes_accessed
  hops = 2 * math.sqrt(chips)  # to the far corner of a square of chips and back
  return Step(
    arithmetic=(fixed + each * images) / (FLOPS * MXU_SHARE),
    memory=(fixed_bytes + each_bytes * images) / HBM,
    reduction=2 * (chips - 1) / chips * cost.reduced_bytes / (ICI * ICI_SHARE),
    latency=cost.num_reductions * (LAUNCH + hops * HOP),
  )


def rows(cost: Cost, batches: dict[int, int], *, cores_each: float) -> list[str]:
  """Returns a Markdown table for {chips: global batch}; `cores_each` is host CPU seconds per image."""
  table = [
    "| chips | hosts | batch | per chip | GB/chip | arithmetic ms | memory ms | all-reduce ms | latency ms "
    "| step ms | images/s | efficiency | MB/s per host | cores per host |",
    "|" + "---:|" * 14,
  ]
  single = None
  for chips, batch in batches.items():
    images = batch / chips
    step = project(cost, chips=chips, images=images)
    hosts = chips // CHIPS_A_HOST.get(chips, 4)
    rate = batch / step.total
    single = single or rate / chips
    table.append(
      f"| {chips} | {hosts} | {batch} | {images:g} | {(cost.memory[0] + cost.memory[1] * images) / 1e9:.1f} "
      f"| {1e3 * step.arithmetic:.1f} | {1e3 * step.memory:.1f} "
      f"| {1e3 * step.reduction:.1f} | {1e3 * step.latency:.1f} | {1e3 * step.total:.1f} | {rate:.0f} "
      f"| {rate / chips / single:.2f} | {rate / hosts * cost.batch_bytes / 1e6:.0f} "
      f"| {rate / hosts * cores_each:.1f} of {_CORES_A_CHIP * chips // hosts} |"
    )
  return table


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument(
    "costs", type=pathlib.Path, help="two lines of step_cost, with different batches per chip"
  )
  parser.add_argument("--decode_ms", type=float, required=True, help="as decode_rate prints it")
  arguments = parser.parse_args()
  lines = [json.loads(line) for line in arguments.costs.read_text(encoding="utf-8").splitlines()]
  cost = Cost.from_lines(lines)
  print(cost)
  series = {
    "6 images per chip": {chips: 6 * chips for chips in CHIPS},
    "batch 48": {chips: 48 for chips in CHIPS if chips <= 48 and 48 % chips == 0},
    "batch 384": {chips: 384 for chips in CHIPS if 384 % chips == 0},
    "batch 1536": {chips: 1536 for chips in CHIPS},
  }
  for title, batches in series.items():
    print(f"\n{title}\n")
    print("\n".join(rows(cost, batches, cores_each=1e-3 * arguments.decode_ms)))


if __name__ == "__main__":
  main()
