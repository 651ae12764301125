"""Does real steps of configs/celeba.py at full size, from random weights, on drawn faces in CelebA's layout.

python -m experiments.celeba.step_on_cpu --steps=4

Prints the seconds of each step and the process's peak memory: what a step costs, not what is learned.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image

from scops_jax.data.toy_faces.drawing import draw_numbered_face

SIDE = 320  # pixels; the drawings are enlarged, so that images are resized as photographs are
LISTS = {"MAFL/training.txt": range(12, 18), "MAFL/testing.txt": range(18, 24)}


def write_faces(folder: pathlib.Path, count: int = 24) -> None:
  """Writes `count` drawn faces in CelebA's published layout: images, saliency maps, lists."""
  landmarks, boxes = [str(count), "lefteye_x … rightmouth_y"], [str(count), "image_id x_1 y_1 width height"]
  for name in ("img_celeba", "Saliency_Wild", "MAFL"):
    (folder / name).mkdir(parents=True)
  for index in range(count):
    face, stem = draw_numbered_face((0, 0, index)), f"{index:06d}"
    for array, path in ((face.image, f"img_celeba/{stem}.jpg"), (face.saliency, f"Saliency_Wild/{stem}.png")):
      Image.fromarray(array).resize((SIDE, SIDE)).save(folder / path)
    points = np.round(face.landmarks * SIDE / len(face.image), 1).ravel()
    landmarks.append(" ".join([f"{stem}.jpg", *map(str, points)]))
    boxes.append(f"{stem}.jpg 20 20 {SIDE - 40} {SIDE - 40}")
  (folder / "list_landmarks_celeba.txt").write_text("\n".join(landmarks) + "\n", encoding="utf-8")
  (folder / "list_bbox_celeba.txt").write_text("\n".join(boxes) + "\n", encoding="utf-8")
  for name, indices in LISTS.items():
    (folder / name).write_text("".join(f"{index:06d}.jpg\n" for index in indices), encoding="utf-8")


def main() -> None:
  """Trains in another process and reads its log."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--steps", type=int, default=4)
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    write_faces(folder / "celeba")
    settings = {
      "data.dir": folder / "celeba",
      "data.cache_dir": folder / "cache",
      "segmenter_weights": "random",
      "reference_weights": "random",
      "num_steps": arguments.steps,
      "log_every": 1,
      "eval_batch_size": 6,
      "nmf.num_images": 6,
      "nmf.num_iterations": 2,
    }
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "scops_jax.main", "--config=configs/celeba.py"]
    subprocess.run([*command, f"--workdir={folder / 'run'}", *flags], check=True)
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    batch_size = json.loads((folder / "run" / "config.json").read_text(encoding="utf-8"))["batch_size"]
  for record in map(json.loads, lines):
    seconds = batch_size / record["images_per_second"]
    print(f"step {record['step']}: {seconds:.1f} s, loss {record['loss']:.4g}")
  peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
  print(f"{batch_size} images of 256 × 256 per step; peak memory {peak:.1f} GiB (step 1 includes compiling)")


if __name__ == "__main__":
  main()
