"""Reads the text of a compiled TPU program: its loops, communication and memory traffic."""

import collections
import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Of a line in these files the caller says more.
_INNER = re.compile(r"/kernels/\w+\.py$|/models/layers\.py$|/site-packages/")
_SHAPE = re.compile(r"(?P<dtype>pred|[a-z]+\d+\w*)\[(?P<sizes>[\d,]*)\](?:\{(?P<layout>[^}]*)\})?")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%(?P<name>\S+) = (?P<rest>.*)")
# What moves no memory by itself, and what is counted elsewhere: loops by their bodies, an asynchronous
# operation by its start.
_FREE = (
  *("parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all", "partition-id"),
  *("while", "conditional", "call", "all-reduce-done", "all-gather-done", "collective-permute-done"),
)
# In XLA's count an asynchronous copy of n bytes reads and writes 5 n: its start an operand and two results,
# its end one of each.
_SLICES = ("slice", "dynamic-slice", "gather")
_COPY_STARTS, _COPY_DONES = ("copy-start", "slice-start"), ("copy-done", "slice-done")


class Instruction(NamedTuple):
  """A line of a computation."""

  name: str
  shape: str  # of the result, with layout; a tuple's in parentheses
  opcode: str
  operands: list[str]
  attributes: str

  def attribute(self, key: str) -> str:
    """Returns what follows `key=`, without %, or an empty text."""
    found = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
    return found[1] if found else ""


class Program(NamedTuple):
  """A module: instructions by computation, the entry's name, and source lines by stack frame."""

  computations: dict[str, list[Instruction]]
  entry: str
  sources: dict[int, str]

  def executed(self) -> Iterator["Execution"]:
    """Yields the instructions that run, those of loops once, with how often they run."""
    pending = [(self.entry, 1, "")]
    while pending:
      name, times, outer_source = pending.pop()
      instructions = self.computations[name]
      shapes = {instruction.name: instruction.shape for instruction in instructions}
      for instruction in instructions:
        frame = instruction.attribute("stack_frame_id")
        source = self.sources.get(int(frame), "") if frame else outer_source
        yield Execution(instruction, shapes, times, source)
        if instruction.opcode == "while":
          pending.append((instruction.attribute("body"), times * self._trips(instruction), source))
        elif instruction.opcode == "call":
          pending.append((instruction.attribute("to_apply"), times, source))

  def _trips(self, loop: Instruction) -> int:
    """Returns the constant that a loop's condition compares its counter, which starts at 0, with."""
    for instruction in self.computations[loop.attribute("condition")]:
      if instruction.opcode == "constant" and re.fullmatch(r"s32\[\](\{.*\})?", instruction.shape):
        return int(instruction.operands[0])
    return 1


class Execution(NamedTuple):
  """An instruction in its place."""

  instruction: Instruction
  shapes: dict[str, str]  # of its computation, by name
  times: int
  source: str  # "file.py:line", or empty; in a loop, the loop's if it has none of its own


def parse(text: str) -> Program:
  """Reads the text that `jax.stages.Compiled.as_text` returns."""
  computations: dict[str, list[Instruction]] = {}
  entry, current = "", None
  for line in text.splitlines():
    if header := re.match(r"(ENTRY )?%(\S+) \(.*\{$", line):
      current = computations.setdefault(header[2], [])
      entry = header[2] if header[1] else entry
    elif line.startswith("}"):
      current = None
    elif current is not None and (found := _INSTRUCTION.match(line)):
      current.append(_instruction(found["name"], found["rest"]))
  return Program(computations, entry, _sources(text))


def _instruction(name: str, rest: str) -> Instruction:
  end = _closing(rest, 0) + 1 if rest[0] == "(" else rest.index(" ")
  shape, rest = rest[:end], rest[end + 1 :]
  opcode = rest[: rest.index("(")]
  end = _closing(rest, len(opcode))
  inside = rest[len(opcode) + 1 : end]
  operands = re.findall(r"%([\w.\-]+)", inside) or [inside]
  return Instruction(name, shape, opcode, operands, rest[end + 1 :])


def _closing(text: str, start: int) -> int:
  """Returns where the parenthesis closes that opens at `start`."""
  depth = 0
  for index in range(start, len(text)):
    depth += (text[index] == "(") - (text[index] == ")")
    if depth == 0:
      return index
  raise ValueError(f"no parenthesis closes: {text[start : start + 80]}")


def _sources(text: str) -> dict[int, str]:
  """Returns "file.py:line" by stack frame, from the tables at a module's head."""

  def table(name: str) -> dict[int, str]:
    found = re.search(rf"^{name}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
    rows = (row.split(" ", 1) for row in found[1].splitlines()) if found else ()
    return {int(number): value for number, value in rows}

  def number(row: str, key: str) -> int:
    found = re.search(rf"\b{key}=(\d+)", row)
    return int(found[1]) if found else 0

  files = {key: pathlib.PurePath(value.strip('"')) for key, value in table("FileNames").items()}
  places, frames = table("FileLocations"), table("StackFrames")

  def source(frame: int) -> str:
    """Names the innermost line outside of `_INNER`, or the innermost if there is none."""
    innermost = ""
    while frame in frames:
      place = places.get(number(frames[frame], "file_location_id"), "")
      path = files[number(place, "file_name_id")]
      line = f"{'/'.join(path.parts[-2:])}:{number(place, 'line')}"
      if not _INNER.search(str(path)):
        return line
      innermost = innermost or line
      frame = number(frames[frame], "parent_frame_id") - 1  # written one too high: 1 is no frame
    return innermost

  return {frame: source(frame) for frame in frames}


def num_bytes(shape: str, *, only_hbm: bool = False) -> int:
  """Returns the bytes of a shape, tuples summed, with the padding of TPU's tiles, as XLA counts them.

  Args:
    shape: such as "f32[6,9]{1,0:T(8,128)S(1)}"; S(1) marks on-chip memory.
    only_hbm: leave out what lies on the chip.
  """
  total = 0
  for found in _SHAPE.finditer(shape):
    layout = found["layout"] or ""
    if only_hbm and "S(" in layout:
      continue
    sizes = [int(size) for size in found["sizes"].split(",") if size]
    order = [int(axis) for axis in layout.split(":")[0].split(",") if axis]
    tile = re.search(r"T\(([\d,]+)\)", layout)
    if tile and order:
      edges = [int(edge) for edge in tile[1].split(",")][::-1]
      for axis, edge in zip(order, edges, strict=False):
        sizes[axis] = -(-sizes[axis] // edge) * edge
    total += _bits(found["dtype"]) * math.prod(sizes) // 8
  return total


def _bits(dtype: str) -> int:
  return 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])


def _traffic(program: Program, execution: Execution, *, only_hbm: bool = False) -> int:
  """Returns the bytes that an instruction reads and writes once; of what it slices, the slice."""
  instruction, shapes = execution.instruction, execution.shapes
  if instruction.opcode in _FREE or instruction.opcode in _COPY_DONES:
    return 0
  if instruction.opcode in _COPY_STARTS:
    # The result is (destination, source, …) for a copy and ((source), destination, …) for a slice.
    moved = min(num_bytes(found[0]) for found in list(_SHAPE.finditer(instruction.shape))[:2])
    return moved if only_hbm else 5 * moved
  result = num_bytes(instruction.shape, only_hbm=only_hbm)
  operands = [shapes.get(operand, "") for operand in instruction.operands]
  if instruction.opcode in _SLICES:
    return 2 * result
  if instruction.opcode == "dynamic-update-slice":
    return 2 * num_bytes(operands[1], only_hbm=only_hbm)
  if instruction.opcode != "fusion":
    return result + sum(num_bytes(shape, only_hbm=only_hbm) for shape in operands)
  fused = program.computations[instruction.attribute("calls")]
  return _fusion_traffic(fused, result, operands, only_hbm=only_hbm)


def _fusion_traffic(fused: list[Instruction], result: int, operands: list[str], *, only_hbm: bool) -> int:
  """Returns the bytes that a fusion of these instructions reads and writes.

  Args:
    fused: its computation.
    result: bytes of its result.
    operands: shapes.
    only_hbm: leave out operands on the chip.
  """
  inner = {item.name: item.shape for item in fused}
  root = fused[-1]
  updates = root.opcode == "dynamic-update-slice"
  total = num_bytes(inner[root.operands[1]]) if updates else result
  for parameter in fused:
    if parameter.opcode != "parameter":
      continue
    outer = operands[int(parameter.operands[0])]
    if only_hbm and not num_bytes(outer, only_hbm=True):
      continue
    users = [item for item in fused if parameter.name in item.operands]
    if updates and users == [root]:
      continue
    if users and all(item.opcode in _SLICES and item.operands[0] == parameter.name for item in users):
      total += sum(num_bytes(item.shape) for item in users)
    else:
      total += num_bytes(outer)
  return total


def hbm_bytes(program: Program) -> int:
  """Returns the bytes that instructions move to and from HBM; what stays on the chip is left out."""
  return sum(item.times * _traffic(program, item, only_hbm=True) for item in program.executed())


def repeated_bytes(program: Program) -> int:
  """Returns the traffic of loops that XLA's cost analysis misses, because it counts each body once."""
  return sum((item.times - 1) * _traffic(program, item) for item in program.executed())


def largest_consumers(program: Program, count: int) -> list[dict[str, Any]]:
  """Returns the source lines whose instructions read and write most, {"source", "bytes", "instructions"}."""
  found: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
  for item in program.executed():
    traffic = item.times * _traffic(program, item)
    if traffic:
      entry = found[item.source or f"the compiler's {item.instruction.opcode}"]
      entry[0] += traffic
      entry[1] += item.times
  ordered = sorted(found.items(), key=lambda pair: -pair[1][0])[:count]
  return [{"source": source, "bytes": bytes_, "instructions": n} for source, (bytes_, n) in ordered]


def collectives(program: Program) -> dict[str, dict[str, int]]:
  """Counts the communication: {"all-reduce": {"count", "bytes" of its results}, …}."""
  found: dict[str, dict[str, int]] = {}
  for item in program.executed():
    kind = item.instruction.opcode.removesuffix("-start")
    if kind in _COLLECTIVES:
      entry = found.setdefault(kind, {"count": 0, "bytes": 0})
      entry["count"] += item.times
      for shape in _SHAPE.finditer(item.instruction.shape):
        entry["bytes"] += item.times * num_bytes(shape[0].split("{")[0])
  return found
