"""DINO transformers of a few channels, by names of their own."""

import functools

from scops_jax import models
from scops_jax.models import dino
from scops_jax.models.vit import Architecture
from scops_jax.weights import inspection, names

_SIZES = {"channels": 16, "depth": 2, "heads": 2}
# As published but for the sizes.
ARCHITECTURES = {
  "dino_tiny": Architecture(14, grid=5, **_SIZES),
  "dino_tiny_reg": Architecture(14, grid=5, registers=4, **_SIZES),
  "dino_tiny_rotary": Architecture(16, registers=4, rotary=True, epsilon=1e-5, **_SIZES),
}


def register(monkeypatch):
  """Makes them known wherever networks are found by name."""
  for name, architecture in ARCHITECTURES.items():
    monkeypatch.setitem(dino.ARCHITECTURES, name, architecture)
    monkeypatch.setitem(models._SEGMENTERS, name, models._dino_segmenter(architecture))
    monkeypatch.setitem(models._REFERENCES, name, models._dino_reference(architecture))
    monkeypatch.setitem(names._TABLES, name, functools.partial(names._dino, name))
    monkeypatch.setitem(inspection._LAST_LAYERS, name, "norm")
  monkeypatch.setattr(names, "MODELS", tuple(names._TABLES))
