"""Optimises the raw logits of two drawn faces under each loss of SCOPS, and draws what happens.

python -m experiments.losses [--out=experiments/losses]

Writes a figure NAME.png and an animation NAME.gif for each loss alone and for all together, failures.png (all
but one), weights.png (each weight halved and doubled) and results.json, and prints the README's table.
"""

import functools
import json
import pathlib
import time
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.losses import pictures
from experiments.losses.scene import NUM_PARTS, Scene, make_scene
from experiments.losses.studies import (
  BEYOND_THE_PAPER,
  WEIGHTS,
  Course,
  Variables,
  initial_variables,
  loss_terms,
  optimise,
  start_of,
)
from scops_jax import cli
from scops_jax.storage.files import replacing


class Effort(NamedTuple):
  """How long each optimisation is."""

  steps: int = 200
  keep_every: int = 8
  moments: tuple[int, ...] = (0, 2, 5, 25)  # kept variables that figures show


def run(out: pathlib.Path, scene: Scene, effort: Effort) -> dict[str, dict[str, float]]:
  """Does all studies, writes their pictures, and returns the measures of those of all losses."""
  key = jax.random.key(0)
  optimised = functools.partial(optimise, steps=effort.steps, keep_every=effort.keep_every)
  for name in (*WEIGHTS, *BEYOND_THE_PAPER):
    course = optimised(start_of(name, key, scene), scene, {name: 1.0})
    _draw_study(out, name, course, scene, effort)
  start = initial_variables(key, scene)
  courses = {"all": optimised(start, scene, WEIGHTS)}
  _draw_study(out, "all", courses["all"], scene, effort)
  for name in WEIGHTS:
    courses[f"no {name}"] = optimised(start, scene, WEIGHTS | {name: 0.0})
  everywhere = scene._replace(saliency=jnp.ones_like(scene.saliency))
  courses["no saliency"] = optimised(start, everywhere, WEIGHTS)
  for name, weight in WEIGHTS.items():
    for factor in (0.5, 2.0):
      courses[f"{factor:g} {name}"] = optimised(start, scene, WEIGHTS | {name: factor * weight})
  last = {name: jax.tree.map(lambda kept: kept[-1], course.variables) for name, course in courses.items()}
  _draw_failures(out / "failures.png", last, scene)
  _draw_weights(out / "weights.png", last, scene)
  results = {name: measures(variables, scene) for name, variables in last.items()}
  with replacing(out / "results.json") as temporary:
    temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
  return results


def measures(variables: Variables, scene: Scene) -> dict[str, float]:
  """Returns the unweighted losses, the foreground’s IoU with the masks, and the smallest part’s share."""
  labels = np.argmax(variables.logits, axis=-1)
  foreground, mask = labels > 0, np.asarray(scene.saliency) >= 0.5
  areas = np.bincount(labels.ravel(), minlength=NUM_PARTS + 1)[1:]
  terms = {name: float(value) for name, value in loss_terms(variables, scene).items() if name in WEIGHTS}
  return terms | {
    "foreground_iou": float((foreground & mask).sum() / (foreground | mask).sum()),
    "smallest_part": float(areas.min() / max(areas.sum(), 1)),
  }


def table(results: Mapping[str, Mapping[str, float]]) -> str:
  """Returns the measures as Markdown."""
  names = list(next(iter(results.values())))
  lines = [
    "| | " + " | ".join(name.replace("_", " ") for name in names) + " |",
    "|---" * (len(names) + 1) + "|",
  ]
  for run_name, values in results.items():
    cells = " | ".join(f"{abs(values[name]):.3f}" for name in names)
    lines.append(f"| {run_name.replace('_', ' ')} | {cells} |")
  return "\n".join(lines)


def _draw_study(out: pathlib.Path, name: str, course: Course, scene: Scene, effort: Effort) -> None:
  drawings = {
    "equivariance": pictures.transformed,
    "landmark_equivariance": pictures.transformed,
    "orthonormality": pictures.gram,
    "all": pictures.all_maps,
  }
  draw = drawings.get(name, pictures.first_image)
  gradients = course.gradients
  if draw is pictures.gram:
    fields = pictures.basis_field(gradients.basis)
  else:
    fields = pictures.part_fields(
      (gradients.warped_logits if draw is pictures.transformed else gradients.logits)[0]
    )
  if name == "all":
    total = sum(weight * course.terms[term] for term, weight in WEIGHTS.items())
    course = course._replace(terms=course.terms | {"all": total})
  pictures.study_figure(
    out / f"{name}.png", course, scene, draw, name=name, moments=effort.moments, fields=fields
  )
  pictures.animation(out / f"{name}.gif", course, scene, draw)


def _draw_failures(path: pathlib.Path, last: Mapping[str, Variables], scene: Scene) -> None:
  columns = ["all", *(f"no {name}" for name in WEIGHTS), "no saliency"]
  found = [pictures.all_maps(last[column], scene) | pictures.gram(last[column], scene) for column in columns]
  rows = {title: [views[title] for views in found] for title in found[0]}
  titles = [column.replace("no ", "without\n").replace("_", "\n") for column in columns]
  pictures.grid_figure(path, rows, columns=titles)


def _draw_weights(path: pathlib.Path, last: Mapping[str, Variables], scene: Scene) -> None:
  def view(variables: Variables) -> np.ndarray:
    return pictures.side_by_side(list(pictures.all_maps(variables, scene).values()))

  rows = {
    name.replace("_", "\n"): [view(last[run_name]) for run_name in (f"0.5 {name}", "all", f"2 {name}")]
    for name in WEIGHTS
  }
  pictures.grid_figure(path, rows, columns=("half its weight", "its weight", "twice its weight"))


def main(out: pathlib.Path) -> None:
  """Runs the studies and prints their measures."""
  began = time.perf_counter()
  results = run(out, make_scene(), Effort())
  print(table(results))
  print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
  folder = flags.DEFINE_string("out", "experiments/losses", "The folder to write to.")
  cli.run(lambda: main(pathlib.Path(folder.value)))
