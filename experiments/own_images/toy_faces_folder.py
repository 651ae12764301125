"""Writes toy faces as a folder of own images, the README's worked example.

python -m experiments.own_images.toy_faces_folder --out=data/my_faces --num=300
"""

import argparse
import csv
import pathlib

from scops_jax.data.builder import encode_png
from scops_jax.data.face_drawing import LANDMARK_NAMES, draw_numbered_face


def main() -> None:
  """Writes images/, saliency/, parts/ and landmarks.csv."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--num", type=int, default=300)
  arguments = parser.parse_args()
  for folder in ("images", "saliency", "parts"):
    (arguments.out / folder).mkdir(parents=True, exist_ok=True)
  with (arguments.out / "landmarks.csv").open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(["image", "landmark", "x", "y", "visible"])
    for index in range(arguments.num):
      face, name = draw_numbered_face((0, 0, index)), f"{index:05d}.png"
      for folder, array in (("images", face.image), ("saliency", face.saliency), ("parts", face.parts)):
        (arguments.out / folder / name).write_bytes(encode_png(array))
      for landmark, (x, y), visible in zip(LANDMARK_NAMES, face.landmarks, face.visible, strict=True):
        writer.writerow([name, landmark, f"{x:.2f}", f"{y:.2f}", int(visible)])


if __name__ == "__main__":
  main()
