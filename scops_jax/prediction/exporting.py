"""Exports a run's network as one file that only JAX is needed to run: StableHLO with the weights inside."""

import pathlib

import chex
import jax
import jax.numpy as jnp

from scops_jax.kernels.platforms import every_platform
from scops_jax.prediction.predictor import predict_parts
from scops_jax.prediction.restore import Segmenter
from scops_jax.storage.files import replacing

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM = "parts.stablehlo"

_SCRIPT = '''\
"""Finds the parts of an image: python run.py IMAGE OUT.npz. Needs jax, flatbuffers and Pillow."""
import pathlib
import sys
import jax.export
import numpy as np
from PIL import Image

program = jax.export.deserialize((pathlib.Path(__file__).parent / "{program}").read_bytes())
image = Image.open(sys.argv[1]).convert("RGB").resize(({size}, {size}), Image.Resampling.BILINEAR)
labels, probs, centers = program.call(np.asarray(image)[None])
np.savez(sys.argv[2], labels=labels[0], probs=probs[0], centers=centers[0])
'''

_README = """\
# A part segmentation network

`{program}` is a program for {platforms} with its weights inside: {segmenter}, {num_parts} parts,
{step} training steps. It needs jax, {version} (with which it was exported) or later, and flatbuffers:

```python
program = jax.export.deserialize(pathlib.Path("{program}").read_bytes())
labels, probs, centers = program.call(images)
```

- images: uint8 `[B, {size}, {size}, 3]`, RGB, any B. Resize yours to {size} × {size} with Pillow's BILINEAR.
- labels: uint8 `[B, {size}, {size}]`, the likeliest channel, 0 = background.
- probs: float32 `[B, {size}, {size}, {channels}]`, softmax, channel 0 = background.
- centers: float32 `[B, {num_parts}, 2]`, the centre of mass (x, y) of each part's map; -1 and 1 are the
  centres of the outer pixels, so that in an image of W × H pixels it is ((x + 1) / 2 · (W - 1),
  (y + 1) / 2 · (H - 1)).

`python run.py IMAGE OUT.npz` does this for one image.
"""


def export_program(segmenter: Segmenter, directory: str | pathlib.Path) -> pathlib.Path:
  """Writes the program, a script that runs it and a README.

  The program maps images uint8 `[b, S, S, 3]`, S = config.image_size, b any number, to the fields of
  PartPrediction. It runs on all PLATFORMS.

  Args:
    segmenter: the network.
    directory: created if it is missing; files of the same names are replaced.

  Returns:
    The program's path.
  """
  config = segmenter.config
  size = config.image_size
  weights = (segmenter.params, segmenter.batch_stats)

  def predict(images: chex.Array) -> tuple[chex.Array, ...]:
    # Not a PartPrediction, which reading the program would import.
    return tuple(predict_parts(segmenter, images, weights))

  shape = jax.export.symbolic_shape(f"b, {size}, {size}, 3")
  with every_platform():
    exported = jax.export.export(jax.jit(predict), platforms=PLATFORMS)(
      jax.ShapeDtypeStruct(shape, jnp.uint8)
    )
  values = {
    "program": PROGRAM,
    "platforms": ", ".join(PLATFORMS),
    "segmenter": config.segmenter,
    "num_parts": config.num_parts,
    "channels": config.num_parts + 1,
    "step": segmenter.step,
    "size": size,
    "version": jax.__version__,
  }
  path = pathlib.Path(directory) / PROGRAM
  for name, data in (
    (PROGRAM, exported.serialize()),
    ("run.py", _SCRIPT.format(**values).encode()),
    ("README.md", _README.format(**values).encode()),
  ):
    with replacing(path.with_name(name)) as temporary:
      temporary.write_bytes(data)
  return path
