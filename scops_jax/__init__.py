"""SCOPS, self-supervised co-part segmentation (CVPR 2019), in JAX and Flax.

`load_predictor` is imported on first use, so that importing the losses stays light.
"""

import importlib
import importlib.util
import pathlib
import sys
from typing import Any

__version__ = "0.1.0"
__all__ = ["load_predictor"]


def __getattr__(name: str) -> Any:
  if name in __all__:
    return getattr(importlib.import_module("scops_jax.prediction.predictor"), name)
  raise AttributeError(f"module 'scops_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})


def _check_installation() -> None:
  """Ends a command whose Python lacks the dependencies with a line that says what to do."""
  missing = [
    name for name in ("absl", "jax", "ml_collections", "tqdm") if importlib.util.find_spec(name) is None
  ]
  if missing:
    own = pathlib.Path(__file__).parent.parent / ".venv" / "bin" / "python"
    instead = f"run {own} in place of it" if own.exists() else "run `pip install -e .` with it"
    sys.exit(f'error: {sys.executable} has no module {missing[0]!r}: {instead} (README, "Install")')


if sys.argv[:1] == [
  "-m"
]:  # python -m scops_jax.COMMAND; a program that imports this package has its own name there
  _check_installation()
