"""Draws docs/pictures/faces and faces.gif: new faces, and the parts that the package's network finds in them.

python -m docs.pictures.draw
"""

import pathlib

from PIL import Image

import scops_jax
from scops_jax.data.toy_faces.drawing import draw_numbered_face

FOLDER = pathlib.Path(__file__).parent
SEED, COUNT = 7, 4  # the network was trained on seed 0
STEPS, MILLISECONDS = 4, 120


def main() -> None:
  """Writes the pictures."""
  predictor = scops_jax.load_predictor("toy_faces")
  before, after = [], []
  for index in range(COUNT):
    path = FOLDER / "faces" / f"{index}.png"
    face = Image.fromarray(draw_numbered_face((SEED, 1, index)).image)
    face.save(path)
    after.append(predictor.overlay(path, legend=False))
    before.append(face.resize(after[-1].size, Image.Resampling.BICUBIC))
  plain, parts = _in_a_row(before), _in_a_row(after)
  blends = [Image.blend(plain, parts, i / STEPS) for i in range(STEPS + 1)]
  frames = [*blends, *reversed(blends[1:-1])]
  times = [1500 if frame in (plain, blends[0], blends[-1]) else MILLISECONDS for frame in frames]
  small = [frame.convert("P", palette=Image.Palette.ADAPTIVE, colors=96) for frame in frames]
  small[0].save(
    FOLDER / "faces.gif", save_all=True, append_images=small[1:], duration=times, loop=0, optimize=True
  )


def _in_a_row(pictures: list[Image.Image]) -> Image.Image:
  side = 200
  row = Image.new("RGB", (side * len(pictures), side))
  for i, picture in enumerate(pictures):
    row.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (side * i, 0))
  return row


if __name__ == "__main__":
  main()
