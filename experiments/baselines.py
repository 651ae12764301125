"""Measures every baseline on a finished run's images and features.

python -m experiments.baselines --workdir=runs/toy_faces [--only kmeans dff] [--out=FOLDER]

Prints the entries of evaluation.json for each baseline (scops_jax/evaluation/baselines.py has their
definitions), and with --out writes FOLDER/NAME.json.
"""

import argparse
import functools
import json
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from scops_jax.data.collection import ExampleSource, open_collection
from scops_jax.data.pipeline import evaluation_batches
from scops_jax.errors import UserError
from scops_jax.evaluation.baselines import NAMES, Batch, fit_baselines
from scops_jax.evaluation.evaluate import Dff, evaluate
from scops_jax.runs import setup
from scops_jax.runs.workdir import load_config
from scops_jax.train_step import factorized_features


def measure(workdir: pathlib.Path, only: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, Any], float]]:
  """Yields the name, the measures and the minutes of each baseline of a run."""
  config = load_config(workdir)
  collection = open_collection(config)
  networks = setup.create_networks(config)
  variables = setup.load_reference(networks, config)
  variables = setup.fit_feature_code(collection, networks, variables, config)
  kept = setup.open_features(collection, networks, variables, config)
  compute = jax.jit(functools.partial(factorized_features, networks=networks, config=config))

  def features(batch: Batch) -> np.ndarray:
    used = {name: batch[name] for name in ("image", "features") if name in batch}
    return compute(variables, {**used, "saliency": np.full_like(batch["saliency"], 255)})

  def batches(source: ExampleSource) -> Iterator[dict[str, Any]]:
    return evaluation_batches(
      source,
      batch_size=config.eval_batch_size,
      image_size=config.image_size,
      num_threads=config.data.num_threads,
      kept=kept if source is collection.train else None,
    )

  fitted = fit_baselines(
    features, train=batches(collection.train), regression=batches(collection.regression), config=config
  )
  dff = Dff.load(workdir / "dff.npz")
  for name, baseline in fitted.items():
    if only and name not in only:
      continue
    began = time.monotonic()
    own = config.copy_and_resolve_references()
    own.num_parts = baseline.num_parts
    evaluation = evaluate(
      baseline.predictor(features),
      regression=batches(collection.regression),
      test=batches(collection.test),
      dff=dff,
      num_classes=len(collection.part_names),
      config=own,
    )
    yield name, evaluation.results, (time.monotonic() - began) / 60


def main() -> None:
  """Prints and writes."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", type=pathlib.Path, required=True, help="of the finished run")
  parser.add_argument("--only", nargs="*", choices=NAMES, default=[], help="names of baselines; default: all")
  parser.add_argument("--out", type=pathlib.Path, help="folder of the JSON files")
  arguments = parser.parse_args()
  try:
    _print(arguments)
  except UserError as error:
    sys.exit(f"error: {error}")


def _print(arguments: argparse.Namespace) -> None:
  for name, results, minutes in measure(arguments.workdir, arguments.only):
    text = json.dumps({"results": results, "minutes": round(minutes, 2)}, indent=2)
    print(f"{name}\n{text}", flush=True)
    if arguments.out:
      arguments.out.mkdir(parents=True, exist_ok=True)
      (arguments.out / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()
