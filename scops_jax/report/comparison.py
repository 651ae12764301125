"""Two runs side by side: their measures, what was set differently, and the parts of the same test images."""

import json
import math
import pathlib
import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from scipy.optimize import linear_sum_assignment

from scops_jax.errors import UserError
from scops_jax.report import images, measures
from scops_jax.report.gallery import LANDMARK_ERROR, Gallery
from scops_jax.report.markup import number
from scops_jax.report.page import asset, controls, loss_charts
from scops_jax.report.palette import part_colors
from scops_jax.storage.files import replacing

_LOWER_IS_BETTER = ("error", "flicker", "jitter")  # in a measure's key


class Run(NamedTuple):
  """What is known of a run."""

  name: str
  results: Mapping[str, Any]  # the entries of evaluation.json
  records: Sequence[Mapping[str, float]]  # of metrics.jsonl
  config: ConfigDict
  gallery: Gallery


def write_comparison(path: str | pathlib.Path, one: Run, other: Run) -> None:
  """Writes a page that a browser shows without a server and without any other file.

  Args:
    path: the file to write; its folder is made, a file of that name is replaced.
    one: the run A.
    other: the run B.

  Raises:
    UserError: the runs have other test images.
  """
  pairs = _common_images(one, other)
  aligned = _aligned(one.gallery, other.gallery, pairs)
  colors = part_colors(max(one.config.num_parts, other.config.num_parts))
  shown = (
    f"{len(pairs):,} of {one.gallery.num_test:,} test images, those that both reports show."
    if len(pairs) < one.gallery.num_test
    else f"All {len(pairs):,} test images."
  )
  page = string.Template(asset("comparison.html")).substitute(
    style=asset("page.css"),
    script=asset("page.js"),
    one=escape(one.name),
    other=escape(other.name),
    collection=escape(measures.collection_name(one.config)),
    verdict=_verdict(one, other),
    measures=_measure_rows(one, other),
    settings=_settings(one.config, other.config),
    gallery_summary=shown,
    controls=controls(one.gallery, colors, worst="B worse than A", best="B better than A", masks=False),
    tiles="\n".join(_tiles(one.gallery, aligned, pairs, colors)),
    charts_one=loss_charts(one.records, one.config),
    charts_other=loss_charts(other.records, other.config),
  )
  with replacing(path) as temporary:
    temporary.write_text(page, encoding="utf-8")


def _common_images(one: Run, other: Run) -> list[tuple[int, int]]:
  """Returns the positions in both galleries of the images that both hold."""
  a, b = one.gallery, other.gallery
  where = {index: position for position, index in enumerate(b.indices.tolist())}
  pairs = [(i, where[index]) for i, index in enumerate(a.indices.tolist()) if index in where]
  if a.num_test != b.num_test or not pairs or any(a.name(i) != b.name(j) for i, j in pairs):
    raise UserError(
      f"{one.name} and {other.name} were not evaluated on the same test images: give runs on one collection"
    )
  return pairs


def _aligned(one: Gallery, other: Gallery, pairs: Sequence[tuple[int, int]]) -> Gallery:
  """Returns the second gallery with its parts renumbered to those of the first that they overlap most."""
  counts = np.zeros((len(one.appearance), len(other.appearance)))
  for i, j in pairs:
    labels, theirs = one.labels[i], other.labels[j]
    rows, columns = (np.arange(n) * m // n for n, m in zip(labels.shape, theirs.shape, strict=True))
    theirs = theirs[np.ix_(rows, columns)]
    both = (labels > 0) & (theirs > 0)
    np.add.at(counts, (labels[both] - 1, theirs[both] - 1), 1)
  own, found = linear_sum_assignment(-counts)
  number_of = np.zeros(counts.shape[1] + 1, np.uint8)
  number_of[found + 1] = own + 1
  free = iter(sorted(set(range(1, max(counts.shape) + 1)) - set(number_of.tolist())))
  for part in range(1, len(number_of)):
    number_of[part] = number_of[part] or next(free)
  centers = np.zeros((len(other.centers), max(counts.shape), 2))
  centers[:, number_of[1:].astype(int) - 1] = other.centers
  return replace(other, labels=number_of[other.labels], centers=centers)


def _verdict(one: Run, other: Run) -> str:
  """Returns a sentence on the errors of the same images, which vary less than those of other images."""
  if one.gallery.error_name != other.gallery.error_name:
    return ""
  units = [run.config.data.landmark_normalizer for run in (one, other)]
  if one.gallery.error_name == LANDMARK_ERROR and units[0] != units[1]:
    return (
      f"<p>The landmark errors are in different units, {measures.LENGTHS[units[0]]} and "
      f"{measures.LENGTHS[units[1]]}: compare the rows that name their unit.</p>"
    )
  difference = other.gallery.test_errors - one.gallery.test_errors
  scored, deviation = measures.standard_error(difference)
  if scored < 2:
    return ""
  mean = float(np.nanmean(difference))
  better = np.count_nonzero(difference < 0)
  direction = "lower" if mean < 0 else "higher"
  name = escape(one.gallery.error_name)
  amount = number(abs(mean), percent=True)
  certain = abs(mean) > 2 * deviation
  sentence = (
    f"B’s {name} is {amount} {direction} than A’s"
    if certain
    else f"The {name} of A and B can’t be told apart on these images: B’s is {amount} {direction}"
  )
  return (
    f'<p class="lead">{sentence}, ±\N{NO-BREAK SPACE}{number(deviation, percent=True)} (standard error of '
    f"the difference over {scored:,} images). B is better on {better:,} of them.</p>"
    '<p class="faint">That is chance of the images only. Another seed of the same settings gives other '
    "parts: compare several seeds of each before you believe a small difference.</p>"
  )


def _measure_rows(one: Run, other: Run) -> str:
  """Returns a table row for every measure that both runs have as a number, in the same unit."""
  rows = []
  for key, title, percent in measures.titles():
    values = [value for run in (one, other) if isinstance(value := run.results.get(key), float | int)]
    units = {measures.unit_of(key, run.config) for run in (one, other)}
    if len(values) < 2 or len(units) > 1:
      continue
    lower = any(word in key for word in _LOWER_IS_BETTER)
    best = min(values) if lower else max(values)
    cells = "".join(
      f'<td class="{"better" if value == best and values[0] != values[1] else ""}">'
      f"{number(value, percent=percent)}</td>"
      for value in values
    )
    rows.append(f'<tr><th scope="row">{escape(title)}</th>{cells}</tr>')
  return "\n".join(rows)


def _settings(one: ConfigDict, other: ConfigDict) -> str:
  """Returns a table of the keys whose values differ."""
  first, second = (flatten_dict(config.to_dict(), sep=".") for config in (one, other))
  keys = sorted(key for key in first | second if first.get(key) != second.get(key))
  if not keys:
    return "<p>Nothing: both runs have the same configuration.</p>"
  rows = "".join(
    f'<tr><th scope="row">{escape(key)}</th>'
    + "".join(
      f"<td>{escape(json.dumps(values.get(key), ensure_ascii=False))}</td>" for values in (first, second)
    )
    + "</tr>"
    for key in keys
  )
  return f'<table class="config"><tbody>{rows}</tbody></table>'


def _tiles(one: Gallery, other: Gallery, pairs: Sequence[tuple[int, int]], colors: np.ndarray) -> list[str]:
  """Returns the pairs of pictures, those where B is worse first."""
  differences = np.array([other.errors[j] - one.errors[i] for i, j in pairs])
  ranked = np.argsort(-np.where(np.isnan(differences), -np.inf, differences), kind="stable")
  return [_pair(one, other, *pairs[k], difference=differences[k], colors=colors) for k in ranked]


def _pair(one: Gallery, other: Gallery, i: int, j: int, *, difference: float, colors: np.ndarray) -> str:
  errors = [
    "not scored" if math.isnan(error) else number(error, percent=True)
    for error in (one.errors[i], other.errors[j])
  ]
  return images.tile(
    images.picture(one, i, colors) + images.picture(other, j, colors),
    index=one.indices[i],
    name=one.name(i),
    error=None if math.isnan(difference) else difference,
    caption=" | ".join(errors),
  )
