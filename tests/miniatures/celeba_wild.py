"""CelebA: 12 images and their lists; each entry says what is wrong with it."""

import numpy as np

from tests import miniatures

# Name: height, width, the box's width and height. The box must cover 30 % of the image.
GOOD = {
  "000001.jpg": (40, 30, 30, 20),
  "000002.jpg": (33, 47, 40, 30),
  "000003.jpg": (20, 20, 12, 10),  # exactly 30 %
  "000004.jpg": (25, 50, 30, 20),
}
SMALL = {"000005.jpg": (50, 40, 20, 20), "000006.jpg": (20, 20, 11, 10)}  # 20 %, 27.5 %
MAFL_TRAIN = {"000011.jpg": (40, 40, 30, 30), "000012.jpg": (30, 50, 40, 20), "000013.jpg": (60, 60, 10, 10)}
MAFL_TEST = {"000021.jpg": (44, 36, 30, 30), "000022.jpg": (64, 64, 10, 10), "000023.jpg": (32, 48, 30, 30)}
# Faults, all among the training images: names sort after the good ones.
FAULTS = {
  "000031.jpg": "there is no file",
  "000032.jpg": "the image can't be decoded: image file is truncated",
  "000033.jpg": "there is no saliency map",
  "000034.jpg": "have no landmarks for it",
  "000035.jpg": "expected 10 numbers after '000035.jpg'",
  "000036.jpg": "have no box for it",
}


def landmarks(name, height, width):
  """Five points `[5, 2]` in pixels that follow the image's size."""
  shift = (int(name[:6]) % 5) / 50
  return np.asarray([[0.3, 0.35], [0.7, 0.35 + shift], [0.5, 0.55], [0.35, 0.75], [0.65 + shift, 0.75]]) * (
    width,
    height,
  )


def write(folder, *, faults=True, sizes=False, training_list=False):
  """Writes the layout; CRLF in the landmarks, a blank line in the boxes, no line end after the last entry."""
  images = GOOD | SMALL | MAFL_TRAIN | MAFL_TEST
  if faults:
    images |= dict.fromkeys(FAULTS, (40, 40, 30, 30))
  for name, (height, width, _, _) in images.items():
    _write_pictures(folder, name, height, width)
  _write_annotations(folder, images)
  if sizes:
    lines = [f"{name} {height} {width}" for name, (height, width, _, _) in images.items()]
    miniatures.write(folder / "list_imsize_celeba.txt", "\n".join(lines))
  miniatures.write(folder / "MAFL" / "training.txt", "\r\n".join(MAFL_TRAIN))
  miniatures.write(folder / "MAFL" / "testing.txt", "\n".join([*MAFL_TEST, "\n"]))
  if training_list:
    names = ["000001.jpg", "000005.jpg", "000011.jpg", "000003.jpg"]
    miniatures.write(folder / "MAFL" / "celebA_training.txt", "\n".join(names))


def _write_pictures(folder, name, height, width):
  picture = miniatures.encoded(miniatures.pixels(height, width, int(name[:6])))
  if name == "000032.jpg":
    picture = picture[:-30]
  if name != "000031.jpg":
    miniatures.write(folder / "img_celeba" / name, picture)
  if name != "000033.jpg":
    # A map of half the size stands for one of another size than the image.
    scale = 2 if name == "000002.jpg" else 1
    mask = miniatures.encoded(miniatures.soft_mask(height // scale, width // scale), "PNG")
    miniatures.write(folder / "Saliency_Wild" / f"{name[:6]}.png", mask)


def _write_annotations(folder, images):
  points, boxes = [], []
  for name, (height, width, box_width, box_height) in images.items():
    values = landmarks(name, height, width).round().astype(int).ravel().tolist()
    if name == "000035.jpg":
      values = values[:7]
    if name != "000034.jpg":
      points.append(" ".join(map(str, [name, *values])))
    if name != "000036.jpg":
      boxes.append(f"{name}   2  3 {box_width} {box_height}")
  columns = "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x"
  header = [str(len(points)), f"{columns} rightmouth_y"]
  miniatures.write(folder / "list_landmarks_celeba.txt", "\r\n".join([*header, *points]))
  header = [str(len(boxes)), "image_id x_1 y_1 width height", ""]
  miniatures.write(folder / "list_bbox_celeba.txt", "\n".join([*header, *boxes, ""]))
