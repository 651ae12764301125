"""Guards the house: imports point only down, the losses stay light, files keep their size."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "scops_jax"

# Ranks of the design: a component imports only components of a lower rank; a folder is one component, apart
# from its command.
RANKS = {
  "errors": 0,
  "compilation": 0,
  "files": 0,
  "memory": 0,
  "palette": 0,
  "hosts": 1,
  "geometry": 1,
  "part_labels": 1,
  "config": 1,
  "losses": 2,
  "warp": 2,
  "appearance": 2,
  "optimizer": 2,
  "models": 2,
  "dense_crf": 2,
  "foreground": 2,
  "weights": 3,
  "train_step": 3,
  "parallel": 4,
  "saliency": 4,
  "feature_cache": 4,
  "collection_sizes": 4,
  "evaluation": 3,
  "checkpoints": 3,
  "workdir": 3,
  "data": 3,
  "visualize": 3,
  "cli": 4,
  "report": 4,
  "runs": 5,
  "lookahead": 0,
  "prediction_files": 4,
  "prediction_folder": 5,
  "prediction_processes": 5,
  "train": 6,
  "predictor": 6,
  "main": 7,
  "prepare": 7,
  "exporting": 7,
  "prediction_stream": 7,
  "predict": 8,
  "weights.__main__": 7,
}
HEAVY = ("flax", "tensorflow", "tensorflow_datasets", "orbax", "optax", "grain", "ml_collections", "PIL")


def modules() -> dict[str, pathlib.Path]:
  found = {}
  for path in PACKAGE.rglob("*.py"):
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    found[name.removesuffix(".__init__")] = path
  return found


def imported(path: pathlib.Path) -> set[str]:
  """Names of this package's modules that a file imports, at any depth of the code."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      names.update(alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      names.update(f"{node.module}.{alias.name}" for alias in node.names)
  known = modules()
  found = set()
  for name in names:
    parts = name.split(".")
    if parts[0] in ("experiments", "tests", "configs"):
      found.add(name)
    if parts[0] == "scops_jax":
      candidates = [".".join(parts[1:end]) for end in range(len(parts), 1, -1)]
      found.update(candidate for candidate in candidates[:2] if candidate in known)
  return found


@pytest.mark.parametrize("module", ["losses", "geometry", "warp"])
def test_the_maths_imports_jax_and_chex_only(module):
  code = f"import scops_jax.{module}, sys; print([name for name in {HEAVY} if name in sys.modules])"
  result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
  assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
  "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_files_keep_their_size(path):
  assert len(path.read_text(encoding="utf-8").splitlines()) <= 330


def test_main_is_tiny():
  assert len((PACKAGE / "main.py").read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_down(name):
  component = name if name.endswith("__main__") else name.split(".")[0]
  if component == "__init__":
    assert imported(modules()[name]) == set()
    return
  for other in imported(modules()[name]):
    target = other.split(".")[0]
    if target != component:
      assert target in RANKS, f"{name} imports {other}: nothing here imports {target}"
      assert RANKS[target] < RANKS[component], f"{name} imports {other}, which is not below it"


def test_configs_import_only_the_config():
  for path in (ROOT / "configs").glob("*.py"):
    assert imported(path) == {"config"}, path.name


def test_devices_are_handled_in_one_module():
  for name, path in modules().items():
    if name != "parallel":
      text = path.read_text(encoding="utf-8")
      assert not any(word in text for word in ("jax.pmap", "Mesh(", "NamedSharding")), name
