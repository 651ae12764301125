"""CUB-200-2011: two categories; each entry says what is wrong with it."""

import numpy as np

from scops_jax.data.published.cub_parts import CubParts
from tests import miniatures

CLASSES = {"1": "001.Black_footed_Albatross", "2": "002.Laysan_Albatross"}
HEIGHT, WIDTH = 30, 44
# Image number: class, training (1) or test (0), the box.
BIRDS = {
  "1": ("1", 1, (10.0, 8.0, 20.0, 12.0)),
  "2": ("1", 0, (0.0, 0.0, 44.0, 30.0)),  # the whole image: its square does not fit
  "3": ("1", 1, (24.0, 2.0, 20.0, 10.0)),  # at the corner: its square is moved
  "4": ("1", 0, (4.5, 5.25, 18.0, 20.0)),
  "5": ("1", 1, (8.0, 4.0, 16.0, 21.0)),
  "6": ("2", 1, (10.0, 8.0, 20.0, 12.0)),
  "7": ("2", 0, (10.0, 8.0, 20.0, 12.0)),
}
# Faults in category 1, by image number.
FAULTS = {
  "11": ("Bird_11.jpg", "there is no file"),
  "12": ("Bird_12.jpg", "the image can't be decoded: image file is truncated"),
  "13": ("Bird_13.jpg", "there is no saliency map"),
  "14": ("Bird_14.jpg", "part_locs.txt should have each of 15 parts once"),
  "15": ("Bird_15.jpg", "bounding_boxes.txt has no line"),
  "16": ("Bird_16.jpg", "images.txt does not list it"),
  "17": ("Bird_17.jpg", "does not say 0 or 1"),
}
# Parts that an image does not show; their coordinates are 0 there.
HIDDEN = {"1": (7, 8), "4": (3,)}


def landmarks(number):
  """The 15 parts `[15, 2]` inside the box, in pixels."""
  x, y, width, height = np.asarray(BIRDS.get(number, BIRDS["1"])[2])
  index = np.arange(15)
  unit = np.stack([(index % 5 + 0.5) / 5, (index // 5 + 0.5) / 3 + int(number) % 3 / 20], axis=1)
  return (unit * (width, height) + (x, y)).round(2)


def write(folder, *, faults=True):
  """Writes the layout; CRLF in images.txt and part_locs.txt."""
  root, birds = folder / "CUB_200_2011", dict(BIRDS)
  if faults:
    birds |= dict.fromkeys(FAULTS, BIRDS["1"])
  lists = {name: [] for name in ("images", "split", "boxes", "parts")}
  for number, (kind, training, box) in birds.items():
    name = f"{CLASSES[kind]}/Bird_{number}.jpg"
    picture = miniatures.encoded(miniatures.pixels(HEIGHT, WIDTH, int(number)))
    if number != "11":
      miniatures.write(root / "images" / name, picture[:-30] if number == "12" else picture)
    if number != "13":
      mask = miniatures.encoded(miniatures.soft_mask(HEIGHT, WIDTH), "PNG")
      miniatures.write(folder / "segmentations" / name.replace(".jpg", ".png"), mask)
    if number != "16":
      lists["images"].append(f"{number} {name}")
    if number != "17":
      lists["split"].append(f"{number} {training}")
    if number != "15":
      lists["boxes"].append(" ".join(map(str, (number, *box))))
    for part, (x, y) in enumerate(landmarks(number)[: 9 if number == "14" else 15]):
      shown = part not in HIDDEN.get(number, ())
      lists["parts"].append(f"{number} {part + 1} {x if shown else 0.0} {y if shown else 0.0} {int(shown)}")
  names = [name.replace("_", " ") for name in CubParts.landmark_names]
  for path, lines, end in (
    ("classes.txt", [" ".join(item) for item in CLASSES.items()], "\n"),
    ("images.txt", lists["images"], "\r\n"),
    ("train_test_split.txt", lists["split"], "\n"),
    ("bounding_boxes.txt", lists["boxes"], "\n"),
    ("parts/parts.txt", [f"{number} {name}" for number, name in enumerate(names, 1)], "\r\n"),
    ("parts/part_locs.txt", lists["parts"], "\r\n"),
  ):
    miniatures.write(root / path, end.join([*lines, ""]))
