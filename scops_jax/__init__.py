"""SCOPS, self-supervised co-part segmentation (CVPR 2019), in JAX and Flax.

`load_predictor` is imported on first use, so that importing the losses stays light.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["load_predictor"]


def __getattr__(name: str) -> Any:
  if name in __all__:
    return getattr(importlib.import_module("scops_jax.prediction.predictor"), name)
  raise AttributeError(f"module 'scops_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
