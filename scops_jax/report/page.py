"""The page of the report: results, parts, test images, training and configuration."""

import importlib.resources
import json
import pathlib
import string
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from scops_jax.report import charts, images
from scops_jax.report.gallery import Gallery
from scops_jax.report.markup import bar, number, toggle
from scops_jax.report.palette import part_colors
from scops_jax.storage.files import replacing

# What landmark errors are fractions of, by config.data.landmark_normalizer.
_LENGTHS = {
  "inter_ocular": "the distance between the eyes",
  "image": "the image’s edge",
  "box": "the longer edge of the object’s box",
}
_LANDMARK_ROWS = (
  ("landmark_error_test", "SCOPS", "ours"),
  ("dff_error_test", "DFF", ""),
  ("mean_shape_error_test", "Mean shape", ""),
)
_SEGMENTATION_ROWS = (
  ("foreground_iou", "Foreground IoU"),
  ("foreground_iou_mean", "Foreground IoU, mean over images"),
  ("foreground_iou_crf", "Foreground IoU with CRF"),
  ("nmi", "Parts: NMI"),
  ("ari", "Parts: ARI"),
  ("nmi_with_background", "NMI with background"),
  ("ari_with_background", "ARI with background"),
)
_KEYPOINT_ROWS = (
  ("keypoint_nmi", "NMI"),
  ("keypoint_ari", "ARI"),
  ("keypoint_fg_nmi", "NMI of the likeliest part"),
  ("keypoint_fg_ari", "ARI of the likeliest part"),
  ("keypoint_box_nmi", "NMI in the object’s box"),
  ("keypoint_box_ari", "ARI in the object’s box"),
)
_OTHER_UNITS = {
  "landmark_error_test_eyes": "the distance between the eyes",
  "landmark_error_test_box_edge": "the longer edge of the object’s box",
  "landmark_error_test_box_sides": "the box’s width and height separately",
  "landmark_error_test_image": "the image’s edge",
}
_CONSISTENCY = (
  ("warp_label_agreement", "agreement of labels", ""),
  ("warp_center_error", "distance of part centres", " pixels"),
  ("clip_label_flicker", "labels that change from frame to frame of a moving image", ""),
  ("clip_center_jitter", "movement of part centres there", " pixels"),
)
_FLAG_REASONS = {images.UNUSED: "less than 1\N{NO-BREAK SPACE}%", images.DOMINATING: "more than half"}


def write_report(
  path: str | pathlib.Path,
  *,
  results: Mapping[str, Any],
  records: Sequence[Mapping[str, float]],
  config: ConfigDict,
  gallery: Gallery,
) -> None:
  """Writes a page that a browser shows without a server and without any other file.

  The same arguments give the same bytes.

  Args:
    path: the file to write; its folder is made, a file of that name is replaced.
    results: the entries of evaluation.json; an error or measure that is None is shown as missing.
    records: of metrics.jsonl; there may be none.
    config: of the run.
    gallery: test images with their predictions.

  Raises:
    ValueError: the gallery or the results do not have config.num_parts parts.
  """
  num_parts, fractions = config.num_parts, results["part_area_fractions"]
  if not num_parts == len(fractions) == len(gallery.appearance):
    raise ValueError(
      f"the config has {num_parts} parts, the results have {len(fractions)} and the gallery "
      f"{len(gallery.appearance)}"
    )
  colors = part_colors(num_parts)
  name = escape(config.data.name)
  page = string.Template(_asset("page.html")).substitute(
    style=_asset("page.css"),
    script=_asset("page.js"),
    name=name,
    facts=_facts(results, config),
    comparison=_comparison(results),
    landmarks=_landmark_table(results, config),
    segmentation=_score_table("Segmentation", results, _SEGMENTATION_ROWS),
    keypoints=_score_table("Labels at landmarks", results, _KEYPOINT_ROWS),
    consistency=_consistency(results),
    part_summary=_part_summary(fractions),
    part_cards=images.part_cards(gallery, fractions, colors),
    gallery_summary=_gallery_summary(gallery),
    part_buttons=images.part_buttons(colors),
    mark_buttons=_mark_buttons(gallery),
    error_name=escape(gallery.error_name),
    tiles=images.tiles(gallery, colors),
    charts=_charts(records, config),
    config_rows=_config_rows(config),
  )
  with replacing(path) as temporary:
    temporary.write_text(page, encoding="utf-8")


def _asset(name: str) -> str:
  return importlib.resources.files("scops_jax.report").joinpath(name).read_text(encoding="utf-8")


def _facts(results: Mapping[str, Any], config: ConfigDict) -> str:
  """Returns a line that says what was run."""
  return escape(
    f"{config.num_parts} parts · step {results['step']:,} of {config.num_steps:,} · "
    f"{results['num_test']:,} test images · {config.segmenter} on {config.image_size} × {config.image_size} "
    f"pixels · seed {config.seed}"
  )


def _comparison(results: Mapping[str, Any]) -> str:
  """Returns a sentence that compares the landmark error with the baselines'."""
  ours = results["landmark_error_test"]
  if ours is None:
    return ""
  parts = []
  for key, whose in (("dff_error_test", "DFF’s"), ("mean_shape_error_test", "the mean shape’s")):
    if results[key]:
      change = ours / results[key] - 1
      size = f"{100 * abs(change):.0f}\N{NO-BREAK SPACE}%"
      parts.append(f"{size} {'below' if change < 0 else 'above'} {whose}")
  return f'<p class="lead">The landmark error is {" and ".join(parts)}.</p>' if parts else ""


def _landmark_table(results: Mapping[str, Any], config: ConfigDict) -> str:
  if results["landmark_error_test"] is None:
    return '<p class="faint">No landmark error: the collection has no annotated landmarks.</p>'
  largest = max(results[key] for key, _, _ in _LANDMARK_ROWS) or 1.0
  rows = [
    _row(name, number(results[key], percent=True), results[key] / largest, style)
    for key, name, style in _LANDMARK_ROWS
  ]
  length = _LENGTHS[config.data.landmark_normalizer]
  table = _table(f"<b>Landmark error</b>, per cent of {length}; lower is better", rows, style="landmarks")
  train = number(results["landmark_error_train"], percent=True)
  each = ", ".join(number(error, percent=True) for error in results["landmark_errors_test"])
  units = [
    f"{number(results[key], percent=True)} of {unit}"
    for key, unit in _OTHER_UNITS.items()
    if results.get(key) is not None and unit != length
  ]
  others = f" In other units: {'; '.join(units)}." if units else ""
  return (
    f'{table}<p class="faint">A linear map from part centres to landmarks, fitted to '
    f"{results['num_train']:,} training images, where SCOPS’s error is {train}. DFF factorises the "
    "reference network’s features; the mean shape does not look at the image. SCOPS’s error of each "
    f"landmark, in the collection’s order: {each}.{others}</p>"
  )


def _consistency(results: Mapping[str, Any]) -> str:
  """Returns a paragraph of what is measured without labels, or nothing where no part was found."""
  found = [
    f"{name} {number(results[key])}{unit}" for key, name, unit in _CONSISTENCY if results.get(key) is not None
  ]
  if not found:
    return ""
  for key, name in (("warp_part_agreement", "agreement"), ("part_purity", "purity in the true parts")):
    if results.get(key) is not None:
      found.append(f"{name} of each part {', '.join(map(number, results[key]))}")
  return f'<p class="faint"><b>Without labels</b>, images against their known warps: {", ".join(found)}.</p>'


def _score_table(caption: str, results: Mapping[str, Any], names: Sequence[tuple[str, str]]) -> str:
  """Returns a table of measures from 0 to 1, or nothing where none is known."""
  shown = {name: results[key] for key, name in names if key in results}
  if all(value is None for value in shown.values()):
    return ""
  rows = [_row(name, number(value), value, "ours") for name, value in shown.items()]
  missing = ", ".join(name for name, value in shown.items() if value is None)
  note = f'<p class="faint">{missing}: no such ground truth.</p>' if missing else ""
  return _table(f"<b>{caption}</b>, from 0 to 1; higher is better", rows) + note


def _table(caption: str, rows: Sequence[str], *, style: str = "") -> str:
  body = "\n".join(rows)
  return f'<table class="measures {style}"><caption>{caption}</caption><tbody>{body}</tbody></table>'


def _row(name: str, value: str, fraction: float | None, style: str) -> str:
  return (
    f'<tr class="{style}"><th scope="row">{escape(name)}</th><td>{bar(fraction)}</td>'
    f'<td class="value">{value}</td></tr>'
  )


def _part_summary(fractions: Sequence[float]) -> str:
  """Returns a sentence for each part that is nearly unused or dominates."""
  sentences = [
    f"Part {i} {flag}: it has {_FLAG_REASONS[flag]} of the foreground."
    for i, flag in enumerate(map(images.part_flag, fractions), 1)
    if flag
  ]
  return " ".join(sentences) or "Every part is in use and none dominates."


def _gallery_summary(gallery: Gallery) -> str:
  shown, worst = len(gallery.images), gallery.num_worst
  if shown == gallery.num_test:
    return f"All {shown:,} test images."
  worst_ones = f"the {worst} with the largest {escape(gallery.error_name)} and " if worst else ""
  rest = f"{shown - worst} spread evenly over the others" if worst else "spread evenly over all"
  return f"{shown} of {gallery.num_test:,} test images: {worst_ones}{rest}."


def _mark_buttons(gallery: Gallery) -> str:
  marks = {"centers": "Part centres"}
  if gallery.landmarks is not None:
    marks["annotated"] = "Annotated landmarks"
  if gallery.predicted is not None:
    marks["predicted"] = "Predicted landmarks"
  return "\n".join(toggle(name, f'<i class="mark {name}"></i>{text}') for name, text in marks.items())


def _charts(records: Sequence[Mapping[str, float]], config: ConfigDict) -> str:
  if not records:
    return '<p class="faint">No step has been logged.</p>'
  uri = charts.loss_curves_uri(records, weights=config.loss.to_dict())
  return (
    '<p class="faint">Loss terms times their weights on one logarithmic axis, with the total in grey; first '
    "and last value beside the name.</p>"
    f'<div class="curves" tabindex="0"><img src="{uri}" alt="loss curves"></div>'
  )


def _config_rows(config: ConfigDict) -> str:
  return "\n".join(
    f'<tr><th scope="row">{escape(key)}</th><td>{escape(json.dumps(value, ensure_ascii=False))}</td></tr>'
    for key, value in flatten_dict(config.to_dict(), sep=".").items()
  )
