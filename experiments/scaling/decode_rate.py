"""Host time per image of a batch: from JPEG and PNG files in memory to arrays of the network's size.

python -m experiments.scaling.decode_rate

It is the CPU time of one thread, so that other work on the machine does not count.
"""

import io
import time

import numpy as np
from PIL import Image

from configs import celeba
from scops_jax.data.builder import encode_png
from scops_jax.data.collection import ExampleSource
from scops_jax.data.pipeline import train_batches
from scops_jax.data.toy_faces.drawing import draw_face

_EDGE = 448  # pixels; CelebA's photographs are about this large
_NUM_FILES, _NUM_BATCHES, _BATCH_SIZE = 12, 8, 12


def main() -> None:
  rng = np.random.default_rng(0)
  records = []
  for i in range(_NUM_FILES):
    face = draw_face(np.random.default_rng(i), _EDGE)
    noisy = np.clip(face.image + rng.normal(0, 4, face.image.shape), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noisy).save(stream, "JPEG", quality=92)
    records.append({"image": stream.getvalue(), "saliency": encode_png(face.saliency)})
  size = celeba.get_config().image_size
  options = {"batch_size": _BATCH_SIZE, "image_size": size, "seed": 0, "num_threads": 0}
  batches = train_batches(ExampleSource(records), **options)
  next(batches)
  began = time.process_time()
  for _ in range(_NUM_BATCHES):
    next(batches)
  seconds = (time.process_time() - began) / (_NUM_BATCHES * _BATCH_SIZE)
  kilobytes = np.mean([len(record["image"]) for record in records]) / 1024
  print(f"{_EDGE} × {_EDGE} JPEG of {kilobytes:.0f} KiB and PNG map → {size} × {size}")
  print(f"{1e3 * seconds:.2f} ms per image, {1 / seconds:.0f} images/s per core")


if __name__ == "__main__":
  main()
