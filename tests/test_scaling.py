"""The scaling study's arithmetic, by hand."""

import pytest

from experiments.scaling import projection
from experiments.scaling.step_cost import collectives

PROGRAM = """
  %a = f32[64]{0} all-reduce(%x), channel_id=1
  %b = (f32[2,3]{1,0}, /*index=1*/bf16[4]{0}) all-reduce-start(%y, %z), channel_id=2
  %c = (f32[2,3]{1,0}, bf16[4]{0}) all-reduce-done(%b)
  %d = u8[10]{0} all-gather(%w), dimensions={0}
  %e = f32[8]{0} add(%p, %q)
"""


def test_communication_is_counted_once_with_its_results():
  assert collectives(PROGRAM) == {
    "all-reduce": {"count": 2, "bytes": 4 * 64 + 4 * 6 + 2 * 4},
    "all-gather": {"count": 1, "bytes": 10},
  }


def cost():
  def line(images, flops, bytes_accessed):
    return {
      "images_per_device": images,
      "flops": flops,
      "bytes_accessed": bytes_accessed,
      "collectives": {"all-reduce": {"count": 10, "bytes": 1e8}},
      "batch_bytes": images * 1e6,
      "temporary_bytes": images * 2e9,
      "argument_bytes": 1e9,
    }

  return projection.Cost.from_lines([line(3, 7e12, 4e9), line(1, 3e12, 2e9)])


def test_costs_are_a_line_through_two_batches():
  assert cost().flops == pytest.approx((1e12, 2e12))
  assert cost().bytes_accessed == pytest.approx((1e9, 1e9))
  assert cost().batch_bytes == pytest.approx(1e6)
  assert cost().memory == pytest.approx((1e9, 2e9))


def test_a_steps_time_by_hand():
  step = projection.project(cost(), chips=4, images=2)
  assert step.arithmetic == pytest.approx(5e12 / (projection.FLOPS * projection.MXU_SHARE))
  assert step.memory == pytest.approx(3e9 / projection.HBM)
  assert step.reduction == pytest.approx(1.5 * 1e8 / (projection.ICI * projection.ICI_SHARE))
  assert step.latency == pytest.approx(10 * (projection.LAUNCH + 4 * projection.HOP))
  assert step.total == pytest.approx(max(step.arithmetic, step.memory) + step.reduction + step.latency)


def test_efficiency_is_one_for_the_first_row_and_falls():
  table = projection.rows(cost(), {8: 48, 256: 48}, cores_each=0.01)
  first, last = (float(row.split("|")[12]) for row in table[2:])
  assert first == 1
  assert last < 0.5
