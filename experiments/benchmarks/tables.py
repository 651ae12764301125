"""Formats measurements as Markdown tables, and checks that the contestants compute the same."""

from collections.abc import Mapping, Sequence

from experiments.benchmarks.contest import Timing, rounded
from scops_jax.errors import UserError

BASELINE = "pytorch"
TOLERANCE = 1e-4  # relative, of the first losses on a CPU
# Relative, of the gradient's norm. With 50 layers of batch statistics and random weights, the float32 norm is
# 1e-3 off its float64 value in either framework.
GRADIENT_TOLERANCE = 1e-2


def losses_table(losses: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
  """Returns a table of the first step's metrics and their relative differences from the baseline's."""
  others = [name for name in losses if name != BASELINE]
  compared = BASELINE in losses
  header = ["first step", *losses, *(f"{name} to {BASELINE}" for name in others if compared)]
  rows = [header, ["---", *["---:"] * (len(header) - 1)]]
  for metric in next(iter(losses.values()))[0]:
    values = {name: steps[0][metric] for name, steps in losses.items()}
    row = [metric, *(f"{value:.6g}" for value in values.values())]
    if compared:
      row += [f"{_difference(values[name], values[BASELINE]):.1e}" for name in others]
    rows.append(row)
  return _markdown(rows)


def check_losses(losses: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
  """Checks that the float32 contestants compute the same values.

  Raises:
    UserError: a loss of the first step differs from the baseline's by more than TOLERANCE, or the gradient's
      norm by more than GRADIENT_TOLERANCE.
  """
  for name, steps in losses.items():
    if BASELINE not in losses or "bfloat16" in name:
      continue
    for metric, value in steps[0].items():
      expected = losses[BASELINE][0][metric]
      tolerance = GRADIENT_TOLERANCE if metric == "gradient_norm" else TOLERANCE
      if not _difference(value, expected) <= tolerance:
        raise UserError(f"{name} does not compute the same as {BASELINE}: {metric} {value} and {expected}")


def _difference(value: float, expected: float) -> float:
  return abs(value - expected) / max(abs(expected), 1e-30)


def memory_table(peaks: Mapping[str, Mapping[str, int | None]]) -> str:
  """Returns a table of peak memory in GB.

  Args:
    peaks: for each kind of peak, the bytes of each contestant; None if unknown.
  """
  contestants = list(next(iter(peaks.values())))
  rows = [["peak memory, GB", *contestants], ["---", *["---:"] * len(contestants)]]
  for what, values in peaks.items():
    known = [value for value in values.values() if value is not None]
    if len(known) == len(contestants):
      rows.append([what, *(f"{value / 1e9:.2f}" for value in known)])
  return _markdown(rows)


def speed_table(timings: Mapping[str, Mapping[str, Timing]], images: Mapping[str, int]) -> str:
  """Returns a table with one row per piece: milliseconds, images/s, and speed relative to the baseline.

  Args:
    timings: for each piece, the timing of each contestant.
    images: for each piece, the number of images that a call processes.
  """
  contestants = list(next(iter(timings.values())))
  compared = [name for name in contestants if name != BASELINE and BASELINE in contestants]
  header = ["piece"]
  for name in contestants:
    header += [f"{name}, ms", "images/s"]
  header += [f"{name} over {BASELINE}" for name in compared]
  rows = [header, ["---", *["---:"] * (len(header) - 1)]]
  for piece, timing in timings.items():
    row = [piece]
    for name in contestants:
      row += [str(timing[name]), rounded(images[piece] / timing[name].median)]
    row += [f"{timing[name].speedup(timing[BASELINE]):.2f} ×" for name in compared]
    rows.append(row)
  return _markdown(rows)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
  return "\n".join(f"| {' | '.join(row)} |" for row in rows)
