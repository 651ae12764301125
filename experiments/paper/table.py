"""Our results on the published collections beside published figures (published.json), in per cent."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

_PUBLISHED = pathlib.Path(__file__).with_name("published.json")
# The entries of evaluation.json that a published measure may be.
_MEASURES = {
  "landmark error": ("landmark_error_test",),
  "landmark error, box sides": ("landmark_error_test_box_sides",),
  "IoU": ("foreground_iou",),
  "IoU with CRF": ("foreground_iou_crf",),
  "NMI": ("nmi", "nmi_with_background"),
  "ARI": ("ari", "ari_with_background"),
  "keypoint NMI": ("keypoint_nmi",),
  "keypoint ARI": ("keypoint_ari",),
  "keypoint box NMI": ("keypoint_box_nmi",),
  "keypoint box ARI": ("keypoint_box_ari",),
}


def published_comparison(records: Sequence[dict[str, Any]]) -> str:
  """Returns the table: a row for each published measure of a run, ours where the run has been done.

  Args:
    records: of the suite's JSONs.

  Raises:
    KeyError: published.json names a measure that is not in `_MEASURES`.
  """
  published = json.loads(_PUBLISHED.read_text(encoding="utf-8"))
  ours = {(record["variant"], record["method"]): record["results"] for record in records}
  rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
  for figure in published["figures"]:
    rows.setdefault((figure["run"], figure["measure"]), []).append(figure)
  lines = [
    "| run | measure | here | DFF here | SCOPS, paper | SCOPS, released model | others |",
    "|---|---|---|---|---|---|---|",
  ]
  for (run, measure), figures in rows.items():
    here, dff = (_ours(ours.get((run, method)), _MEASURES[measure]) for method in ("scops", "dff"))
    named = {figure["method"]: f"{figure['value']} [{figure['source']}]" for figure in figures}
    paper, released = (named.pop(name, "–") for name in ("paper", "released model"))
    others = ", ".join(f"{name} {value}" for name, value in named.items()) or "–"
    lines.append(f"| {run} | {measure} | {here} | {dff} | {paper} | {released} | {others} |")
  sources = [f"[{key}] {source}." for key, source in published["sources"].items()]
  note = "Two figures of one measure here: without and with the background's pixels."
  return "\n".join([*lines, "", f"{note} {' '.join(sources)}", ""])


def _ours(results: dict[str, Any] | None, keys: Sequence[str]) -> str:
  values = [results[key] for key in keys if results and results.get(key) is not None]
  return " / ".join(f"{100 * value:.1f}" for value in values) or "–"
