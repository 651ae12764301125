"""Curves of a training: the total loss, every weighted term and the learning rate over the steps."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scops_jax.report.markup import data_uri, number
from scops_jax.storage.files import replacing

_COLUMNS = 3
_MAX_POINTS = 240  # of a curve; longer ones are averaged over runs of records
_MAX_RANGE = 1e5  # of the losses' logarithmic axis


def loss_curves(
  records: Sequence[Mapping[str, float]], path: str | Path, *, weights: Mapping[str, float]
) -> None:
  """Writes a PNG of the curves.

  Args:
    records: of `metrics.jsonl`: `step`, `loss` (the total), the unweighted terms and `lr`.
    path: file to write; its folder is made, a file of that name is replaced.
    weights: weight λ of every term, `config.loss`; terms of weight 0 are left out.

  Raises:
    ValueError: there are no records, or one lacks a key.
  """
  figure = _figure(records, weights)
  with replacing(path) as temporary:
    figure.savefig(temporary, format="png", dpi=120)


def loss_curves_uri(records: Sequence[Mapping[str, float]], *, weights: Mapping[str, float]) -> str:
  """Returns the same picture as the data URI of a transparent SVG; the same records give the same bytes."""
  file = io.BytesIO()
  with matplotlib.rc_context({"svg.hashsalt": "scops"}):
    _figure(records, weights).savefig(file, format="svg", transparent=True, metadata={"Date": None})
  return data_uri(file.getvalue(), "image/svg+xml")


def _figure(records: Sequence[Mapping[str, float]], weights: Mapping[str, float]) -> Figure:
  """Draws a small chart of each; the losses share one logarithmic axis, with the total in grey."""
  terms = {term: weight for term, weight in weights.items() if weight}
  missing = sorted({key for record in records for key in ("step", "loss", "lr", *terms) if key not in record})
  if not records or missing:
    raise ValueError(
      f"loss curves need at least one record with step, loss, lr and the terms; missing {missing}"
    )
  steps, total, rate = (_curve(records, name) for name in ("step", "loss", "lr"))
  curves = {"Total": total}
  for term, weight in terms.items():
    curves[f"{term.replace('_', ' ').capitalize()} × {number(weight)}"] = weight * _curve(records, term)
  rows = -(-(len(curves) + 1) // _COLUMNS)
  figure = Figure(figsize=(10, 1.8 * rows), layout="constrained")
  charts = figure.subplots(rows, _COLUMNS, sharex=True, squeeze=False).ravel()
  limits = _limits(np.concatenate(list(curves.values())))
  for axes, (title, values) in zip(charts, curves.items(), strict=False):
    axes.set(yscale="log", ylim=limits)
    axes.plot(steps, total, color="0.75", linewidth=1)
    _draw(axes, steps, values, title, low=limits[0])
  _draw(charts[len(curves)], steps, rate, "Learning rate")
  charts[len(curves)].set_ylim(0, None)
  for axes in charts[len(curves) + 1 :]:
    axes.remove()
  return figure


def _draw(axes: Axes, steps: np.ndarray, values: np.ndarray, title: str, *, low: float = 0.0) -> None:
  """Draws a curve with its first and last value; what is below `low` lies on it, one record is a dot."""
  axes.plot(
    steps, np.maximum(values, low), color="tab:blue", linewidth=1.8, marker="o" if len(steps) == 1 else ""
  )
  axes.set_title(title, loc="left", fontsize=9)
  axes.set_title(f"{number(values[0])} → {number(values[-1])}", loc="right", fontsize=8)
  axes.tick_params(labelsize=8, labelbottom=True)
  axes.grid(axis="y", alpha=0.3)
  axes.spines[["top", "right"]].set_visible(False)


def _curve(records: Sequence[Mapping[str, float]], name: str) -> np.ndarray:
  """Returns an entry of the records, averaged over equal runs of them, so that few enough are left."""
  values = np.array([record[name] for record in records], np.float64)
  return np.array([run.mean() for run in np.array_split(values, min(len(values), _MAX_POINTS))])


def _limits(values: np.ndarray) -> tuple[float, float]:
  """Returns the limits of an axis for the positive finite values: at most five decades, at least a half."""
  values = values[np.isfinite(values) & (values > 0)]
  high = float(values.max(initial=0.0)) or 1.0
  low = max(float(values.min(initial=high)), high / _MAX_RANGE)
  margin = max(1.2, (10**0.5 * low / high) ** 0.5)
  return low / margin, high * margin
