"""Curves of a training: both pictures, values that are not finite, bad input."""

import base64

import numpy as np
import pytest
from PIL import Image

from scops_jax.report import charts
from tests import pages

WEIGHTS = {"equivariance": 2.0, "semantic_consistency": 100.0, "background": 0.0}


def panels(records, weights):
  """Returns {title: axes} of the figure, laid out."""
  figure = charts._figure(records, weights)
  figure.draw_without_rendering()
  return {axes.get_title(loc="left"): axes for axes in figure.axes}


def curve(axes):
  return axes.lines[-1].get_ydata()


def test_loss_curves_are_written_and_replaced(tmp_path):
  path = tmp_path / "new" / "folder" / "losses.png"
  for records in (pages.RECORDS[:1], pages.RECORDS):
    charts.loss_curves(records, path, weights=WEIGHTS)
  with Image.open(path) as picture:
    assert picture.height > 300
  assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("records", [[], [{"step": 1, "loss": 2.0, "equivariance": 1.0, "lr": 0.1}]])
def test_bad_records_raise(tmp_path, records):
  with pytest.raises(ValueError, match="loss curves need"):
    charts.loss_curves(records, tmp_path / "a.png", weights=WEIGHTS)


def test_the_uri_is_an_svg_and_the_same_each_time():
  uri, again = (charts.loss_curves_uri(pages.RECORDS, weights=WEIGHTS) for _ in range(2))
  assert uri == again
  kind, content = uri.split(",")
  assert kind == "data:image/svg+xml;base64"
  assert b"</svg>" in base64.b64decode(content)


def test_charts_are_of_the_weighted_terms():
  found = panels(pages.RECORDS, {"concentration": 2.0, "balance": 0.0})
  assert list(found) == ["Total", "Concentration × 2", "Learning rate"]
  concentration = found["Concentration × 2"]
  np.testing.assert_allclose(curve(concentration), [2 / 10, 2 / 20, 2 / 30])
  assert concentration.get_title(loc="right") == "0.2 → 0.0667"
  np.testing.assert_array_equal(concentration.lines[0].get_ydata(), curve(found["Total"]))
  assert concentration.get_ylim() == found["Total"].get_ylim()
  np.testing.assert_array_equal(curve(found["Learning rate"]), [1e-3] * 3)


def test_charts_survive_one_record_and_values_that_are_not_finite(tmp_path):
  records = [
    dict(pages.RECORDS[0], loss=value, step=step) for step, value in enumerate((np.inf, np.nan, 0.0))
  ]
  for shown in (records, records[:1], pages.RECORDS[:1]):
    charts.loss_curves(shown, tmp_path / "a.png", weights={"concentration": 1.0})
    assert np.isfinite(panels(shown, {"concentration": 1.0})["Total"].get_ylim()).all()


def test_values_far_below_the_total_lie_on_the_lower_end_of_the_axis():
  records = [dict(record, concentration=1e-12) for record in pages.RECORDS]
  found = panels(records, {"concentration": 1.0})
  low, high = found["Total"].get_ylim()
  assert 1e5 <= high / low < 2e5
  np.testing.assert_allclose(curve(found["Concentration × 1"]), low)


def test_long_runs_are_averaged():
  records = [dict(pages.RECORDS[0], step=step, loss=1.0 + step % 2) for step in range(4800)]
  total = panels(records, {})["Total"]
  assert len(curve(total)) < 300
  np.testing.assert_allclose(curve(total), 1.5)
