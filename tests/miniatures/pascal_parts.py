"""PASCAL VOC 2010 and PASCAL-Part: horses; each entry says what is wrong with it."""

import io

import numpy as np
from scipy.io import savemat

from tests import miniatures

HEIGHT, WIDTH = 40, 60  # 2400 pixels
# Boxes are (top, bottom, left, right), the ends not part of them.
LARGE = (10, 30, 8, 40)  # 640 pixels: 27 %
SMALL = (0, 8, 45, 55)  # 80 pixels
# Faults, all among the training images.
FAULTS = {
  "2009_0": "there is no file",  # no image
  "2009_1": "the image can't be decoded: image file is truncated",
  "2009_2": "2009_2.mat",  # no annotation
  "2009_3": "2009_3.mat can't be read as a MATLAB 5 file",  # cut off
  "2009_4": "a mask of its annotation is not of the image's size, 40 × 60",
  "2009_5": "the silhouette of an object is empty",
  "2009_6": "'lwing' is not a part of a horse",
}


def write(folder, *, faults=True):
  """Writes four training and three test images of several heights with a horse each that passes."""
  for split, count in (("train", 4), ("val", 3)):
    names = [f"2008_{split}{index}" for index in range(count)]
    for index, name in enumerate(names):
      shape = (HEIGHT + index, WIDTH)
      write_image(folder, name, shape)
      parts = {"torso": (10, 20, 8, 40), "head": (10, 16, 8, 14), "lfuleg": (20, 30, 8, 12)}
      write_annotation(folder, name, [annotated("horse", LARGE, shape, **parts)])
    if faults and split == "train":
      for name in FAULTS:
        _write_fault(folder, name)
      names += FAULTS
    # CRLF, two spaces, no line end after the last entry.
    lines = [*(f"{name}  1" for name in names), "2008_nothing -1", "2008_difficult  0"]
    path = folder / "VOCdevkit" / "VOC2010" / "ImageSets" / "Main" / f"horse_{split}.txt"
    miniatures.write(path, "\r\n".join(lines))


def write_image(folder, name, shape=(HEIGHT, WIDTH)):
  miniatures.write(image_path(folder, name), miniatures.encoded(miniatures.pixels(*shape, 0)))


def write_annotation(folder, name, objects):
  """PASCAL-Part's file of an image with these objects (`annotated`)."""
  anno = elements([{"imname": name, "objects": elements(objects) if objects else np.zeros((0, 0))}])
  stream = io.BytesIO()
  savemat(stream, {"anno": anno}, do_compression=True)
  miniatures.write(annotation_path(folder, name), stream.getvalue())


def annotated(category, box, shape=(HEIGHT, WIDTH), **parts):
  """An object of PASCAL-Part; `parts` are boxes by name."""
  found = [{"part_name": name, "mask": rectangle(*area, shape)} for name, area in parts.items()]
  return {
    "class": category,
    "class_ind": 13.0,
    "mask": rectangle(*box, shape),
    "parts": elements(found) if found else np.zeros((0, 0)),
  }


def elements(rows):
  """A MATLAB struct array, as savemat writes it, of dicts."""
  array = np.empty((1, len(rows)), [(name, object) for name in rows[0]])
  for index, row in enumerate(rows):
    for name, value in row.items():
      array[0, index][name] = value
  return array


def rectangle(top, bottom, left, right, shape=(HEIGHT, WIDTH)):
  mask = np.zeros(shape, bool)
  mask[top:bottom, left:right] = True
  return mask


def image_path(folder, name):
  return folder / "VOCdevkit" / "VOC2010" / "JPEGImages" / f"{name}.jpg"


def annotation_path(folder, name):
  return folder / "Annotations_Part" / f"{name}.mat"


def _write_fault(folder, name):
  write_image(folder, name)
  horse = annotated("horse", LARGE, (HEIGHT + 1, WIDTH) if name == "2009_4" else (HEIGHT, WIDTH))
  if name == "2009_5":
    horse = annotated("horse", (0, 0, 0, 0))
  if name == "2009_6":
    horse = annotated("horse", LARGE, lwing=LARGE)
  write_annotation(folder, name, [horse])
  image, annotation = image_path(folder, name), annotation_path(folder, name)
  if name == "2009_0":
    image.unlink()
  if name == "2009_1":
    miniatures.write(image, image.read_bytes()[:-30])
  if name == "2009_2":
    annotation.unlink()
  if name == "2009_3":
    miniatures.write(annotation, annotation.read_bytes()[:-50])
