"""Guards the house: imports point only down, and the losses stay light."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "scops_jax"

# A room imports only rooms of a lower floor. A room is a folder, or a file at the top of the package; a
# command inside a folder is a room of its own.
FLOORS = (
  ("errors", "kernels", "progress"),
  ("geometry", "config", "catalogue", "storage"),
  ("losses", "warp", "appearance", "dense_crf", "optimizer", "models", "report", "cli"),
  ("weights", "train_step", "data"),
  ("saliency", "evaluation"),
  ("runs",),
  ("train", "prediction"),
  ("demo",),
  ("main", "prepare", "predict", "report.__main__", "weights.__main__", "export.__main__", "demo.__main__"),
)
RANKS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
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


@pytest.mark.parametrize("module", ["predictor", "stream", "program_file", "model_file"])
def test_prediction_imports_neither_the_data_nor_the_logging_stack(module):
  heavy = ("tensorflow_datasets", "grain", "array_record", "tensorboardX", "matplotlib")
  code = f"import scops_jax.prediction.{module}, sys; print([n for n in {heavy} if n in sys.modules])"
  result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
  assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_down(name):
  room = name if name.endswith("__main__") else name.split(".")[0]
  if room == "__init__":
    assert imported(modules()[name]) == set()
    return
  for other in imported(modules()[name]):
    target = other.split(".")[0]
    if target != room:
      assert RANKS[target] < RANKS[room], f"{name} imports {other}, which is not below it"


def test_the_top_holds_the_method_and_the_commands():
  assert len(list(PACKAGE.glob("*.py"))) <= 15


def test_configs_import_only_the_config():
  for path in (ROOT / "configs").glob("*.py"):
    assert imported(path) == {"config"}, path.name


def test_devices_are_handled_in_one_module():
  for name, path in modules().items():
    if name != "runs.parallel":
      text = path.read_text(encoding="utf-8")
      assert not any(word in text for word in ("jax.pmap", "Mesh(", "NamedSharding")), name
