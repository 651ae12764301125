"""Curves of a training: one picture, the charts of the report, values that are not finite, bad input."""

import re

import numpy as np
import pytest
from PIL import Image

from scops_jax.report import charts
from tests import pages

WEIGHTS = {"equivariance": 2.0, "semantic_consistency": 100.0, "background": 0.0}


def curves(chart):
  """Returns the points [N, 2] of a chart's curves, in pixels of the chart."""
  lines = re.findall(r'<path d="([^"]*)" style="fill: none; stroke: var\(--(?:ours|baseline)\)', chart)
  return [np.array(re.findall(r"[ML] (\S+) (\S+)", line), float) for line in lines]


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


def test_charts_are_of_the_weighted_terms():
  text = charts.training_charts(pages.RECORDS, {"concentration": 2.0, "balance": 0.0})
  assert text.count("<svg") == text.count('role="img" aria-label=') == 3
  assert "Balance" not in text
  assert 'aria-label="Concentration × 2 over the steps: 0.2 → 0.0667"' in text  # 2 × 1/10 to 2 × 1/30
  total, concentration, rate = text.split("<figure")[1:]
  np.testing.assert_array_equal(curves(concentration)[0], curves(total)[0])
  # The total is 150 times the term, on an axis of fewer than five decades.
  above = curves(concentration)[1][:, 1] - curves(total)[0][:, 1]
  np.testing.assert_allclose(above, above[0], atol=0.01)
  assert above[0] > 50
  assert np.ptp(curves(rate)[0][:, 1]) == 0


def test_curves_lie_where_their_ticks_say():
  records = [dict(pages.RECORDS[0], step=step, loss=loss) for step, loss in ((0, 1.0), (5, 0.01), (10, 0.1))]
  total = charts.training_charts(records, {}).split("<figure")[1]
  ticks = {
    text: (float(x), float(y)) for x, y, text in re.findall(r'x="(\S+)" y="(\S+)"[^>]*>([^<]+)<', total)
  }
  (line,) = curves(total)
  for point, step, loss in zip(line, ("0", None, "10"), ("1", "0.01", "0.1"), strict=True):
    if step:
      assert point[0] == pytest.approx(ticks[step][0], abs=0.1)
    assert point[1] == pytest.approx(ticks[loss][1] - 4, abs=1)  # a text stands on its baseline


def test_charts_survive_one_record_and_values_that_are_not_finite():
  records = [
    dict(pages.RECORDS[0], loss=value, step=step) for step, value in enumerate((np.inf, np.nan, 0.0))
  ]
  for shown in (records, records[:1], pages.RECORDS[:1]):
    text = charts.training_charts(shown, {"concentration": 1.0})
    assert not re.search(r'd="[^"]*(nan|inf)', text)
  assert np.ptp(curves(text)[0], axis=0).max() == 0  # one record is a dot


def test_values_far_below_the_total_stay_on_the_axis():
  records = [dict(record, concentration=1e-12) for record in pages.RECORDS]
  concentration = charts.training_charts(records, {"concentration": 1.0}).split("<figure")[2]
  np.testing.assert_allclose(curves(concentration)[1][:, 1], 130, atol=0.1)  # the lower end of the axis


def test_long_runs_are_averaged():
  records = [dict(pages.RECORDS[0], step=step, loss=1.0 + step % 2) for step in range(4800)]
  total = charts.training_charts(records, {}).split("<figure")[1]
  assert np.ptp(curves(total)[0][:, 1]) < 0.01
  assert "1.5 → 1.5" in total
