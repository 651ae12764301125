"""What a step costs on a TPU: the reading of compiled programs by hand, and a step compiled for a slice."""

import functools
import importlib.util
import json

import jax
import pytest

from experiments.scaling import hlo, table, tpu_program
from scops_jax.errors import UserError
from scops_jax.kernels.platforms import target, targeting
from scops_jax.runs import parallel
from scops_jax.train_step import train_step
from tests import tiny

PROGRAM = """HloModule jit_step

FileNames
1 "/somewhere/scops_jax/models/resnet.py"
2 "/somewhere/scops_jax/kernels/convolution.py"

FunctionNames
1 "block"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=1 end_column=9}
2 {file_name_id=2 function_name_id=1 line=9 end_line=9 column=1 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%fused (p.0: f32[4,64], p.1: s32[]) -> f32[1,64] {
  %p.0 = f32[4,64]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  ROOT %row = f32[1,64]{1,0} dynamic-slice(%p.0, %p.1, %p.1), dynamic_slice_sizes={1,64}
}

%body (b: (s32[], f32[4,64])) -> (s32[], f32[4,64]) {
  %b = (s32[], f32[4,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %m = f32[4,64]{1,0} get-tuple-element(%b), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %f = f32[1,64]{1,0} fusion(%m, %i), kind=kLoop, calls=%fused
  %sum = f32[1,64]{1,0} all-reduce(%f), channel_id=1, to_apply=%add
  ROOT %t = (s32[], f32[4,64]{1,0}) tuple(%next, %m)
}

%condition (c: (s32[], f32[4,64])) -> pred[] {
  %limit = s32[] constant(3)
  %c = (s32[], f32[4,64]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%c), index=0
  ROOT %less = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (x: f32[4,64]) -> f32[4,64] {
  %x = f32[4,64]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[4,64]{1,0}) tuple(%zero, %x)
  %loop = (s32[], f32[4,64]{1,0}) while(%start), condition=%condition, body=%body, metadata={stack_frame_id=1}
  %y = f32[4,64]{1,0} get-tuple-element(%loop), index=1
  %g = (f32[4,64]{1,0}, bf16[8]{0}) all-reduce-start(%y, %x), channel_id=2, to_apply=%add
  ROOT %z = f32[4,64]{1,0:S(1)} negate(%y), metadata={op_name="neg" stack_frame_id=2}
}
"""


def test_communication_is_counted_once_for_each_time_it_runs():
  found = hlo.collectives(hlo.parse(PROGRAM))
  assert found == {"all-reduce": {"count": 4, "bytes": 3 * 4 * 64 + 4 * 256 + 2 * 8}}


def test_traffic_by_source_line_counts_slices_and_loops():
  matrix, row = 4 * 256, 4 * 64
  consumers = {entry["source"]: entry["bytes"] for entry in hlo.largest_consumers(hlo.parse(PROGRAM), 9)}
  # In the loop: the counter's sum, the row that is read and written with its index, and the row's sum.
  loop = 3 * (3 * 4 + (2 * row + 4) + 2 * row)
  assert consumers["models/resnet.py:7"] == 2 * matrix + loop
  assert consumers["the compiler's all-reduce-start"] == 3 * matrix + 2 * 8
  assert len(consumers) == 2
  assert hlo.repeated_bytes(hlo.parse(PROGRAM)) == loop * 2 // 3
  # The last result stays on the chip.
  assert hlo.hbm_bytes(hlo.parse(PROGRAM)) == sum(consumers.values()) - matrix


@pytest.mark.parametrize(
  ("shape", "expected"),
  [
    ("f32[6,65,65,9]{2,1,3,0:T(8,128)}", 4 * 6 * 9 * 72 * 128),
    ("(bf16[3]{0}, pred[5]{0})", 11),
    ("f32[]", 4),
    ("u32[]{:S(2)}", 4),
  ],
)
def test_bytes_of_a_shape_include_the_padding_of_tiles(shape, expected):
  assert hlo.num_bytes(shape) == expected


def test_a_step_compiles_for_four_chips():
  pytest.importorskip("libtpu")
  devices = tpu_program.slice_devices("v5e:2x2")
  config = tiny.config(parallelism="pmap")
  networks = tiny.networks(tiny.BatchNormSegmenter())
  lowered = tpu_program.lower(networks, config, devices, step="train")
  found = tpu_program.measure(lowered, devices, step="train")
  assert found["chips"] == 4
  assert found["collectives"]["all-reduce"]["count"] >= 1
  assert min(found[key] for key in ("flops", "bytes_accessed", "code_bytes", "argument_bytes")) > 0
  assert found["roofline_ms"] >= found["arithmetic_ms"]
  assert len(found["largest_consumers"]) == 10
  json.dumps(found)
  with pytest.raises(UserError, match="--topology=v5e:7x7"):
    tpu_program.slice_devices("v5e:7x7")


def test_a_programs_row_has_a_cell_for_each_column():
  program = {
    **{"config": "configs/celeba.py", "topology": "v5e:2x4", "step": "train", "parallelism": "pmap"},
    **{"chips": 8, "images_per_chip": 6, "compute_dtype": "bfloat16", "compile_seconds": 271.2},
    **{"flops": 2.29e12, "bytes_accessed": 75e9, "temp_bytes": 3 * 2**30, "code_bytes": 345 * 2**20},
    **{
      "collectives": {"all-reduce": {"count": 182, "bytes": 1}},
      "arithmetic_ms": 11.62,
      "roofline_ms": 91.6,
    },
  }
  cells = table.row(program)
  assert len(cells) == len(table.COLUMNS)
  assert cells[0] == "celeba train, pmap"
  assert cells[5:] == ["2.29", "75", "3.00", "345", "182", "271", "11.6", "91.6"]


def test_without_the_compiler_the_command_says_what_is_missing(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"pip install 'scops_jax\[tpu\]'"):
    tpu_program.slice_devices("v5e:2x2")


def test_a_step_lowers_for_gpus():
  config = tiny.config(**{"segmenter": "deeplab50"})
  networks = tiny.networks(tiny.BatchNormSegmenter())
  with targeting("cuda"):
    assert target() == "cuda"
    optimizer, state, batch, reference = tpu_program.shapes(networks, config)
    step = functools.partial(train_step, networks=networks, optimizer=optimizer, config=config)
    traced = parallel.jit_step(step, *parallel.shardings(jax.devices()[:1])).trace(state, batch, reference)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert "stablehlo.convolution" in text
  assert target() == jax.default_backend()
