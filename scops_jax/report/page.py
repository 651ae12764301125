"""The page of the report: results, parts, test images, training and configuration."""

import importlib.resources
import json
import pathlib
import string
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from scops_jax.report import charts, images, measures
from scops_jax.report.gallery import Gallery
from scops_jax.report.markup import toggle
from scops_jax.report.palette import part_colors
from scops_jax.storage.files import replacing

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
  page = string.Template(asset("page.html")).substitute(
    style=asset("page.css"),
    script=asset("page.js"),
    name=escape(measures.collection_name(config)),
    facts=_facts(results, config),
    comparison=measures.comparison_sentence(results),
    measures=measures.results_section(results, config, gallery),
    part_summary=_part_summary(fractions),
    part_cards=images.part_cards(gallery, fractions, colors),
    gallery_summary=_gallery_summary(gallery),
    controls=controls(
      gallery, colors, worst=f"largest {gallery.error_name}", best=f"smallest {gallery.error_name}"
    ),
    error_name=escape(gallery.error_name),
    masks=" Beside each the mask that its foreground is compared with." if images.has_masks(gallery) else "",
    tiles=images.tiles(gallery, colors),
    charts=loss_charts(records, config),
    config_rows=_config_rows(config),
  )
  with replacing(path) as temporary:
    temporary.write_text(page, encoding="utf-8")


def asset(name: str) -> str:
  """Returns a file that is part of the pages."""
  return importlib.resources.files("scops_jax.report").joinpath(name).read_text(encoding="utf-8")


def _facts(results: Mapping[str, Any], config: ConfigDict) -> str:
  """Returns a line that says what was run."""
  return escape(
    f"{config.num_parts} parts · step {results['step']:,} of {config.num_steps:,} · "
    f"{results['num_test']:,} test images · {config.segmenter} on {config.image_size} × {config.image_size} "
    f"pixels · seed {config.seed}"
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
  worst_ones = (
    f", and the {worst} with the largest {escape(gallery.error_name)} of the others" if worst else ""
  )
  return f"{shown} of {gallery.num_test:,} test images: {shown - worst} spread evenly over all{worst_ones}."


def controls(gallery: Gallery, colors: np.ndarray, *, worst: str, best: str, masks: bool = True) -> str:
  """Returns the controls above a gallery.

  Args:
    gallery: decides which marks there are.
    colors: of the parts, `[K, 3]` uint8.
    worst: what the order that begins with the worst images puts first.
    best: the same of the best.
    masks: whether the pictures have their masks beside them, if the gallery has masks.
  """
  return string.Template(asset("controls.html")).substitute(
    mark_buttons=_mark_buttons(gallery, masks=masks),
    worst=escape(worst),
    best=escape(best),
    part_buttons=images.part_buttons(colors),
  )


def _mark_buttons(gallery: Gallery, *, masks: bool) -> str:
  """Returns a button for every kind of mark that the pictures have."""
  marks = {"centers": "Part centres"}
  if gallery.landmarks is not None:
    marks["annotated"] = "Annotated landmarks"
  if gallery.predicted is not None:
    marks["predicted"] = "Predicted landmarks"
  buttons = [toggle(name, f'<i class="mark {name}"></i>{text}') for name, text in marks.items()]
  if masks and images.has_masks(gallery):
    buttons.append(toggle("mask", "Masks"))
  return "\n".join(buttons)


def loss_charts(records: Sequence[Mapping[str, float]], config: ConfigDict) -> str:
  """Returns the curves of a training."""
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
