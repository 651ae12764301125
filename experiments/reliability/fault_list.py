"""The faults: what is damaged or asked for, which command meets it, and what an error or note must name."""

import io
import itertools
import json
import os
import pathlib
import pickle
import shutil
import signal
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from experiments.reliability import children
from experiments.reliability.site import Site
from scops_jax import train
from scops_jax.config import _CHOICES, FROM_COLLECTION, RANGES, default_config, flat_values
from scops_jax.data import collection
from scops_jax.runs import feature_cache
from tests.faults.test_data_strangers import AFLW_FAULTS, MATLAB_FAULTS, bomb
from tests.faults.test_weights_hostile import HOSTILE
from tests.miniatures import aflw, celeba_wild, cub_parts, pascal_parts

Damage = Callable[[Site], Any]


@dataclass(frozen=True)
class Fault:
  """A fault, the command that meets it, and what may follow."""

  group: str
  title: str  # distinct
  command: str  # see site.Site.flags
  named: str  # in the error, or in the note if the result is another one
  damage: Damage = lambda site: None
  change: Callable[[Site, list[str]], list[str]] = lambda site, arguments: arguments
  refused: bool = False  # whether exit code 0 is wrong in any case
  code: int = 1  # of the exit, if there is an error
  around: Callable[[children.Command], children.Command] | None = field(default=None, repr=False)
  folder: str | None = None  # the command's working directory


def all_faults(template: Site) -> list[Fault]:
  """Returns all faults, each group's together."""
  groups = (
    _files_of_a_run(template),
    _files_of_a_data_set(template),
    _files_of_predictions(),
    _exported_program(),
    _config_values(),
    _flags(),
    _weights(),
    _images(),
    _own_folders(),
    _published(),
    _starts(),
    _signals(),
  )
  faults = list(itertools.chain.from_iterable(groups))
  titles = [fault.title for fault in faults]
  assert len(set(titles)) == len(titles), "a title is used twice"
  return faults


def add_files(template: Site) -> None:
  """Adds what faults need and undamaged commands do not read."""
  for name, module in _PUBLISHED.items():
    module.write(template.path(f"published/{name}"), faults=False)


def _flip(path: pathlib.Path) -> None:
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 16
  path.write_bytes(content)


def _cut(path: pathlib.Path) -> None:
  os.truncate(path, path.stat().st_size // 2)


def _empty(path: pathlib.Path) -> None:
  os.truncate(path, 0)


def _replace_by_a_folder(path: pathlib.Path) -> None:
  path.unlink()
  path.mkdir()


_DAMAGES = {"flipped": _flip, "cut": _cut, "emptied": _empty, "missing": pathlib.Path.unlink}


def _at(name: str, damage: Callable[[pathlib.Path], Any]) -> Damage:
  return lambda site: damage(site.path(name))


def _unpredicted(damage: Damage) -> Damage:
  """Removes predictions too, which another checkpoint's may not join."""

  def change(site: Site) -> None:
    shutil.rmtree(site.path("out"), ignore_errors=True)
    damage(site)

  return change


def _names(template: Site, folder: str) -> Iterator[str]:
  for path in sorted(template.path(folder).rglob("*")):
    if path.is_file() and path.stat().st_size:
      yield str(path.relative_to(template.place.root))


def _files_of_a_run(template: Site) -> Iterator[Fault]:
  newest = "run/checkpoints/6"
  for name, (how, damage) in itertools.product(_names(template, newest), _DAMAGES.items()):
    for command in ("main", "predict"):
      yield Fault(
        "checkpoints",
        f"{name} {how}, {command}",
        command,
        "checkpoint 6",
        _unpredicted(_at(name, damage)),
      )
  whole: dict[str, Damage] = {
    "the folder of a checkpoint is empty": lambda site: _emptied(site.path(newest)),
    "a checkpoint has another's content": lambda site: _copied(
      site.path("run/checkpoints/4"), site.path(newest)
    ),
    "a checkpoint is a file": lambda site: (shutil.rmtree(site.path(newest)), site.path(newest).touch()),
    "a checkpoint that was being written": lambda site: site.path(
      "run/checkpoints/8.orbax-checkpoint-tmp"
    ).mkdir(),
    "all checkpoints are empty folders": lambda site: [
      _emptied(p) for p in site.path("run/checkpoints").iterdir()
    ],
    "no checkpoints": lambda site: shutil.rmtree(site.path("run/checkpoints")),
  }
  for (name, damage), command in itertools.product(whole.items(), ("main", "predict", "eval")):
    yield Fault("checkpoints", f"{name}, {command}", command, "checkpoint", _unpredicted(damage))
  others = ["config.json", "metrics.jsonl", "evaluation.json", "dff.npz", "lock", "report/index.html"]
  others += ["figures/losses.png"]
  for name, (how, damage) in itertools.product(
    others, (_DAMAGES | {"a folder": _replace_by_a_folder}).items()
  ):
    for command in ("main", "eval") if name != "config.json" else ("main", "eval", "predict"):

      def change(site: Site, damage: Any = damage, name: str = name) -> None:
        # The run has stopped after step 4, before its evaluation.
        shutil.rmtree(site.path("run/checkpoints/6"))
        damage(site.path(f"run/{name}"))

      unfinished = command == "main"
      yield Fault(
        "files of a run",
        f"run/{name} {how}, {command}",
        command,
        name.split("/")[0] if name != "report/index.html" else "report",
        change if unfinished else _at(f"run/{name}", damage),
      )


def _emptied(folder: pathlib.Path) -> None:
  shutil.rmtree(folder)
  folder.mkdir()


def _copied(source: pathlib.Path, target: pathlib.Path) -> None:
  shutil.rmtree(target)
  shutil.copytree(source, target)


def _files_of_a_data_set(template: Site) -> Iterator[Fault]:
  for name, (how, damage) in itertools.product(_names(template, "cache"), _DAMAGES.items()):
    if name.endswith("lock"):
      continue
    for command in ("prepare",) if "reference_features" in name else ("prepare", "eval"):
      yield Fault(
        "data sets", f"{name} {how}, {command}", command, pathlib.Path(name).name, _at(name, damage)
      )
  locks = {"missing": pathlib.Path.unlink, "a folder": _replace_by_a_folder}  # it is empty
  for name, (how, damage) in itertools.product(("lock",), locks.items()):
    yield Fault(
      "data sets",
      f"the lock is {how}, prepare",
      "prepare",
      "lock",
      lambda site, damage=damage, name=name: damage(site.only(f"cache/*/*/{name}")),
    )
  wholes: dict[str, Damage] = {
    "the cache is a file": lambda site: (shutil.rmtree(site.place.cache), site.place.cache.touch()),
    "the cache is missing": lambda site: shutil.rmtree(site.place.cache),
    "the data set's folder is empty": lambda site: _emptied(site.only("cache/image_folder/*/2.0.0")),
    "a preparation was killed": lambda site: (
      site.only("cache/image_folder/*").joinpath("incomplete.x").mkdir()
    ),
    "a record is missing and so are the images": lambda site: (
      shutil.rmtree(site.place.own),
      site.only("cache/image_folder/*/2.0.0/*-train*").unlink(),
    ),
  }
  for (name, damage), command in itertools.product(wholes.items(), ("prepare", "main")):
    yield Fault("data sets", f"{name}, {command}", command, "data", damage)


def _files_of_predictions() -> Iterator[Fault]:
  names = ["settings.json", "progress.jsonl", "parts.csv", "labels/3.png", "overlays/3.jpg"]
  for name, (how, damage) in itertools.product(
    names, (_DAMAGES | {"a folder": _replace_by_a_folder}).items()
  ):
    yield Fault(
      "predictions", f"out/{name} {how}", "predict", pathlib.Path(name).name, _at(f"out/{name}", damage)
    )
  for name in (*names, "failed.txt"):

    def foreign(site: Site, name: str = name) -> None:
      shutil.rmtree(site.path("out"))
      site.path(f"out/{name}").parent.mkdir(parents=True)
      site.path(f"out/{name}").write_text('{"mine": 1}\n')

    yield Fault("predictions", f"another's out/{name}", "predict", name.split("/")[0], foreign, refused=True)

  def settings(site: Site, key: str, value: Any) -> None:
    path = site.path("out/settings.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

  for key, value in (("step", 5), ("network", "0" * 16), ("crf", True), ("new", 1)):
    yield Fault(
      "predictions",
      f"out/settings.json has another {key}",
      "predict",
      "settings.json",
      lambda site, key=key, value=value: settings(site, key, value),
    )


def _exported_program() -> Iterator[Fault]:
  for how, damage in _DAMAGES.items():
    for name in ("parts.stablehlo",):
      yield Fault("exported programs", f"{name} {how}", "program", name, _at(f"program/{name}", damage))
  packed = lambda site, a: [*a, f"--workdir={site.path('packed.scops')}"]  # noqa: E731
  for how, damage in (_DAMAGES | {"a folder": _replace_by_a_folder}).items():
    yield Fault(
      "exported programs",
      f"packed.scops {how}",
      "predict",
      "packed.scops",
      _at("packed.scops", damage),
      packed,
    )
  pictures = {"cut": _cut, "emptied": _empty, "missing": pathlib.Path.unlink}
  for how, damage in pictures.items():
    yield Fault("exported programs", f"its image {how}", "program", "0.png", _at("photos/0.png", damage))


def _set(key: str, value: Any) -> Callable[[Site, list[str]], list[str]]:
  return lambda site, arguments: [*arguments, f"--config.{key}={value}"]


def _config_values() -> Iterator[Fault]:
  for key, default in flat_values(default_config()).items():
    if isinstance(default, bool):
      values: Sequence[Any] = ("maybe",)
    elif key in RANGES:
      values = ("nan", "inf", "-1", "1e30") if isinstance(default, float) else ("-1", 10**12, "nan")
      if RANGES[key][0] == "(" or (RANGES[key].startswith("[1") and key not in FROM_COLLECTION):
        values = (*values, "0")
    elif key in _CHOICES:
      values = ("nonsense",)
    else:
      continue
    for value in values:
      yield Fault("config values", f"{key}={value}", "prepare", key, change=_set(key, value), refused=True)
  for key in ("learning_rate", "optimizer.learning_rates", "data", "los.concentration", ""):
    yield Fault("config values", f"the key {key!r}", "prepare", key, change=_set(key, 1), refused=True)
  for key, value in (
    ("data.cache_dir", ""),
    ("data.name", "toy_face"),
    ("segmenter_weights", ""),
    ("segmenter_weights", "no.pth"),
    ("reference_weights", "no.pth"),
    ("data.dir", ""),
    ("spatial.scale_low", 3.0),
    ("sync_batch_norm", False),
  ):
    command = "main" if "weights" in key else "prepare"
    name = key
    yield Fault(
      "config values",
      f"{key}={value!r}, {command}",
      command,
      name,
      _fresh,
      change=_set(key, value),
      refused=True,
    )


def _fresh(site: Site) -> None:
  """Removes the run."""
  shutil.rmtree(site.path("run"))


def _flags() -> Iterator[Fault]:
  def replaced(command: str, flag: str, value: str | None) -> Callable[[Site, list[str]], list[str]]:
    def change(site: Site, arguments: list[str]) -> list[str]:
      kept = [a for a in arguments if not a.startswith(f"--{flag}=")]
      return kept if value is None else [*kept, f"--{flag}={value.format(root=site.place.root)}"]

    return change

  cases = [
    ("main", "workdir", None, "workdir"),
    ("main", "workdir", "{root}/config.py", "config.py"),
    ("main", "workdir", "/proc/run", "/proc/run"),
    ("main", "config", "{root}/confg.py", "confg.py"),
    ("main", "config", "{root}", "config"),
    ("main", "config", "{root}/test.txt", "test.txt"),
    ("main", "mode", "evaluate", "mode"),
    ("main", "num_processes", "2", "multihost"),
    ("main", "nonsense", "1", "nonsense"),
    ("eval", "workdir", "{root}/none", "none"),
    ("prepare", "config", "none", "none"),
    ("prepare", "workdir", "x", "workdir"),
    ("predict", "workdir", None, "workdir"),
    ("predict", "workdir", "{root}/none", "none"),
    ("predict", "workdir", "{root}/config.py", "config.py"),
    ("predict", "workdir", "{root}/photos", "photos"),
    ("predict", "images", None, "--images"),
    ("predict", "images", "{root}/none", "none"),
    ("predict", "images", "{root}/*.gif", "*.gif"),
    ("predict", "images", "{root}/config.py", "failed.txt"),  # and a line above that names config.py
    ("predict", "out", None, "--out"),
    ("predict", "out", "{root}/config.py", "config.py"),
    ("predict", "out", "/proc/out", "/proc/out"),
    ("predict", "batch_size", "0", "batch_size"),
    ("predict", "batch_size", "many", "batch_size"),
    ("predict", "processes", "0", "processes"),
    ("predict", "crf", "maybe", "crf"),
    ("export", "export", "{root}/config.py", "config.py"),
    ("export", "export", "/proc/x", "/proc/x"),
    ("export", "workdir", "{root}/none", "none"),
  ]
  for command, flag, value, named in cases:
    title = f"{command} --{flag}={value}" if value else f"{command} without --{flag}"
    yield Fault("flags", title, command, named, change=replaced(command, flag, value), refused=True)
  for extra in (["surplus"], ["--config=x", "--config=y"], ["-workdir"]):
    yield Fault(
      "flags", f"main {extra}", "main", "", change=lambda site, a, extra=extra: a + extra, refused=True
    )


def _weights() -> Iterator[Fault]:
  array = np.ones((2, 3), np.float32)
  files = dict(HOSTILE)
  files |= {
    "code to run": pickle.dumps(os.system),
    "an object to make": pickle.dumps(pathlib.PurePosixPath("x")),
    "no bytes": b"",
    "a text": b"weights\n" * 100,
    "zeros": bytes(10_000),
    "an image": bomb("RGB", 10),
    "a zip without arrays": _zipped({"a.txt": b"x"}),
    "a zip with an absolute path": _zipped({"/etc/a.npy": b"x"}),
    "an npz of objects": _npz(a=np.array([{}], dtype=object)),
    "an npz of nothing": _npz(),
    "an npz cut": _npz(a=array)[:-30],
    "safetensors cut": struct.pack("<Q", 70)
    + b'{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}'.ljust(70),
    "safetensors beyond the end": struct.pack("<Q", 70)
    + b'{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}'.ljust(70)
    + bytes(8),
    "safetensors of an unknown dtype": struct.pack("<Q", 70)
    + b'{"a":{"dtype":"Q9","shape":[2],"data_offsets":[0,8]}}'.ljust(70)
    + bytes(8),
  }
  for name, content in files.items():

    def write(site: Site, content: bytes = content) -> None:
      site.path("weights").write_bytes(content)

    yield Fault("weight files", f"{name}, weights", "weights", "weights", write, refused=True)
  for name in ("a huge memo", "a deflate bomb", "code to run", "a text", "an npz of objects"):

    def start(site: Site, content: bytes = files[name]) -> None:
      _fresh(site)
      site.path("weights").write_bytes(content)

    yield Fault(
      "weight files",
      f"{name}, segmenter_weights",
      "main",
      "segmenter_weights",
      start,
      change=lambda site, a: [*a, f"--config.segmenter_weights={site.path('weights')}"],
      refused=True,
    )
  yield Fault(
    "weight files", "a folder, weights", "weights", "weights", lambda site: site.path("weights").mkdir()
  )
  yield Fault("weight files", "a missing file, weights", "weights", "weights", refused=True)
  yield Fault(
    "weight files",
    "a FIFO, weights",
    "weights",
    "weights",
    lambda site: os.mkfifo(site.path("weights")),
    refused=True,
  )


def _zipped(members: dict[str, bytes]) -> bytes:
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, "w") as archive:
    for name, content in members.items():
      archive.writestr(name, content)
  return stream.getvalue()


def _npz(**arrays: Any) -> bytes:
  stream = io.BytesIO()
  np.savez(stream, **arrays)
  return stream.getvalue()


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
  stream = io.BytesIO()
  image.save(stream, kind, **options)
  return stream.getvalue()


def _pictures() -> dict[str, bytes]:
  grey = Image.fromarray(np.arange(480, dtype=np.uint8).reshape(20, 24) % 251)
  jpeg = _encoded(grey.convert("RGB"), "JPEG")
  return {
    "no bytes": b"",
    "a text": b"picture\n" * 50,
    "zeros": bytes(5000),
    "a JPEG cut": jpeg[: len(jpeg) // 2],
    "a JPEG's head": jpeg[:30],
    "a PNG cut": _encoded(grey, "PNG")[:60],
    "a PNG bomb": bomb("RGB", 30_000),
    "a PNG bomb that Pillow warns of": bomb("L", 12_000),
    "an ICO": _encoded(grey, "ICO"),
    "a PDF": _encoded(grey, "PDF"),
    "a WebP cut": _encoded(grey.convert("RGB"), "WEBP")[:50],
  }


def _images() -> Iterator[Fault]:
  for name, content in _pictures().items():

    def write(site: Site, content: bytes = content) -> None:
      site.path("photos/3.png").write_bytes(content)

    def own(site: Site, content: bytes = content) -> None:
      site.path("own/images/3.png").write_bytes(content)

    yield Fault("images", f"{name}, predict", "predict", "3.png", write)
    yield Fault("images", f"{name}, prepare", "prepare", "3.png", own)
  special: dict[str, Callable[[pathlib.Path], Any]] = {
    "a FIFO": os.mkfifo,
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to endless zeros": lambda path: path.symlink_to("/dev/zero"),
  }
  for name, make in special.items():
    for command, folder in (("predict", "photos"), ("prepare", "own/images")):

      def place(site: Site, make: Any = make, folder: str = folder) -> None:
        site.path(f"{folder}/3.png").unlink()
        make(site.path(f"{folder}/3.png"))

      yield Fault("images", f"{name}, {command}", command, "3.png", place)
  for name in (b"\xff.png", b"\x1b[2J.png", b"a\nb.png", b"-rf.png", b"%s.png", b"'.png"):

    def rename(site: Site, name: bytes = name) -> None:
      os.rename(site.path("photos/3.png"), os.fsencode(site.path("photos")) + b"/" + name)

    yield Fault("images", f"the name {name!r}, predict", "predict", "parts.csv", rename)


_HEAD = "image,landmark,x,y,visible\n"


def _own_folders() -> Iterator[Fault]:
  def text(name: str, content: str | bytes) -> Damage:
    data = content if isinstance(content, bytes) else content.encode()

    def write(site: Site) -> None:
      site.path(f"own/{name}").parent.mkdir(exist_ok=True)
      site.path(f"own/{name}").write_bytes(data)

    return write

  rows = "".join(f"{i}.png,{name},{x},5,1\n" for i in range(6) for name, x in (("tip", 3), ("tail", 9)))
  damages: dict[str, tuple[Damage, str]] = {
    "no folder": (lambda site: shutil.rmtree(site.place.own), "data.dir"),
    "no images": (lambda site: _emptied(site.path("own/images")), "images"),
    "images is a file": (lambda site: _as_file(site.path("own/images")), "images"),
    "one image": (lambda site: [site.path(f"own/images/{i}.png").unlink() for i in range(5)], "4.png"),
    "two images of one stem": (text("images/3.jpg", _pictures()["an ICO"]), "3.jpg"),
    "test.txt names nothing": (text("test.txt", "none.png\n"), "none.png"),
    "test.txt names all": (text("test.txt", "".join(f"{i}.png\n" for i in range(6))), "test.txt"),
    "test.txt is empty": (text("test.txt", ""), "test.txt"),
    "test.txt repeats a name": (text("test.txt", "4.png\n4.png\n"), "test.txt"),
    "test.txt leads out": (text("test.txt", "../../etc/passwd\n"), "passwd"),
    "test.txt is binary": (text("test.txt", b"\xff\xfe\0\1"), "test.txt"),
    "test.txt is a folder": (lambda site: _replace_by_a_folder(site.path("own/test.txt")), "test.txt"),
    "train.txt and test.txt share a name": (text("train.txt", "0.png\n4.png\n"), "4.png"),
    "landmarks.csv is empty": (text("landmarks.csv", ""), "landmarks.csv"),
    "landmarks.csv has no head": (text("landmarks.csv", rows), "landmarks.csv"),
    "landmarks.csv has a head only": (text("landmarks.csv", _HEAD), "landmarks: none"),
    "landmarks.csv lacks a column": (text("landmarks.csv", "image,landmark,x\n"), "landmarks.csv"),
    "landmarks.csv is binary": (text("landmarks.csv", bytes(range(256))), "landmarks.csv"),
    "landmarks.csv names no image": (text("landmarks.csv", _HEAD + "x.png,tip,1,2,1\n"), "x.png"),
    "landmarks.csv repeats a landmark": (text("landmarks.csv", _HEAD + rows + "0.png,tip,1,2,1\n"), "0.png"),
    "landmarks.csv is a folder": (lambda site: site.path("own/landmarks.csv").mkdir(), "landmarks.csv"),
    "landmarks outside": (text("landmarks.csv", (_HEAD + rows).replace(",5,1", ",500,1")), "landmarks.csv"),
  }
  for value in ("nan", "inf", "1e300", "x", "", "-1e7", "0x10"):
    bad = (_HEAD + rows).replace("2.png,tip,3", f"2.png,tip,{value}")
    damages[f"a coordinate is {value!r}"] = (text("landmarks.csv", bad), "landmarks.csv")
  for value in ("2", "maybe", "nan", ""):
    bad = (_HEAD + rows).replace("2.png,tip,3,5,1", f"2.png,tip,3,5,{value}")
    damages[f"visible is {value!r}"] = (text("landmarks.csv", bad), "landmarks.csv")
  for name, (damage, named) in damages.items():
    # What is valid makes another data set, and the command says which.
    yield Fault("own folders", f"{name}, prepare", "prepare", named or "prepared", damage)
  masks: dict[str, tuple[Damage, str]] = {
    "no masks": (lambda site: None, "saliency"),
    "masks are empty": (lambda site: _masks(site, np.zeros((20, 24), np.uint8)), "saliency"),
    "masks are 1 for 255": (lambda site: _masks(site, np.ones((20, 24), np.uint8)), "saliency"),
    "masks of another shape": (lambda site: _masks(site, np.full((9, 24), 255, np.uint8)), "saliency"),
    "a mask is missing": (lambda site: _masks(site, np.full((20, 24), 255, np.uint8), lacks=2), "2.png"),
    "a mask is a text": (
      lambda site: (
        _masks(site, np.full((20, 24), 255, np.uint8)),
        site.path("own/saliency/2.png").write_text("x"),
      ),
      "2.png",
    ),
    "a mask is a bomb": (
      lambda site: (
        _masks(site, np.full((20, 24), 255, np.uint8)),
        site.path("own/saliency/2.png").write_bytes(bomb("L")),
      ),
      "2.png",
    ),
  }
  for name, (damage, named) in masks.items():
    yield Fault(
      "own folders",
      f"{name}, prepare",
      "prepare",
      named,
      damage,
      change=_set("data.saliency", "collection"),
      refused=True,
    )


def _as_file(folder: pathlib.Path) -> None:
  shutil.rmtree(folder)
  folder.touch()


def _masks(site: Site, mask: np.ndarray, *, lacks: int = -1) -> None:
  site.path("own/saliency").mkdir()
  for index in range(6):
    if index != lacks:
      Image.fromarray(mask).save(site.path(f"own/saliency/{index}.png"))


_PUBLISHED = {"aflw": aflw, "celeba_wild": celeba_wild, "cub_parts": cub_parts, "pascal_parts": pascal_parts}


def _published() -> Iterator[Fault]:
  def change(name: str) -> Callable[[Site, list[str]], list[str]]:
    flags = [f"--config.data.name={name}", "--config.data.saliency=collection"]
    flags += ["--config.data.cache_reference_features=False"]
    return lambda site, a: [*a, f"--config.data.dir={site.path(f'published/{name}')}", *flags]

  def fault(name: str, title: str, damage: Damage, named: str, *, refused: bool = True) -> Fault:
    return Fault(
      "published collections", f"{name}: {title}", "prepare", named, damage, change(name), refused=refused
    )

  annotation = "Annotations_Part/2008_train0.mat"
  for title, content in MATLAB_FAULTS.items():
    path = f"published/pascal_parts/{annotation}"
    yield fault(
      "pascal_parts", title, lambda site, c=content, p=path: site.path(p).write_bytes(c), "2008_train0.mat"
    )

  def execute(site: Site, sql: str) -> None:
    import sqlite3

    connection = sqlite3.connect(site.path("published/aflw/data/aflw.sqlite"))
    connection.executescript(sql)
    connection.commit()
    connection.close()

  for title, sql in AFLW_FAULTS.items():
    yield fault("aflw", title, lambda site, sql=sql: execute(site, sql), "aflw.sqlite")
  lists = {
    "aflw": ("data/aflw.sqlite", "test.txt"),
    "celeba_wild": ("list_bbox_celeba.txt", "list_landmarks_celeba.txt", "MAFL/testing.txt"),
    "cub_parts": (
      "CUB_200_2011/bounding_boxes.txt",
      "CUB_200_2011/images.txt",
      "CUB_200_2011/parts/part_locs.txt",
    ),
    "pascal_parts": (annotation,),
  }
  for name, files in lists.items():
    for file, (how, damage) in itertools.product(
      files, (_DAMAGES | {"a folder": _replace_by_a_folder}).items()
    ):
      if how in ("flipped", "cut"):  # may leave a valid list, which is another data set
        continue
      # Of an empty list it is said what the collection then lacks.
      named = name if how == "emptied" else pathlib.Path(file).name
      yield fault(name, f"{file} {how}", _at(f"published/{name}/{file}", damage), named)
  yield fault("celeba_wild", "no folder", lambda site: shutil.rmtree(site.path("published")), "data.dir")


def _starts() -> Iterator[Fault]:
  decides = {"seed": 1, "num_steps": 5, "batch_size": 1, "loss.balance": 1.0, "optimizer.learning_rate": 0.1}
  decides |= {"num_parts": 4, "image_size": 32, "data.on_bad_example": "skip"}
  for key, value in decides.items():
    yield Fault(
      "starts", f"{key}={value} for a finished run", "main", key, change=_set(key, value), refused=True
    )

  def fewer(site: Site) -> None:
    shutil.rmtree(site.path("run/checkpoints/6"))
    site.path("own/images/0.png").unlink()

  yield Fault("starts", "a training image less", "main", "images", fewer, refused=True)
  for command in ("main", "eval", "predict"):

    def other(site: Site) -> None:
      site.path("run/config.json").unlink()

    yield Fault("starts", f"no config.json, {command}", command, "config.json", other, refused=True)


def _signals() -> Iterator[Fault]:
  def sends(number: signal.Signals, owner: Any, name: str) -> Callable[[children.Command], children.Command]:
    return lambda command: children.signalled(command, owner, name, number=number)

  moments = {
    "while the data set is written": (collection, "write"),
    "while features are computed": (feature_cache, "_write"),
    "in the factorisation": (train, "_fit_dff"),
    "in a step": (train.StepMetrics, "add"),
    "in a save": (train.Checkpoints, "save"),
    "in an evaluation": (train, "_evaluate"),
  }

  def anew(site: Site) -> None:
    _fresh(site)
    shutil.rmtree(site.place.cache)

  for (when, (owner, name)), number in itertools.product(moments.items(), (signal.SIGTERM, signal.SIGINT)):
    yield Fault(
      "signals",
      f"{number.name} {when}",
      "main",
      "",
      anew,
      code=128 + number,
      around=sends(number, owner, name),
    )
