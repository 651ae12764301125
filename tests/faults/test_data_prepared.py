"""Prepared data sets: sources that change, files that rot, full disks, processes that die or race."""

import json
import os
import pathlib
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from scops_jax.config import default_config
from scops_jax.data import collection as collection_module
from scops_jax.data.collection import open_collection, prepare_collection
from scops_jax.data.prepared import find_damage
from scops_jax.errors import UserError
from tests.miniatures import aflw, celeba_wild, cub_parts, pascal_parts

ROOT = pathlib.Path(__file__).parent.parent.parent
RNG = np.random.default_rng(0)


@pytest.fixture
def config(tmp_path):
  config = default_config()
  config.data.dir, config.data.cache_dir = str(tmp_path / "data"), str(tmp_path / "cache")
  return config


@pytest.fixture
def folder(config):
  """A config of six images of noise with masks."""
  root = pathlib.Path(config.data.dir)
  for name in ("images", "saliency"):
    (root / name).mkdir(parents=True)
  for index in range(6):
    pixels = RNG.integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(root / "images" / f"{index}.png")
    Image.fromarray(np.full((20, 30), 255, np.uint8)).save(root / "saliency" / f"{index}.png")
  config.data.name = "image_folder"
  return config


def content(source):
  return [
    {key: value.tobytes() if key != "name" else value for key, value in source[i].items()}
    for i in range(len(source))
  ]


# Of each published collection a miniature, files that are read, and an edit that leaves it valid.
SOURCES = [
  ("celeba_wild", celeba_wild, "list_bbox_celeba.txt", lambda data: data.replace(b"  2  3 ", b"  1  1 ")),
  ("celeba_wild", celeba_wild, "MAFL/testing.txt", lambda data: data.replace(b"000023.jpg", b"")),
  ("celeba_wild", celeba_wild, "Saliency_Wild/000001.png", None),
  ("aflw", aflw, "test.txt", lambda data: data.replace(b"0/test0.jpg\r\n", b"")),
  ("aflw", aflw, "saliency/0/train0.png", None),
  ("aflw", aflw, "data/flickr/0/train0.jpg", None),
  (
    "cub_parts",
    cub_parts,
    "CUB_200_2011/bounding_boxes.txt",
    lambda data: data.replace(b"1 10.0", b"1 11.0", 1),
  ),
  ("cub_parts", cub_parts, "segmentations/001.Black_footed_Albatross/Bird_1.png", None),
  ("pascal_parts", pascal_parts, "Annotations_Part/2008_train0.mat", None),
]


@pytest.mark.parametrize(("name", "miniature", "path", "edit"), SOURCES, ids=[row[2] for row in SOURCES])
def test_a_changed_source_is_another_data_set(config, name, miniature, path, edit):
  config.data.name = name
  if name == "pascal_parts":
    config.pascal.category = "horse"
  root = pathlib.Path(config.data.dir)
  miniature.write(root, faults=False)
  first = prepare_collection(config)
  assert not prepare_collection(config).built
  before = (root / path).read_bytes()
  if edit is None:
    os.utime(root / path, ns=(0, 0))
  else:
    assert edit(before) != before
    (root / path).write_bytes(edit(before))
  second = prepare_collection(config)
  assert second.built
  assert second.path != first.path
  assert f"have changed since {first.path.parent} was prepared" in str(second)


def test_a_data_set_serves_without_its_sources(config):
  config.data.name = "celeba_wild"
  celeba_wild.write(pathlib.Path(config.data.dir), faults=False)
  first = prepare_collection(config)
  shutil.rmtree(config.data.dir)
  second = prepare_collection(config)
  assert (second.path, second.built) == (first.path, False)
  assert "there is no folder data.dir=" in str(second)


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 0x40
  path.write_bytes(data)


def truncate(path):
  path.write_bytes(path.read_bytes()[:-7])


def empty(path):
  path.write_bytes(b"")


FILES = [
  "*-train.array_record*",
  "*-test.array_record*",
  "metadata.json",
  "dataset_info.json",
  "features.json",
  "digests.txt",
]


@pytest.mark.parametrize("damage", [flip, truncate, empty, pathlib.Path.unlink])
def test_a_damaged_data_set_is_prepared_again(folder, damage):
  whole = open_collection(folder)
  expected = [content(whole.train), content(whole.test)]
  cache = whole.folder / "reference_features"
  cache.mkdir()
  (cache / "kept").touch()
  for pattern in FILES:
    (path,) = whole.folder.glob(pattern)
    damage(path)
    preparation = prepare_collection(folder)
    assert preparation.built
    assert find_damage(whole.folder) is None
    (note,) = preparation.notes
    assert str(path) in note
    assert note.endswith("the data set is prepared again")
    again = open_collection(folder)
    assert [content(again.train), content(again.test)] == expected
    assert again.fingerprint == whole.fingerprint
    assert (cache / "kept").exists()
    assert sorted(p.name for p in whole.folder.parent.iterdir()) == ["2.0.0", "lock"]


def test_what_was_computed_from_a_data_set_survives_a_kill_while_it_is_prepared_again(folder):
  path = prepare_collection(folder).path
  (path / "reference_features").mkdir()
  (path / "reference_features" / "kept").touch()
  # The files are there again, but not yet their digests, and what was computed has not been taken over.
  damaged = path.rename(path.with_name(f"damaged.{path.name}"))
  shutil.copytree(damaged, path, ignore=shutil.ignore_patterns("digests.txt", "reference_features"))
  assert prepare_collection(folder).built
  assert (path / "reference_features" / "kept").exists()
  assert sorted(p.name for p in path.parent.iterdir()) == ["2.0.0", "lock"]


def test_a_damaged_data_set_without_sources_names_file_and_cure(config):
  config.data.name = "celeba_wild"
  celeba_wild.write(pathlib.Path(config.data.dir), faults=False)
  path = prepare_collection(config).path
  (record,) = path.glob("*-train.array_record*")
  flip(record)
  shutil.rmtree(config.data.dir)
  for _ in range(2):
    with pytest.raises(UserError, match=r"-train\.array_record.*is damaged.*again from data\.dir=.* failed"):
      prepare_collection(config)
  assert record.exists()


def test_a_record_that_rots_while_it_is_read_is_named(folder):
  collection = open_collection(folder)
  (path,) = collection.folder.glob("*-train.array_record*")
  data = bytearray(path.read_bytes())
  data[100:-100] = bytes(len(data) - 200)
  with path.open("r+b") as file:
    file.write(data)
  with pytest.raises(
    UserError, match=r"2\.0\.0, split train: record 3 can't be read .*run scops_jax\.prepare"
  ):
    collection.train[3]
  with pytest.raises(IndexError):
    collection.train[6]


def test_an_empty_cache_dir_is_an_error(folder):
  folder.data.cache_dir = ""
  with pytest.raises(UserError, match=r"data\.cache_dir is empty"):
    prepare_collection(folder)


def test_a_full_disk_is_one_line_and_running_again_works(folder, monkeypatch):
  class Full(collection_module.ImageFolder, skip_registration=True):
    def download_and_prepare(self, **options):
      super().download_and_prepare(**options)
      shutil.rmtree(self.data_dir)
      raise RuntimeError(f"write() failed: No space left on device; writing {self.data_dir}")

  with monkeypatch.context() as patch:
    patch.setitem(collection_module.BUILDERS, "image_folder", Full)
    with pytest.raises(UserError, match=r"data\.cache_dir=.*No space left on device: '.*2\.0\.0'"):
      prepare_collection(folder)
  assert prepare_collection(folder).built


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_small_disk(folder):
  cache = pathlib.Path(folder.data.cache_dir)
  cache.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(cache)]
  if subprocess.run(mount, capture_output=True, check=False).returncode:
    pytest.skip("mounting is not allowed")
  try:
    with pytest.raises(UserError, match=r"No space left on device"):
      prepare_collection(folder)
    assert not [path for path in cache.rglob("*") if path.is_file() and path.name != "lock"]
    subprocess.run(["mount", "-o", "remount,size=4m", str(cache)], check=True)
    assert prepare_collection(folder).built
  finally:
    subprocess.run(["umount", str(cache)], check=True)


# Prepares in children of a process without threads, which array_record's do not survive. Each is killed after
# a while and followed by one that is not.
KILLS = """
import json, os, random, signal, sys, threading, time
from scops_jax.config import default_config
from scops_jax.data.collection import prepare_collection

def prepare(delay=None):
  child = os.fork()
  if not child:
    if delay is not None:
      threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
    prepare_collection(config)
    os._exit(0)
  return os.waitpid(child, 0)[1]

config = default_config()
config.data.update(json.loads(sys.argv[1]))
started = time.monotonic()
assert prepare() == 0
whole = time.monotonic() - started
random = random.Random(int(sys.argv[2]))
killed = 0
for _ in range(int(sys.argv[3])):
  config.folder.max_edge -= 1  # another data set of the same content
  killed += prepare(random.uniform(0, whole)) == signal.SIGKILL
  assert prepare() == 0
print(killed)
"""


def test_a_killed_preparation_leaves_nothing_wrong(folder):
  settings = json.dumps({"name": "image_folder", "dir": folder.data.dir, "cache_dir": folder.data.cache_dir})
  command = [sys.executable, "-c", KILLS, settings, "0", "6"]
  result = subprocess.run(
    command, capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
  )
  assert result.returncode == 0, result.stderr[-2000:]
  assert int(result.stdout.split()[-1]) >= 2
  versions = list(pathlib.Path(folder.data.cache_dir).glob("image_folder/*/2.0.0"))
  assert len(versions) == 7
  digests = [json.loads((path / "digests.txt").read_text().splitlines()[1]) for path in versions]
  for path, record in zip(versions, digests, strict=True):
    assert find_damage(path) is None
    assert sorted(p.name for p in path.parent.iterdir()) == ["2.0.0", "lock"]
    for name in record:
      if "array_record" in name or name == "features.json":
        assert record[name] == digests[0][name]


def test_two_processes_prepare_one_data_set(folder):
  code = """
import json, sys
from scops_jax.config import default_config
from scops_jax.data.collection import prepare_collection
config = default_config()
config.data.update(json.loads(sys.argv[1]))
print(prepare_collection(config).built)
"""
  settings = json.dumps({"name": "image_folder", "dir": folder.data.dir, "cache_dir": folder.data.cache_dir})
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", code, settings], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )
    for _ in range(2)
  ]
  assert sorted(process.communicate()[0].split()[-1] for process in processes) == ["False", "True"]


def test_random_damage_is_never_silent(folder):
  """Flipped bits and cuts at random places of a data set's files."""
  random_ = random.Random(0)
  path = prepare_collection(folder).path
  files = sorted(file for file in path.iterdir() if file.is_file())
  for _ in range(200):
    file = random_.choice(files)
    data = file.read_bytes()
    changed = bytearray(data)
    if random_.random() < 0.3:
      del changed[random_.randrange(len(changed)) :]
    else:
      changed[random_.randrange(len(changed))] ^= 1 << random_.randrange(8)
    file.write_bytes(changed)
    assert str(file) in (find_damage(path) or "")
    file.write_bytes(data)
  assert find_damage(path) is None
