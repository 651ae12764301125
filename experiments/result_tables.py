"""Tables and figures of a suite, made from the JSONs of its runs alone (experiments/run.py writes them)."""

import json
import pathlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from experiments.paper.table import published_comparison
from scops_jax.storage.files import replacing

Record = dict[str, Any]

# Heading, entry of evaluation.json, factor, digits.
COLUMNS = (
  ("landmark error", "landmark_error_test", 1, 4),
  ("IoU", "foreground_iou", 1, 3),
  ("NMI", "nmi", 1, 3),
  ("ARI", "ari", 1, 3),
  ("keypoint NMI", "keypoint_nmi", 1, 3),
  ("keypoint ARI", "keypoint_ari", 1, 3),
  ("warped centres, px", "warp_center_error", 1, 2),
  ("warped labels", "warp_label_agreement", 1, 3),
  ("flicker", "clip_label_flicker", 1, 3),
)
# Measures of which more is worse.
_LOWER = ("landmark_error_test", "warp_center_error", "clip_label_flicker")
_DECISIVE = ("landmark_error_test", "foreground_iou", "keypoint_nmi", "keypoint_ari")
_METHODS = {
  "scops": "SCOPS",
  "mean_shape": "mean shape",
  "saliency_moments": "centre and moments of the saliency",
  "dff": "DFF",
  "kmeans": "k-means on features",
  "kmeans_place": "k-means on features and place",
  "linear_probe": "linear probe, supervised",
}


def write(folder: pathlib.Path, setting: str) -> None:
  """Writes the tables of a setting between the comments of its name in folder/README.md, and the figure.

  Raises:
    SystemExit: the README has no such comments.
  """
  records = read(folder / "results" / setting)
  if folder.name == "paper":
    text = published_comparison(records)
  elif not records:
    return
  else:
    figure = f"results_{setting}.png"
    draw(records, folder / figure)
    text = markdown(records) + f"\n![Landmark error and keypoint NMI of every run]({figure})\n"
  readme = folder / "README.md"
  opening, closing = f"<!-- results: {setting} -->\n", f"<!-- end of results: {setting} -->\n"
  content = readme.read_text(encoding="utf-8")
  if opening not in content or closing not in content:
    raise SystemExit(f"{readme} has no lines {opening.strip()} and {closing.strip()}")
  before, rest = content.split(opening, 1)
  after = rest.split(closing, 1)[1]
  with replacing(readme) as temporary:
    temporary.write_text(before + opening + text + closing + after, encoding="utf-8")


def read(results: pathlib.Path) -> list[Record]:
  """Returns the records of a folder of JSONs that have results, by name."""
  records = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json")))
  return [record for record in records if record["results"] is not None]


def markdown(records: Sequence[Record]) -> str:
  """Returns the tables of an ablation suite."""
  by_variant, by_method = defaultdict(list), defaultdict(list)
  for record in records:
    if record["method"] == "scops":
      by_variant[record["variant"]].append(record)
    if record["variant"] == "default":
      by_method[record["method"]].append(record)
  variants = sorted(by_variant, key=lambda name: (name != "default", name))
  methods = [(name, by_method[method]) for method, name in _METHODS.items() if by_method[method]]
  return "\n".join(
    [
      "SCOPS and its baselines, mean ± standard deviation over the seeds:\n",
      *_table(methods),
      "\nOne thing changed:\n",
      *_table([(name, by_variant[name]) for name in variants]),
      f"\n{_verdict(by_variant)}\n",
      _costs(records),
      "",
    ]
  )


def _table(rows: Sequence[tuple[str, Sequence[Record]]]) -> list[str]:
  lines = [
    "| | seeds | " + " | ".join(heading for heading, *_ in COLUMNS) + " | smallest part |",
    "|" + "---|" * (len(COLUMNS) + 3),
  ]
  for name, records in rows:
    cells = [_cell(records, key, factor, digits) for _, key, factor, digits in COLUMNS]
    smallest = [min(record["results"]["part_area_fractions"]) for record in records]
    seeds = ", ".join(str(record["seed"]) for record in sorted(records, key=lambda record: record["seed"]))
    lines.append(f"| {name} | {seeds} | " + " | ".join(cells) + f" | {_spread(smallest, 3)} |")
  return lines


def _values(records: Sequence[Record], key: str) -> list[float]:
  return [record["results"][key] for record in records if record["results"].get(key) is not None]


def _cell(records: Sequence[Record], key: str, factor: float, digits: int) -> str:
  values = [factor * value for value in _values(records, key)]
  return _spread(values, digits) if values else "–"


def _spread(values: Sequence[float], digits: int) -> str:
  """Returns the mean, and the deviation of a sample if there is more than one value."""
  mean = f"{np.mean(values):.{digits}f}"
  return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean


def _verdict(by_variant: dict[str, list[Record]]) -> str:
  """Says which terms' removal makes no decisive measure worse by more than the default's deviation."""
  default = by_variant.get("default", [])
  removed = sorted(name for name in by_variant if name.startswith("without "))
  if len(default) < 2 or not removed:
    return (
      "Whether a term can be left out is not known: that needs two seeds of the default and a run without it."
    )
  harmless, harmful = [], []
  for name in removed:
    worse = []
    for key in _DECISIVE:
      ours, theirs = _values(default, key), _values(by_variant[name], key)
      if ours and theirs:
        loss = np.mean(theirs) - np.mean(ours) if key in _LOWER else np.mean(ours) - np.mean(theirs)
        if loss > np.std(ours, ddof=1):
          worse.append(key)
    (harmful if worse else harmless).append(f"{name} ({', '.join(worse)})" if worse else name)
  named = ", ".join(f"`{key}`" for key in _DECISIVE)
  return (
    f"Worse than the default by more than its deviation over seeds, in {named}: "
    f"{'; '.join(harmful) or 'none'}. Nothing worse: {'; '.join(harmless) or 'none'}."
  )


def _costs(records: Sequence[Record]) -> str:
  """Says what was run, and what it took."""
  scops = [record for record in records if record["method"] == "scops"]
  steps = ", ".join(map(str, sorted({record["results"]["step"] for record in scops})))
  minutes = [record["minutes"] for record in scops]
  loads = [record["load"] for record in records]
  total = sum(record["minutes"] for record in records)
  machines = " and ".join(sorted({record["machine"] for record in records}))
  return (
    f"{len(scops)} runs of {steps} steps took {min(minutes):.1f} to {max(minutes):.1f} minutes each, with "
    f"{len(records) - len(scops)} measurements of baselines {total:.0f} minutes in all, on "
    f"{machines} that {min(loads):.0f} to {max(loads):.0f} processes shared. Each JSON has its "
    "command, time and commit."
  )


def draw(records: Sequence[Record], path: pathlib.Path) -> None:
  """Writes a PNG with a dot for each run: landmark error and keypoint NMI, by variant and baseline."""
  groups: dict[str, list[Record]] = defaultdict(list)
  for record in records:
    if record["method"] == "scops":
      groups[record["variant"]].append(record)
    elif record["variant"] == "default":
      groups[_METHODS[record["method"]]].append(record)
  baselines = [name for name in _METHODS.values() if name in groups]
  variants = sorted((name for name in groups if name not in baselines), key=lambda n: (n != "default", n))
  names = [*variants, *baselines]
  figure = Figure(figsize=(9, 0.8 + 0.27 * len(names)), layout="constrained")
  axes = figure.subplots(1, 2, sharey=True)
  for axis, key, title in zip(
    axes,
    ("landmark_error_test", "keypoint_nmi"),
    ("landmark error, lower is better", "keypoint NMI"),
    strict=True,
  ):
    for row, name in enumerate(names):
      values = _values(groups[name], key)
      color = "tab:orange" if name in baselines else "tab:blue"
      axis.plot(values, [row] * len(values), "o", color=color, alpha=0.7, markersize=5)
    axis.set_title(title, fontsize=9)
    axis.grid(axis="x", alpha=0.3)
    axis.tick_params(labelsize=8)
  axes[0].set_xscale("log")
  # Errors often lie within one power of ten, where matplotlib's labels overlap.
  axes[0].xaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
  axes[0].xaxis.set_major_formatter("{x:g}")
  axes[0].xaxis.set_minor_locator(ticker.NullLocator())
  axes[0].set_yticks(range(len(names)), names)
  axes[0].invert_yaxis()
  with replacing(path) as temporary:
    figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})
