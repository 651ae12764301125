"""Loss curves as inline SVG: small multiples, one a weighted term, on one logarithmic axis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from scops_jax.report.markup import number

# Of a chart, in its own units; it is scaled to its column.
_WIDTH, _HEIGHT = 320, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 10, 8, 20  # margins about the curves
# Points a curve has at most; longer ones are averaged over runs of records.
_MAX_POINTS = 240
# Decades a logarithmic axis spans at most, below the largest value.
_MAX_DECADES = 5


@dataclass(frozen=True)
class Axis:
  """A vertical axis from `low` to `high`."""

  low: float
  high: float
  logarithmic: bool

  @classmethod
  def over(cls, values: np.ndarray, *, logarithmic: bool) -> "Axis":
    """Returns the axis that shows these values: from 0, or over at most five decades."""
    values = values[np.isfinite(values) & ((values > 0) if logarithmic else True)]
    high = float(values.max(initial=0.0)) or 1.0
    if not logarithmic:
      return cls(min(0.0, float(values.min(initial=0.0))), high, False)
    low = max(float(values.min(initial=high)), high / 10**_MAX_DECADES)
    # Half a decade at least, so that a constant is a line in the middle.
    margin = max(0.05 * np.log10(high / low), (0.5 - np.log10(high / low)) / 2)
    return cls(float(low / 10**margin), float(high * 10**margin), True)

  def position(self, values: np.ndarray) -> np.ndarray:
    """Returns 0 at `low` to 1 at `high`; NaN for what can't be shown."""
    values = np.where(np.isfinite(values), values, np.nan)
    if not self.logarithmic:
      return (values - self.low) / (self.high - self.low)
    shown = np.where(values > 0, np.maximum(values, self.low), np.nan)
    return np.log(shown / self.low) / np.log(self.high / self.low)

  def ticks(self) -> list[float]:
    """Returns round values on the axis."""
    if not self.logarithmic:
      return _round_ticks(self.low, self.high)
    powers = 10.0 ** np.arange(np.floor(np.log10(self.low)), np.ceil(np.log10(self.high)) + 1)
    decades = powers[(powers >= self.low) & (powers <= self.high)]
    if len(decades) < 2:
      decades = np.outer(powers, (1, 2, 5)).ravel()
    return [float(tick) for tick in decades if self.low <= tick <= self.high]


def training_charts(records: Sequence[Mapping[str, float]], weights: Mapping[str, float]) -> str:
  """Returns a figure for the total, for every weighted term and for the learning rate.

  Args:
    records: of metrics.jsonl; at least one.
    weights: λ of every term, `config.loss`; terms of weight 0 are left out.

  Returns:
    HTML.
  """
  steps = _thin(np.array([record["step"] for record in records], np.float64))
  total, rate = (_column(records, name) for name in ("loss", "lr"))
  terms = {name: weight * _column(records, name) for name, weight in weights.items() if weight}
  axis = Axis.over(np.concatenate([total, *terms.values()]), logarithmic=True)
  charts = [_chart("Total", "", steps, total, axis)]
  for name, values in terms.items():
    factor = f"× {number(weights[name])}"
    charts.append(_chart(name.replace("_", " ").capitalize(), factor, steps, values, axis, context=total))
  charts.append(_chart("Learning rate", "", steps, rate, Axis.over(rate, logarithmic=False)))
  return "\n".join(charts)


def _column(records: Sequence[Mapping[str, float]], name: str) -> np.ndarray:
  return _thin(np.array([record[name] for record in records], np.float64))


def _thin(values: np.ndarray) -> np.ndarray:
  """Averages over equal runs of values, so that few enough are left."""
  return np.array([run.mean() for run in np.array_split(values, min(len(values), _MAX_POINTS))])


def _chart(
  title: str,
  factor: str,
  steps: np.ndarray,
  values: np.ndarray,
  axis: Axis,
  *,
  context: np.ndarray | None = None,
) -> str:
  """Returns a figure of one curve; `context` is a curve to compare it with, drawn faintly."""
  change = f"{number(values[0])} → {number(values[-1])}"
  first, last = steps[0], steps[-1]
  span = (last - first) or 1.0

  def path(curve: np.ndarray, style: str) -> str:
    x = _LEFT + (steps - first) / span * (_WIDTH - _LEFT - _RIGHT)
    y = _HEIGHT - _BOTTOM - axis.position(curve) * (_HEIGHT - _TOP - _BOTTOM)
    return f'<path class="{style}" d="{_path(x, y)}"/>'

  marks = [_horizontal(axis, tick) for tick in axis.ticks()]
  for tick in [tick for tick in _round_ticks(first, last) if first <= tick <= last]:
    x = _LEFT + (tick - first) / span * (_WIDTH - _LEFT - _RIGHT)
    marks.append(f'<text x="{x:.1f}" y="{_HEIGHT - 5}" text-anchor="middle">{_step(tick)}</text>')
  if context is not None:
    marks.append(path(context, "context"))
  marks.append(path(values, "curve"))
  label = escape(f"{title} {factor} over the steps: {change}")
  return (
    f'<figure class="chart"><figcaption><b>{escape(title)}</b> {escape(factor)}'
    f'<span class="change">{change}</span></figcaption>'
    f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(marks)}</svg></figure>'
  )


def _horizontal(axis: Axis, tick: float) -> str:
  """Returns a grid line and its value."""
  y = _HEIGHT - _BOTTOM - float(axis.position(np.array(tick))) * (_HEIGHT - _TOP - _BOTTOM)
  return (
    f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>'
    f'<text x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{number(tick)}</text>'
  )


def _path(x: np.ndarray, y: np.ndarray) -> str:
  """Returns the commands of a line that breaks where y is NaN; a point alone is a dot."""
  commands, pen = [], "M"
  for i in range(len(x)):
    if np.isnan(y[i]):
      pen = "M"
      continue
    alone = pen == "M" and (i + 1 == len(x) or np.isnan(y[i + 1]))
    commands.append(f"{pen}{x[i]:.1f} {y[i]:.1f}" + ("h0" if alone else ""))
    pen = "L"
  return "".join(commands)


def _round_ticks(low: float, high: float) -> list[float]:
  """Returns three to six multiples of 1, 2 or 5 times a power of ten."""
  if high <= low:
    return [low]
  size = 10 ** np.floor(np.log10((high - low) / 2))
  step = next(size * factor for factor in (5, 2, 1, 0.5) if (high - low) / (size * factor) >= 2)
  return [float(step * i) for i in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]


def _step(step: float) -> str:
  return f"{step / 1000:g}k" if step >= 10_000 else f"{step:g}"
