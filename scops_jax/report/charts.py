"""Curves of a training: one picture of all loss terms, and a chart of each for the report."""

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scops_jax.report.markup import number
from scops_jax.storage.files import replacing

# A chart of the report, in CSS pixels; it is scaled to the width of its column.
_WIDTH, _HEIGHT = 320, 150
_MAX_POINTS = 240  # of a curve; longer ones are averaged over runs of records
_MAX_DECADES = 5  # of a logarithmic axis, below the largest value
_STEPS = (1, 2, 5, 10)  # between the ticks of a linear axis, times a power of ten
# Colours of the charts and the properties of page.css that replace them, so that they follow its scheme.
_OURS, _BASELINE, _FAINT, _LINE = "#2864b4", "#a9a9a2", "#66665f", "#deded9"
_PROPERTIES = {_OURS: "--ours", _BASELINE: "--baseline", _FAINT: "--faint", _LINE: "--line"}


def loss_curves(
  records: Sequence[Mapping[str, float]], path: str | Path, *, weights: Mapping[str, float]
) -> None:
  """Writes a PNG of the weighted loss terms, their total and the learning rate over the steps.

  Args:
    records: of `metrics.jsonl`: `step`, `loss` (the total), the unweighted terms and `lr`.
    path: file to write; its folder is made, a file of that name is replaced.
    weights: weight λ of every term, `config.loss`; terms of weight 0 are left out.

  Raises:
    ValueError: there are no records, or one lacks a key.
  """
  terms = [term for term, weight in weights.items() if weight]
  missing = sorted({key for record in records for key in ("step", "loss", "lr", *terms) if key not in record})
  if not records or missing:
    raise ValueError(
      f"loss curves need at least one record with step, loss, lr and the terms; missing {missing}"
    )
  steps, total, rate = (_column(records, name) for name in ("step", "loss", "lr"))
  figure = Figure(figsize=(9, 6), layout="constrained")
  top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
  top.plot(steps, total, color="black", linewidth=2, label="total")
  for term in terms:
    values = weights[term] * _column(records, term)
    top.plot(steps, values, linewidth=1.2, label=f"{term.replace('_', ' ')} × {weights[term]:g}")
  top.set(yscale="log", ylabel="weighted loss")
  top.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
  bottom.plot(steps, rate, color="black", linewidth=1.2)
  bottom.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
  for axes in (top, bottom):
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
  with replacing(path) as temporary:
    figure.savefig(temporary, format="png", dpi=120)


def training_charts(records: Sequence[Mapping[str, float]], weights: Mapping[str, float]) -> str:
  """Returns a chart of the total, of every weighted term and of the learning rate.

  Args:
    records: of `metrics.jsonl`; at least one.
    weights: weight λ of every term, `config.loss`; terms of weight 0 are left out.

  Returns:
    HTML: a figure with inline SVG for each. All losses have the same logarithmic axis.
  """
  steps, total, rate = (_thin(_column(records, name)) for name in ("step", "loss", "lr"))
  terms = {name: weight * _thin(_column(records, name)) for name, weight in weights.items() if weight}
  limits = _logarithmic_limits(np.concatenate([total, *terms.values()]))
  charts = [_chart("Total", steps, total, limits=limits)]
  for name, values in terms.items():
    title = name.replace("_", " ").capitalize()
    factor = f"× {number(weights[name])}"
    charts.append(_chart(title, steps, values, factor=factor, limits=limits, context=total))
  charts.append(_chart("Learning rate", steps, rate))
  return "\n".join(charts)


def _column(records: Sequence[Mapping[str, float]], name: str) -> np.ndarray:
  return np.array([record[name] for record in records], np.float64)


def _thin(values: np.ndarray) -> np.ndarray:
  """Averages over equal runs of values, so that few enough are left."""
  return np.array([run.mean() for run in np.array_split(values, min(len(values), _MAX_POINTS))])


def _logarithmic_limits(values: np.ndarray) -> tuple[float, float]:
  """Returns the limits of an axis for the positive values: at most five decades, at least half of one."""
  values = values[np.isfinite(values) & (values > 0)]
  high = float(values.max(initial=0.0)) or 1.0
  low = max(float(values.min(initial=high)), high / 10**_MAX_DECADES)
  margin = 10 ** max(0.05 * np.log10(high / low), (0.5 - np.log10(high / low)) / 2)
  return low / margin, high * margin


def _chart(
  title: str,
  steps: np.ndarray,
  values: np.ndarray,
  *,
  factor: str = "",
  limits: tuple[float, float] | None = None,
  context: np.ndarray | None = None,
) -> str:
  """Returns a figure with one curve.

  Args:
    title: what the values are.
    steps: `[N]`.
    values: `[N]`.
    factor: the weight that the values contain, shown beside the title.
    limits: of a logarithmic axis; None: a linear axis from 0.
    context: `[N]`, a curve to compare with, drawn faintly.
  """
  figure = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72))
  axes = figure.add_axes((42 / _WIDTH, 20 / _HEIGHT, 1 - 52 / _WIDTH, 1 - 28 / _HEIGHT))
  if context is not None:
    _plot(axes, steps, context, limits, color=_BASELINE, linewidth=1.0)
  _plot(axes, steps, values, limits, color=_OURS, linewidth=1.8)
  if limits is None:
    axes.set_ylim(0, None)
    axes.yaxis.set_major_locator(ticker.MaxNLocator(5, steps=_STEPS))
  else:
    few = limits[1] / limits[0] < 100
    axes.set(yscale="log", ylim=limits)
    axes.yaxis.set_major_locator(
      ticker.LogLocator(subs=(1, 2, 5) if few else (1,), numticks=_MAX_DECADES + 2)
    )
    axes.yaxis.set_minor_locator(ticker.NullLocator())
  axes.xaxis.set_major_locator(ticker.MaxNLocator(5, steps=_STEPS, integer=True, min_n_ticks=1))
  axes.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}k" if step >= 10_000 else f"{step:g}")
  axes.yaxis.set_major_formatter(lambda value, _: number(value))
  axes.margins(x=0.02)
  axes.grid(axis="y", color=_LINE)
  axes.set_axisbelow(True)
  axes.spines[:].set_visible(False)
  axes.tick_params(length=0, labelsize=10.5, labelcolor=_FAINT)
  axes.patch.set_visible(False)
  change = f"{number(values[0])} → {number(values[-1])}"
  label = escape(f"{title} {factor} over the steps: {change}")
  return (
    f'<figure class="chart"><figcaption><b>{escape(title)}</b> {escape(factor)}'
    f'<span class="change">{change}</span></figcaption>'
    f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{_svg(figure)}</svg></figure>'
  )


def _plot(
  axes: Axes,
  steps: np.ndarray,
  values: np.ndarray,
  limits: tuple[float, float] | None,
  *,
  color: str,
  linewidth: float,
) -> None:
  """Draws a curve that breaks where there is nothing to show: a value not finite or, on a logarithm, ≤ 0."""
  shown = np.isfinite(values)
  if limits is not None:
    shown &= values > 0
    values = np.maximum(values, limits[0])
  values = np.where(shown, values, np.nan)
  if len(steps) == 1:  # a line of length 0, which round ends make a dot
    steps, values, linewidth = np.repeat(steps, 2), np.repeat(values, 2), 3 * linewidth
  axes.plot(steps, values, color=color, linewidth=linewidth, solid_capstyle="round")


def _svg(figure: Figure) -> str:
  """Returns the content of a figure's SVG, for an svg element of the page."""
  file = io.StringIO()
  with matplotlib.rc_context({"svg.fonttype": "none"}):
    figure.savefig(file, format="svg", transparent=True)
  content = re.search(r'<g id="figure_1">.*</g>', file.getvalue(), re.DOTALL)
  assert content is not None
  # An id occurs once in a page, and text has the font of the page.
  plain = re.sub(r' (id|clip-path)="[^"]*"| font-family: [^;]*;', "", content.group())
  return re.sub("|".join(_PROPERTIES), lambda color: f"var({_PROPERTIES[color.group()]})", plain)
