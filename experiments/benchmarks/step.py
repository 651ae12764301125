"""Compares a training step and its pieces with the same step written plainly in PyTorch.

python -m experiments.benchmarks.step --config=celeba --batch_size=2

Prints Markdown: how well the first losses agree, the step's speed and peak memory, its pieces, the input
pipeline and the machine. Needs the parity extra (torch). README.md says what is compared and how.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.benchmarks import machine, workload
from experiments.benchmarks.contest import Timing, Worker, environment, measure, open_workers
from experiments.benchmarks.tables import check_losses, losses_table, memory_table, speed_table
from scops_jax import cli
from scops_jax.errors import UserError

_GPU_CONTESTANTS = ("jax", "pytorch", "pytorch:compile", "pytorch:bfloat16", "pytorch:compile:bfloat16")


def main(arguments: Sequence[str] | None = None) -> None:
  """Parses the arguments and runs; a wrong argument ends with a one-line error."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--config", default="toy_faces", help="configs/NAME.py: celeba, toy_faces, …")
  parser.add_argument("--batch_size", type=int, help="images per step; default: the config's")
  parser.add_argument("--image_size", type=int, help="pixels per side; default: the config's")
  parser.add_argument("--rounds", type=int, default=7, help="turns of each contestant; 7")
  parser.add_argument(
    "--contestants",
    type=lambda names: tuple(names.split(",")),
    help="a list of jax, jax:KEY=VALUE (another value of a config key), pytorch, pytorch:compile, "
    "pytorch:bfloat16 and pytorch:channels_last; options combine: pytorch:compile:bfloat16. Default: "
    "jax,pytorch, and on a GPU also pytorch compiled and in bfloat16",
  )
  try:
    run(parser.parse_args(arguments))
  except UserError as error:
    sys.exit(f"error: {error}")


def run(options: argparse.Namespace) -> None:
  """Prepares the workload, measures and prints.

  Raises:
    UserError: an option can't serve, a process failed, or the first losses differ.
  """
  sizes = {"batch_size": options.batch_size, "image_size": options.image_size}
  config = workload.load_config(options.config, **sizes)
  for contestant in options.contestants or ():
    if contestant.startswith("jax:"):
      for option in contestant.split(":")[1:]:
        cli.check_key(option.partition("=")[0])
  description = machine.describe(environment())
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    devices = _prepare(folder, {"name": options.config, **sizes})
    on_cpu = devices["platform"] == "cpu"
    contestants = options.contestants or (("jax", "pytorch") if on_cpu else _GPU_CONTESTANTS)
    title = f"{config.segmenter} + {config.reference}, {config.image_size} × {config.image_size}"
    print(f"## {options.config}: {title}, B = {config.batch_size}, K = {config.num_parts}\n", flush=True)
    timings = {"step": _measure_step(contestants, folder, rounds=options.rounds, on_cpu=on_cpu)}
    timings |= _measure_pieces(contestants, folder, rounds=options.rounds)
    images = dict.fromkeys(timings, config.batch_size) | {"inference": workload.INFERENCE_BATCH}
    print(f"\n{speed_table(timings, images)}\n", flush=True)
    _measure_input(folder, timings["step"], batch_size=config.batch_size, rounds=options.rounds)
  print("\n".join([*description, f"- devices: {', '.join(devices['devices'])}"]))


def _prepare(folder: pathlib.Path, request: Mapping[str, Any]) -> dict[str, Any]:
  """Makes the workload in a process of its own, so that this one holds no JAX and little memory."""
  (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
  command = [sys.executable, "-m", "experiments.benchmarks.prepare", str(folder)]
  if code := subprocess.run(command, env=environment(), check=False).returncode:
    raise UserError(f"the workload was not made: its process ended with code {code}")
  return json.loads((folder / "devices.json").read_text(encoding="utf-8"))


def _measure_step(
  contestants: Sequence[str], folder: pathlib.Path, *, rounds: int, on_cpu: bool
) -> dict[str, Timing]:
  """Compares the first losses, times the step and prints peak memory, in processes that do only steps."""
  with open_workers(contestants, folder) as workers:
    losses = _ask_all(workers, "losses")
    print(losses_table(losses), flush=True)
    if on_cpu:
      check_losses(losses)
    peaks = {"from the start": _ask_all(workers, "host_memory")}
    forgotten = _ask_all(workers, "forget_peak")
    timings = measure(workers, "step", rounds=rounds)
    if all(forgotten.values()):
      peaks["steps alone"] = _ask_all(workers, "host_memory")
    peaks["of the device"] = _ask_all(workers, "device_memory")
  print(f"\n{memory_table(peaks)}", flush=True)
  return timings


def _ask_all(workers: Mapping[str, Worker], method: str) -> dict[str, Any]:
  return {name: worker.ask(method) for name, worker in workers.items()}


def _measure_pieces(
  contestants: Sequence[str], folder: pathlib.Path, *, rounds: int
) -> dict[str, dict[str, Timing]]:
  timings = {}
  with open_workers(contestants, folder) as workers:
    names = _ask_all(workers, "build_pieces")
    for name in names[contestants[0]]:
      timings[name] = measure(workers, name, rounds=rounds)
  forward, both = timings.pop("forward"), timings.pop("forward and backward")
  backward = {name: timing.minus(forward[name]) for name, timing in both.items()}
  return {"forward": forward, "backward": backward, **timings}


def _measure_input(
  folder: pathlib.Path, steps: Mapping[str, Timing], *, batch_size: int, rounds: int
) -> None:
  """Prints the input pipeline's speed, and its ratio to what the fastest step consumes."""
  with open_workers(["input"], folder) as workers:
    timing = measure(workers, "input pipeline", rounds=rounds)["input"]
    image_bytes = workers["input"].ask("image_bytes")
  fastest = min(steps.values(), key=lambda step: step.median)
  print(
    f"Input pipeline (JPEG, {image_bytes / 1e3:.0f} kB per image): {batch_size / timing.median:.0f} images/s "
    f"({batch_size / max(timing.seconds):.0f}–{batch_size / min(timing.seconds):.0f}), "
    f"{fastest.median / timing.median:.1f} × what the fastest step here consumes.\n",
    flush=True,
  )


if __name__ == "__main__":
  main()
