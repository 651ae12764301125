"""Composes mammals: 128 × 128 pictures of quadrupeds cut out of photographs, with landmarks and soft masks.

python -m experiments.photographs.make_mammals --out=data/mammals [--stamps=DIR] [--backgrounds=DIR]

The photographs are the reader's to get (README): --stamps is the folder `stamps` of Debian's
tuxpaint-stamps-default, --backgrounds the folder `nature` of mate-backgrounds; further backgrounds are the
sample pictures of scikit-image, noise and gradients. The landmarks in the photographs are in
mammal_annotations.json. The same seed gives the same bytes with the same versions of Pillow and NumPy.
Coordinates: an integer is the centre of a pixel, in the annotations and in landmarks.csv; inside this module
it is the corner.
"""

import argparse
import csv
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np
import skimage
from PIL import Image, ImageDraw
from skimage.measure import label

SIZE = 128  # edge of the pictures
SUPERSAMPLING = 2  # of the animal
PAD = 8  # transparent border added to the photographs
FILL = (0.35, 0.85)  # longer side of the animal's bounding box over the edge of the picture
TILT = 20.0  # degrees
LEAVES = 0.12  # of its width or height that an animal may leave the frame by, in one picture of ten
LANDMARKS = (
  "nose",
  "head",
  "neck_base",
  "back_mid",
  "tail_base",
  "tail_tip",
  "paw_front",
  "paw_hind",
)
TEXTURES = ("brick.png", "grass.png", "gravel.png", "moon.png")  # grey, tinted here
COLORED = ("coffee.png", "hubble_deep_field.jpg", "ihc.png", "rocket.jpg", "motorcycle_left.png")
PHOTOS = (
  "Aqua.jpg",
  "Blinds.jpg",
  "Dune.jpg",
  "FreshFlower.jpg",
  "Garden.jpg",
  "GreenMeadow.jpg",
  "RainDrops.jpg",
  "Storm.jpg",
  "Wood.jpg",
  "YellowFlower.jpg",
)
SOURCE_COLUMNS = (
  "image",
  "split",
  "source",
  "species",
  "view",
  "pose",
  "mirrored",
  "angle",
  "fill",
  "foreground",
  "background",
)

Generator = np.random.Generator
Annotation = dict[str, Any]


class Animal(NamedTuple):
  """A cut-out photograph."""

  pixels: np.ndarray  # [h, w, 4] premultiplied RGBA, 0..1
  points: np.ndarray  # [8, 2] (x, y), corner coordinates
  visible: np.ndarray  # [8] bool


class Picture(NamedTuple):
  """A composed picture."""

  image: np.ndarray  # [SIZE, SIZE, 3], 0..1
  saliency: np.ndarray  # [SIZE, SIZE], 0..1
  points: np.ndarray  # [8, 2] (x, y), an integer is a pixel's centre
  visible: np.ndarray  # [8] bool
  facts: list[Any]  # the last columns of meta/sources.csv


def blur(array: np.ndarray, sigma: float) -> np.ndarray:
  """Gaussian blur of a [h, w] or [h, w, c] array, edges repeated."""
  radius = max(1, int(np.ceil(3 * sigma)))
  kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
  kernel /= kernel.sum()
  for axis in (0, 1):
    count = array.shape[axis]
    pad = [(0, 0)] * array.ndim
    pad[axis] = (radius, radius)
    padded = np.pad(array, pad, mode="edge")
    array = sum(
      weight * (padded[i : i + count] if axis == 0 else padded[:, i : i + count])
      for i, weight in enumerate(kernel)
    )
  return array


def warp(array: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
  """Resamples [h, w, c] into size × size; `matrix` [2, 3] maps source to target in corner coordinates."""
  inverse = np.linalg.inv(matrix[:, :2])
  shift = -inverse @ matrix[:, 2]
  data = (inverse[0, 0], inverse[0, 1], shift[0], inverse[1, 0], inverse[1, 1], shift[1])
  planes = (np.ascontiguousarray(array[..., c], dtype=np.float32) for c in range(array.shape[2]))
  return np.dstack(
    [
      np.asarray(
        Image.fromarray(plane).transform(
          (size, size), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR
        ),
        dtype=float,
      )
      for plane in planes
    ]
  )


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
  """Returns RGB."""
  sector = int(hue * 6) % 6
  f = hue * 6 - int(hue * 6)
  p, q = value * (1 - saturation), value * (1 - f * saturation)
  t = value * (1 - (1 - f) * saturation)
  v = value
  return np.array([(v, t, p), (q, v, p), (p, v, t), (p, q, v), (t, p, v), (v, p, q)][sector])


class Backgrounds:
  """Crops of pictures, noise and gradients."""

  def __init__(self, folder: pathlib.Path) -> None:
    samples = pathlib.Path(skimage.__file__).parent / "data"
    self.textures = [self._load(samples / name) for name in TEXTURES]
    self.colored = [self._load(samples / name) for name in COLORED]
    self.photos = [self._load(folder / name) for name in PHOTOS]

  @staticmethod
  def _load(path: pathlib.Path, limit: int = 900) -> Image.Image:
    picture = Image.open(path).convert("RGB")
    scale = limit / max(picture.size)
    if scale >= 1:
      return picture
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BOX)

  @staticmethod
  def _crop(picture: Image.Image, rng: Generator) -> np.ndarray:
    shorter = min(picture.size)
    side = min(max(rng.uniform(0.25, 0.95) * shorter, 100), shorter)
    x, y = rng.uniform(0, picture.width - side), rng.uniform(0, picture.height - side)
    resampling = Image.Resampling.BOX if side > SIZE else Image.Resampling.BILINEAR
    crop = picture.resize((SIZE, SIZE), resampling, (x, y, x + side, y + side))
    pixels = np.asarray(crop, dtype=float) / 255
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels

  @staticmethod
  def _noise(rng: Generator, beta: float | None = None) -> np.ndarray:
    beta = rng.uniform(0.8, 2.2) if beta is None else beta
    fy, fx = np.fft.fftfreq(SIZE)[:, None], np.fft.fftfreq(SIZE)[None]
    stretch = rng.uniform(0.4, 1.6) if rng.random() < 0.4 else 1.0
    frequency = np.hypot(fx * stretch, fy / stretch)
    frequency[0, 0] = 1 / SIZE
    field = np.fft.ifft2(np.fft.fft2(rng.standard_normal((SIZE, SIZE))) / frequency**beta).real
    field -= field.min()
    return (field / (field.max() + 1e-9))[..., None]

  @staticmethod
  def _color(rng: Generator) -> np.ndarray:
    """Mostly muted colours as they occur outdoors, sometimes saturated ones."""
    hue = rng.random()
    saturation = rng.uniform(0.08, 0.6) if rng.random() < 0.8 else rng.uniform(0.47, 0.9)
    return hsv(hue, saturation, rng.uniform(0.16, 0.94))

  def sample(self, rng: Generator) -> tuple[np.ndarray, str]:
    """Draws a background [SIZE, SIZE, 3], 0..1, and its kind."""
    draw = rng.random()
    if draw < 0.45:
      kind, pixels = "photo", self._crop(self.photos[rng.integers(len(self.photos))], rng)
    elif draw < 0.60:
      kind, pixels = "colour", self._crop(self.colored[rng.integers(len(self.colored))], rng)
    elif draw < 0.78:
      kind = "texture"
      grey = self._crop(self.textures[rng.integers(len(self.textures))], rng).mean(2, keepdims=True)
      dark, bright = self._color(rng) * 0.5, np.clip(self._color(rng) + 0.3, 0, 1)
      pixels = dark * (1 - grey) + bright * grey
    elif draw < 0.93:
      kind, field, patches = "noise", self._noise(rng), self._noise(rng, 2.5)
      first, second, third = self._color(rng), self._color(rng), self._color(rng)
      pixels = (first * (1 - field) + second * field) * (1 - 0.5 * patches) + 0.5 * patches * third
    else:
      kind, angle = "gradient", rng.uniform(0, 2 * np.pi)
      y, x = np.mgrid[0:SIZE, 0:SIZE] / (SIZE - 1) - 0.5
      ramp = np.clip((x * np.cos(angle) + y * np.sin(angle)) / 1.2 + 0.5, 0, 1)[..., None]
      pixels = self._color(rng) * (1 - ramp) + self._color(rng) * ramp
      pixels = pixels + 0.03 * rng.standard_normal((SIZE, SIZE, 1))
    if rng.random() < 0.35:  # out of focus
      pixels = blur(pixels, rng.uniform(0.6, 3.0))
    pixels = (pixels - 0.5) * rng.uniform(0.75, 1.1) + 0.5 + rng.uniform(-0.1, 0.1)
    return np.clip(pixels * rng.uniform(0.92, 1.08, 3), 0, 1), kind


def load_animal(annotation: Annotation, stamps: pathlib.Path) -> Animal:
  """Reads a photograph and its landmarks.

  Raises:
    ValueError: the photograph is not the annotated one.
  """
  picture = Image.open(stamps / annotation["file"]).convert("RGBA")
  if picture.size != (annotation["width"], annotation["height"]):
    raise ValueError(f"{annotation['file']} has {picture.size} pixels: another version of the package?")
  pixels = np.asarray(picture, dtype=float) / 255
  rgb, alpha = pixels[..., :3], pixels[..., 3].copy()
  for polygon in annotation.get("erase", []):  # things that do not belong to the animal
    mask = Image.new("L", picture.size, 0)
    ImageDraw.Draw(mask).polygon([tuple(point) for point in polygon], fill=1)
    alpha[np.asarray(mask) > 0] = 0
  regions = label(alpha > 0.25, connectivity=2)  # drop specks
  areas = np.bincount(regions.ravel())
  areas[0] = 0
  kept = np.isin(regions, np.nonzero(areas >= 0.02 * areas.max())[0])
  padded = np.pad(kept, 1)
  near = np.zeros_like(kept)
  for dy in range(3):
    for dx in range(3):
      near |= padded[dy : dy + kept.shape[0], dx : dx + kept.shape[1]]
  alpha *= near
  alpha = np.pad(alpha, PAD)
  rgb = np.pad(rgb, ((PAD, PAD), (PAD, PAD), (0, 0)), mode="edge")
  marks = [annotation["landmarks"][name] for name in LANDMARKS]
  points = np.array([[mark[axis] + 0.5 + PAD for axis in "xy"] for mark in marks], dtype=float)
  visible = np.array([mark["visible"] for mark in marks]) > 0
  return Animal(np.dstack([rgb * alpha[..., None], alpha]), points, visible)


def light(rgb: np.ndarray, rng: Generator) -> np.ndarray:
  """Changes colour, saturation, contrast, brightness and gamma, and lights the picture from one side."""
  rgb = rgb * rng.uniform(0.92, 1.08, 3)
  grey = rgb.mean(2, keepdims=True)
  rgb = grey + (rgb - grey) * rng.uniform(0.75, 1.25)
  rgb = (rgb - 0.5) * rng.uniform(0.85, 1.15) + 0.5 + rng.uniform(-0.10, 0.10)
  angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.18)
  y, x = (np.mgrid[0:SIZE, 0:SIZE] / (SIZE - 1) - 0.5) * 2
  rgb = np.clip(rgb, 0, 1) * (1 + strength * (x * np.cos(angle) + y * np.sin(angle)))[..., None]
  return np.clip(rgb, 0, 1) ** rng.uniform(0.85, 1.18)


def compose(animal: Animal, rng: Generator, backgrounds: Backgrounds) -> Picture:
  """Places an animal on a background."""
  y, x = np.nonzero(animal.pixels[..., 3] > 0.5)
  outline = np.stack([x, y], 1) + 0.5
  mirrored, angle, fill = bool(rng.random() < 0.5), rng.uniform(-TILT, TILT), rng.uniform(*FILL)
  radians = np.deg2rad(angle)
  turn = np.array([[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]])
  turn = turn @ np.diag([-1.0 if mirrored else 1.0, 1.0])
  turned = outline @ turn.T
  low, high = turned.min(0) - 0.5, turned.max(0) + 0.5
  scale = fill * SIZE / (high - low).max()
  extent = (high - low) * scale
  outside = LEAVES * extent if rng.random() < 0.10 else np.zeros(2)
  shift = rng.uniform(-outside, SIZE - extent + outside) - low * scale
  matrix = np.hstack([turn * scale, shift[:, None]])
  points = animal.points @ matrix[:, :2].T + matrix[:, 2]
  inside = ((points >= 0) & (points <= SIZE)).all(1)
  fine = scale * SUPERSAMPLING
  source = blur(animal.pixels, 0.45 / fine) if fine < 1 else animal.pixels
  warped = warp(source, matrix * SUPERSAMPLING, SIZE * SUPERSAMPLING)
  warped = warped.reshape(SIZE, SUPERSAMPLING, SIZE, SUPERSAMPLING, 4).mean((1, 3))
  warped = np.clip(warped, 0, 1)
  alpha = warped[..., 3:]
  foreground = light(np.clip(warped[..., :3] / np.maximum(alpha, 1e-3), 0, 1), rng)
  background, kind = backgrounds.sample(rng)
  image = foreground * alpha + background * (1 - alpha) + rng.normal(0, 0.008, (SIZE, SIZE, 3))
  saliency = blur(alpha[..., 0], rng.uniform(0.8, 1.6)) + rng.normal(0, 0.02, (SIZE, SIZE))
  facts = [int(mirrored), f"{angle:.1f}", f"{fill:.3f}", f"{(alpha > 0.5).mean():.4f}", kind]
  return Picture(np.clip(image, 0, 1), np.clip(saliency, 0, 1), points - 0.5, animal.visible & inside, facts)


def write_csv(path: pathlib.Path, header: tuple[str, ...], rows: list[list[Any]]) -> None:
  """Writes a table."""
  with path.open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)


def make(
  out: pathlib.Path, counts: dict[str, int], seed: int, backgrounds: Backgrounds, stamps: pathlib.Path
) -> None:
  """Writes the collection, in the layout of own images and with meta/sources.csv."""
  text = pathlib.Path(__file__).with_name("mammal_annotations.json").read_text(encoding="utf-8")
  annotations: dict[str, Annotation] = json.loads(text)
  for name in ("images", "saliency", "meta"):
    (out / name).mkdir(parents=True, exist_ok=True)
  animals = {name: load_animal(annotation, stamps) for name, annotation in annotations.items()}
  landmarks: list[list[Any]] = []
  sources: list[list[Any]] = []
  for split, count in counts.items():
    names = sorted(name for name in annotations if annotations[name]["split"] == split)
    # Balanced over the photographs.
    order = np.random.default_rng([seed, 1, count]).permutation(np.arange(count) % len(names))
    files = []
    for choice in order:
      index, name = len(sources), names[choice]
      picture = compose(animals[name], np.random.default_rng([seed, 2, index]), backgrounds)
      file = f"mammal_{index:05d}.jpg"
      Image.fromarray((picture.image * 255 + 0.5).astype(np.uint8)).save(out / "images" / file, quality=92)
      levels = (np.round(picture.saliency * 15) * 17).astype(np.uint8)  # 16 levels
      Image.fromarray(levels).save((out / "saliency" / file).with_suffix(".png"), optimize=True)
      files.append(file)
      for landmark, (x, y), shown in zip(LANDMARKS, picture.points, picture.visible, strict=True):
        landmarks.append([file, landmark, f"{x:.2f}", f"{y:.2f}", int(shown)])
      about = [annotations[name][key] for key in ("species", "view", "pose")]
      sources.append([file, split, name, *about, *picture.facts])
    (out / f"{split}.txt").write_text("\n".join(files) + "\n", encoding="utf-8")
  write_csv(out / "landmarks.csv", ("image", "landmark", "x", "y", "visible"), landmarks)
  write_csv(out / "meta" / "sources.csv", SOURCE_COLUMNS, sources)


def main() -> None:
  """Writes the collection that the arguments ask for."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--stamps", type=pathlib.Path, default="usr/share/tuxpaint/stamps")
  parser.add_argument("--backgrounds", type=pathlib.Path, default="usr/share/backgrounds/mate/nature")
  parser.add_argument("--seed", type=int, default=2025)
  parser.add_argument("--train", type=int, default=1000)
  parser.add_argument("--test", type=int, default=400)
  arguments = parser.parse_args()
  counts = {"train": arguments.train, "test": arguments.test}
  make(arguments.out, counts, arguments.seed, Backgrounds(arguments.backgrounds), arguments.stamps)


if __name__ == "__main__":
  main()
