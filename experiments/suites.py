"""The suites of `python -m experiments.run`: which configs, with which changes and seeds."""

import pathlib
import re
from typing import Any, NamedTuple

Overrides = dict[str, Any]


class Run(NamedTuple):
  """One training run."""

  variant: str  # what the tables group by
  seed: int
  config: str  # path, with its argument
  overrides: Overrides
  baselines: bool = False  # whether they are measured after it

  @property
  def name(self) -> str:
    """Names its files."""
    return "_".join(re.findall(r"\w+", f"{self.variant} seed{self.seed}"))


LOSSES = (
  "concentration",
  "equivariance",
  "landmark_equivariance",
  "semantic_consistency",
  "orthonormality",
  "background",
  "balance",
  "potts",
)
PARTS = (2, 4, 6, 8, 12, 16)
_NO_JITTER = {f"appearance.{name}": 0.0 for name in ("brightness", "contrast", "saturation", "hue")}
# A setting that takes a few minutes on a busy machine, for runs that need not reach the last digit.
_SMALL = {
  "image_size": 64,
  "num_steps": 200,
  "nmf.num_images": 128,
  "crf.num_iterations": 0,
}
SETTINGS: dict[str, dict[str, Overrides]] = {
  "toy_faces": {
    "full": {},
    "small": {
      **_SMALL,
      "predict_scales": (1.0,),
      "reference_image_size": 129,
      "toy_faces.num_train": 300,
      "toy_faces.num_test": 100,
    },
  },
  # One evaluation, after the last step (1 050 for mammals), in small at one scale: predictions would take
  # most of a run's time.
  "photographs": {
    "full": {"crf.num_iterations": 0, "eval_every": 1050},
    "small": {**_SMALL, "eval_every": _SMALL["num_steps"], "predict_scales": (1.0,)},
  },
  "paper": {"full": {}},
}
# A loss that the suites' configs do not use, and the weight that it gets instead of none.
_UNUSED = {"orthonormality": 1.0}
_LAYERS = {
  "toy_faces": {
    "block5": ("block5_depthwise",),
    "block15": ("block15_depthwise",),
    "blocks10_15": ("block10_depthwise", "block15_depthwise"),
  },
  "photographs": {
    "block10": ("block10_depthwise",),
    "block15": ("block15_depthwise",),
    "blocks7_10_15": ("block7_depthwise", "block10_depthwise", "block15_depthwise"),
  },
}


def suite(name: str, data_root: pathlib.Path) -> list[Run]:
  """Returns the runs of a suite in the order in which they are done: those that decide most come first.

  Args:
    name: a key of `SETTINGS`.
    data_root: folder of the collections; photographs needs mammals/ there, paper the published ones.
  """
  return _paper(data_root) if name == "paper" else _ablations(name, data_root)


def _ablations(name: str, data_root: pathlib.Path) -> list[Run]:
  config, fixed = "configs/toy_faces.py", {}
  if name == "photographs":
    config, fixed = "configs/folder.py", {"data.dir": str(data_root / "mammals")}
  losses = {f"without {loss}": {f"loss.{loss}": 0.0} for loss in LOSSES if loss not in _UNUSED}
  losses |= {f"with {loss}": {f"loss.{loss}": weight} for loss, weight in _UNUSED.items()}
  others: dict[str, Overrides] = {
    "without saliency": {"data.saliency": "ones"},
    **{f"K = {count}": {"num_parts": count} for count in PARTS if count != 8},
    **{f"features of {layer}": {"reference_layers": value} for layer, value in _LAYERS[name].items()},
    "projective transforms": {"spatial.mode": "projective"},
    "without colour jitter": _NO_JITTER,
    "basis from noise": {"basis.initializer": "normal"},
    "basis from factors": {"basis.initializer": "nmf"},
  }
  runs = [Run("default", seed, config, fixed, baselines=True) for seed in (0, 1, 2)]
  runs += [Run(variant, 0, config, fixed | changes) for variant, changes in (losses | others).items()]
  # One seed says little about a loss whose absence changes little.
  return runs + [
    Run(variant, seed, config, fixed | changes) for seed in (1, 2) for variant, changes in losses.items()
  ]


def _paper(data_root: pathlib.Path) -> list[Run]:
  def run(variant: str, config: str, folder: str, **overrides: Any) -> Run:
    return Run(variant, 0, config, {"data.dir": str(data_root / folder), **overrides}, baselines=True)

  runs = [run(f"CelebA in the wild, K = {count}", f"configs/celeba.py:{count}", "celeba") for count in (8, 4)]
  runs.append(run("AFLW, K = 8", "configs/aflw.py", "aflw"))
  runs += [
    run(f"CUB {category:03d}, K = 4", "configs/cub.py", "cub", **{"cub.category": category})
    for category in (1, 2, 3)
  ]
  runs.append(run("CUB all, K = 4", "configs/cub.py", "cub", **{"cub.category": 0}))
  maps = {"data.saliency_dir": str(data_root / "pascal" / "saliency")}
  runs += [
    run(f"PASCAL {category}, K = 4", "configs/pascal.py", "pascal", **{"pascal.category": category}, **maps)
    for category in ("horse", "cow", "sheep", "aeroplane", "bus", "car", "motorbike")
  ]
  runs += [
    run(f"CelebA in the wild, DINOv2, K = {count}", f"configs/celeba_dino.py:{count}", "celeba")
    for count in (16, 8, 4)
  ]
  return runs + [
    run(f"CUB all, DINOv2, K = {count}", f"configs/cub_dino.py:{count}", "cub") for count in (4, 8, 16)
  ]
