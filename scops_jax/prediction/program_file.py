"""Exports a run's network as one file that only JAX is needed to run: StableHLO with the weights inside."""

import hashlib
import inspect
import pathlib

import chex
import jax
import jax.numpy as jnp

from scops_jax.data import image_files
from scops_jax.kernels.platforms import every_platform
from scops_jax.prediction.predictor import predict_parts
from scops_jax.prediction.restore import Segmenter
from scops_jax.storage.files import replacing
from scops_jax.storage.paths import as_path

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM = "parts.stablehlo"

_SCRIPT = '''\
"""Finds the parts of an image: python run.py IMAGE OUT.npz. Needs jax, flatbuffers, NumPy and Pillow."""
import contextlib
import hashlib
import pathlib
import sys
from typing import NamedTuple

import jax.export
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

{decoding}
if len(sys.argv) != 3:
  sys.exit("usage: python run.py IMAGE OUT.npz")
try:
  content = (pathlib.Path(__file__).parent / "{program}").read_bytes()
except OSError as error:
  sys.exit(f"error: {{error}}")
if hashlib.sha256(content).hexdigest() != "{digest}":
  sys.exit("error: {program} is damaged, or not that of this script: export it again")
program = jax.export.deserialize(content)
try:
  picture = Image.open(sys.argv[1])
  picture.load()
  image = decode_picture(picture).image
except Exception as error:  # Pillow raises many kinds of errors for damaged files
  sys.exit(f"error: {{sys.argv[1]}} can't be read: {{error}}")
square = image.resize(({size}, {size}), Image.Resampling.BILINEAR)
_, probs, centers = program.call(np.asarray(square)[None])
probs = np.asarray(probs[0])
maps = [
  Image.fromarray(np.ascontiguousarray(probs[..., k])).resize(image.size, Image.Resampling.BILINEAR)
  for k in range({channels})
]
labels = np.argmax([np.asarray(m) for m in maps], axis=0).astype(np.uint8)
points = (np.asarray(centers[0], np.float64) + 1) / 2 * {last}
pixels = (points + 0.5) * image.size / {size} - 0.5
np.savez(sys.argv[2], labels=labels, probs=probs, centers=centers[0], pixels=pixels)
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
- probs: float32 `[B, {size}, {size}, {channels}]`, softmax, channel 0 = background. To label an image,
  resize each channel to the image's size with Pillow's BILINEAR and take the likeliest.
- centers: float32 `[B, {num_parts}, 2]`, the centre of mass (x, y) of each part's map; -1 and 1 are the
  centres of the outer pixels of the {size} × {size} square. In an image W pixels wide, an integer being a
  pixel's centre, x lies at ((x + 1) / 2 · {last} + 1/2) · W / {size} - 1/2; y likewise with the height.

`python run.py IMAGE OUT.npz` does this for one image. It turns it upright (EXIF), blends transparent pixels
with white and scales 16 bits to 8. It writes labels `[H, W]` of the image's size, probs, centers, and pixels
`[{num_parts}, 2]`, the centres in pixels of the image.
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
  content = exported.serialize()
  values = {
    "program": PROGRAM,
    "digest": hashlib.sha256(content).hexdigest(),
    "platforms": ", ".join(PLATFORMS),
    "segmenter": config.segmenter,
    "num_parts": config.num_parts,
    "channels": config.num_parts + 1,
    "step": segmenter.step,
    "size": size,
    "last": size - 1,
    "decoding": "\n\n".join(inspect.getsource(item) for item in image_files.DECODING),
    "version": jax.__version__,
  }
  path = as_path(directory) / PROGRAM
  for name, data in (
    (PROGRAM, content),
    ("run.py", _SCRIPT.format(**values).encode()),
    ("README.md", _README.format(**values).encode()),
  ):
    with replacing(path.with_name(name)) as temporary:
      temporary.write_bytes(data)
  return path
