"""Records golden/dino/*.npz with PyTorch and Hugging Face's transformers: python -m tests.record_dino."""

import numpy as np
import torch
import transformers

from tests import oracle, tiny_dino, torch_dino

GRIDS = ((5, 5), (3, 7))  # patches; the learned positions are of the first


def images(architecture, height, width):
  """Returns the input of a grid, NHWC; drawn, not recorded."""
  rng = np.random.default_rng((height, width))
  shape = (1, height * architecture.patch, width * architecture.patch, 3)
  return rng.standard_normal(shape).astype(np.float32)


def main():
  for name, architecture in tiny_dino.ARCHITECTURES.items():
    model = torch_dino.create(architecture)
    path = oracle.GOLDEN / "dino" / f"{name}.npz"
    path.parent.mkdir(exist_ok=True)
    arrays = {f"weights/{key}": value for key, value in torch_dino.saved_state_dict(model).items()}
    if not architecture.registers:
      torch_dino.with_published_offset(model)
    for grid in GRIDS:
      tokens = torch_dino.patch_tokens(model, images(architecture, *grid), architecture)
      for layer, values in zip(architecture.layers, tokens, strict=True):
        arrays["tokens/{}x{}/{}".format(*grid, layer)] = values
    np.savez_compressed(path, **arrays)
    print(path, f"torch {torch.__version__}, transformers {transformers.__version__}")


if __name__ == "__main__":
  main()
