"""The measures of a run in plain words: tables with bars, and what they do and do not say."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from scops_jax.report.gallery import Gallery
from scops_jax.report.markup import bar, number

# What landmark errors are fractions of, by config.data.landmark_normalizer.
LENGTHS = {
  "inter_ocular": "the distance between the eyes",
  "image": "the image’s edge",
  "box": "the longer edge of the object’s box",
}
LANDMARK_ROWS = (
  ("landmark_error_test", "SCOPS", "ours"),
  ("dff_error_test", "DFF", ""),
  ("mean_shape_error_test", "Mean shape", ""),
)
SEGMENTATION_ROWS = (
  ("foreground_iou", "Foreground IoU"),
  ("foreground_iou_mean", "Foreground IoU, mean over images"),
  ("foreground_iou_crf", "Foreground IoU with CRF"),
  ("nmi", "Parts: NMI"),
  ("ari", "Parts: ARI"),
  ("nmi_with_background", "NMI with background"),
  ("ari_with_background", "ARI with background"),
)
KEYPOINT_ROWS = (
  ("keypoint_nmi", "NMI"),
  ("keypoint_ari", "ARI"),
  ("keypoint_fg_nmi", "NMI of the likeliest part"),
  ("keypoint_fg_ari", "ARI of the likeliest part"),
  ("keypoint_box_nmi", "NMI in the object’s box"),
  ("keypoint_box_ari", "ARI in the object’s box"),
)
OTHER_UNITS = {
  "landmark_error_test_eyes": "the distance between the eyes",
  "landmark_error_test_box_edge": "the longer edge of the object’s box",
  "landmark_error_test_box_sides": "the box’s width and height separately",
  "landmark_error_test_image": "the image’s edge",
}
# Measures that need no labels: the key, what it is, and its unit; None: a share.
CONSISTENCY_ROWS: tuple[tuple[str, str, str | None], ...] = (
  ("warp_label_agreement", "Pixels that keep their part when the image is turned, shrunk and moved", None),
  ("warp_center_error", "Distance of part centres from where they should have moved to", "pixels"),
  ("clip_label_flicker", "Pixels that change their part between frames of a moving image", None),
  ("clip_center_jitter", "Distance that part centres jump between these frames", "pixels"),
)
_PART_LISTS = (
  ("warp_part_agreement", "Of each part’s pixels, those that keep it when the image is moved"),
  ("part_purity", "Purity of each part: its largest share in one true part"),
)
_FEW_TEST_IMAGES = 50
_FEW_TRAINING_IMAGES = 100  # runs/sizes.py takes fewer parts below
_FEW_PER_COEFFICIENT = 5  # images of the regression for each coefficient that is fitted to them


def results_section(results: Mapping[str, Any], config: ConfigDict, gallery: Gallery) -> str:
  """Returns blocks of measures and notes, which the page flows into as many columns as it has room for."""
  blocks = [
    _landmark_table(results, config),
    _each_landmark(results, gallery.landmark_names),
    _score_table("Labels at landmarks", results, KEYPOINT_ROWS),
    _score_table("Segmentation", results, SEGMENTATION_ROWS),
    _consistency(results),
    _notes(results, config, gallery),
  ]
  return "\n".join(f'<div class="block">{block}</div>' for block in blocks if block)


def comparison_sentence(results: Mapping[str, Any]) -> str:
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


def collection_name(config: ConfigDict) -> str:
  """Returns what a run was trained on, for people: the folder's name for own images."""
  if config.data.name == "image_folder":
    return Path(config.data.dir).absolute().name
  return str(config.data.name)


def titles() -> list[tuple[str, str, bool]]:
  """Returns key, title and whether it is shown in per cent of every measure that is one number."""
  return [
    ("landmark_error_test", "Landmark error", True),
    *((key, f"Landmark error, of {unit}", True) for key, unit in OTHER_UNITS.items()),
    *((key, title, False) for key, title in SEGMENTATION_ROWS),
    *((key, f"At landmarks: {title}", False) for key, title in KEYPOINT_ROWS),
    *(
      (key, title if unit is None else f"{title}, {unit}", unit is None)
      for key, title, unit in CONSISTENCY_ROWS
    ),
  ]


def unit_of(measure: str, config: ConfigDict) -> str | int | None:
  """Returns the value of the config that decides a measure's unit; None if its unit is always the same."""
  if measure == "landmark_error_test":
    return config.data.landmark_normalizer
  in_pixels = {key for key, _, unit in CONSISTENCY_ROWS if unit is not None}
  return config.image_size if measure in in_pixels else None


def foreground_truth(results: Mapping[str, Any], config: ConfigDict) -> str:
  """Returns in a sentence what the predicted foreground is compared with."""
  own = config.data.name == "image_folder"
  if results["nmi"] is not None:
    return "The foreground is compared with the ground-truth parts, all of them together."
  if config.data.saliency == "auto":
    return (
      "The foreground is compared with masks that were computed from the images, without labels "
      "(data.saliency=auto). They are no ground truth: the IoU says how well the parts cover these masks, "
      "not how right the masks are. Look at them beside the parts below."
    )
  if config.data.saliency == "ones":
    return (
      "There are no masks (data.saliency=ones): every pixel counts as foreground, and the IoU says little."
    )
  whose = "your masks, or the images’ transparency" if own else "the collection’s saliency maps"
  return f"The foreground is compared with {whose}."


def _landmark_table(results: Mapping[str, Any], config: ConfigDict) -> str:
  if results["landmark_error_test"] is None:
    return ""
  largest = max(results[key] for key, _, _ in LANDMARK_ROWS) or 1.0
  rows = [
    _row(name, number(results[key], percent=True), results[key] / largest, style)
    for key, name, style in LANDMARK_ROWS
  ]
  length = LENGTHS[config.data.landmark_normalizer]
  table = _table(f"<b>Landmark error</b>, per cent of {length}; lower is better", rows, style="landmarks")
  train = number(results["landmark_error_train"], percent=True)
  units = [
    f"{number(results[key], percent=True)} of {unit}"
    for key, unit in OTHER_UNITS.items()
    if results.get(key) is not None and unit != length
  ]
  others = f" In other units: {'; '.join(units)}." if units else ""
  return (
    f'{table}<p class="faint">A linear map from part centres to landmarks, fitted to '
    f"{results['num_train']:,} training images, where SCOPS’s error is {train}. DFF factorises the "
    f"reference network’s features; the mean shape does not look at the image.{others}</p>"
  )


def _each_landmark(results: Mapping[str, Any], names: Sequence[str]) -> str:
  """Returns a table of SCOPS's error of every landmark, or nothing without landmarks."""
  errors = results["landmark_errors_test"]
  if results["landmark_error_test"] is None or not errors:
    return ""
  titles = [name.replace("_", " ") for name in names] or [f"Landmark {i}" for i in range(1, len(errors) + 1)]
  largest = max((error for error in errors if error is not None), default=0.0) or 1.0
  rows = [
    _row(title, number(error, percent=True), None if error is None else error / largest, "ours")
    for title, error in zip(titles, errors, strict=True)
  ]
  return _table("<b>SCOPS’s error of each landmark</b>, test images", rows, style="each")


def _score_table(caption: str, results: Mapping[str, Any], names: Sequence[tuple[str, str]]) -> str:
  """Returns a table of measures from 0 to 1, or nothing where none is known."""
  shown = {name: results[key] for key, name in names if key in results}
  if all(value is None for value in shown.values()):
    return ""
  rows = [_row(name, number(value), value, "ours") for name, value in shown.items() if value is not None]
  missing = ", ".join(name for name, value in shown.items() if value is None)
  note = f'<p class="faint">{missing}: no such ground truth.</p>' if missing else ""
  return _table(f"<b>{caption}</b>, from 0 to 1; higher is better", rows) + note


def _consistency(results: Mapping[str, Any]) -> str:
  """Returns a table of what is measured without labels, or nothing where no part was found."""
  rows = [
    _row(name, number(value, percent=True) if unit is None else f"{number(value)} {unit}", None, "told")
    for key, name, unit in CONSISTENCY_ROWS
    if (value := results.get(key)) is not None
  ]
  lists = [
    f"{name}: {', '.join(number(share) for share in results[key])} (parts 1 to {len(results[key])})."
    for key, name in _PART_LISTS
    if results.get(key) is not None
  ]
  note = f'<p class="faint">{" ".join(lists)}</p>' if lists else ""
  return (_table("<b>Consistency</b>, measured without labels", rows) if rows else "") + note


def _notes(results: Mapping[str, Any], config: ConfigDict, gallery: Gallery) -> str:
  """Returns what the numbers are worth: their truth, and how far chance moves them."""
  notes = [foreground_truth(results, config)]
  if results["landmark_error_test"] is None:
    notes.append("There is no landmark error: the collection has no annotated landmarks.")
    if results["num_train"] < _FEW_TRAINING_IMAGES:
      notes.append(
        f'<span class="flag">Only {results["num_train"]:,} training images:</span> parts may suit these '
        "better than any others."
      )
  count = results["num_test"]
  if count < _FEW_TEST_IMAGES:
    notes.append(f'<span class="flag">Only {count:,} test images:</span> the measures are rough.')
  scored, deviation = standard_error(gallery.test_errors)
  if scored > 1:
    notes.append(
      f"Chance: the mean {escape(gallery.error_name)} of {scored:,} test images is uncertain by "
      f"±\N{NO-BREAK SPACE}{number(deviation, percent=True)} (one standard error). Other images of the same "
      "kind would move it by about that much, and another seed moves it too. Take no smaller difference "
      "between two runs for a finding."
    )
  coefficients = 2 * config.num_parts
  if (
    results["landmark_error_test"] is not None and results["num_train"] < _FEW_PER_COEFFICIENT * coefficients
  ):
    notes.append(
      f'<span class="flag">Few images with landmarks:</span> each landmark coordinate is a sum with '
      f"{coefficients} coefficients, fitted to {results['num_train']:,} images. If the error is much smaller "
      "on them than on the test images, the fit is to blame, not the parts."
    )
  items = "".join(f"<li>{note}</li>" for note in notes)
  return f"<h3>What these numbers are worth</h3><ul>{items}</ul>"


def standard_error(errors: np.ndarray) -> tuple[int, float]:
  """Returns how many errors are not NaN, and the standard error of their mean, NaN for fewer than two."""
  known = errors[np.isfinite(errors)]
  return len(known), float(known.std(ddof=1) / math.sqrt(len(known))) if len(known) > 1 else math.nan


def _table(caption: str, rows: Sequence[str], *, style: str = "") -> str:
  body = "\n".join(rows)
  return f'<table class="measures {style}"><caption>{caption}</caption><tbody>{body}</tbody></table>'


def _row(name: str, value: str, fraction: float | None, style: str) -> str:
  """Returns a row with a bar; without one in the style "told", whose values have different units."""
  cell = "" if style == "told" else f"<td>{bar(fraction)}</td>"
  return f'<tr class="{style}"><th scope="row">{escape(name)}</th>{cell}<td class="value">{value}</td></tr>'
