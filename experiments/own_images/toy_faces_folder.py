"""Writes toy faces as a folder of own images, the README's worked example.

python -m experiments.own_images.toy_faces_folder --out=data/my_faces --num=300
"""

import argparse
import pathlib

from experiments.own_images.folders import Drawing, write_folder
from scops_jax.data.toy_faces.drawing import LANDMARK_NAMES, draw_numbered_face


def draw(index: int) -> Drawing:
  """Returns the face number `index`."""
  face = draw_numbered_face((0, 0, index))
  points = zip(face.landmarks.tolist(), face.visible.tolist(), strict=True)
  landmarks = {name: (x, y, seen) for name, ((x, y), seen) in zip(LANDMARK_NAMES, points, strict=True)}
  return Drawing(face.image, face.saliency, face.parts, landmarks)


def main() -> None:
  """Writes images/, saliency/, parts/ and landmarks.csv."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--num", type=int, default=300)
  arguments = parser.parse_args()
  write_folder(arguments.out, map(draw, range(arguments.num)))


if __name__ == "__main__":
  main()
