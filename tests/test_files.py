"""Files are whole or absent."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from scops_jax.storage import files
from scops_jax.storage.files import replacing


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def test_the_file_is_replaced_and_no_temporary_file_stays(tmp_path):
  path = tmp_path / "made" / "a.json"
  for text in ("1", "2"):
    with replacing(path) as temporary:
      temporary.write_text(text)
    assert path.read_text() == text
  assert names(path.parent) == ["a.json"]


def test_an_error_leaves_the_old_file(tmp_path):
  path = tmp_path / "a.json"
  path.write_text("old")

  def fail():
    with replacing(path) as temporary:
      temporary.write_text("ha")
      raise RuntimeError("interrupted")

  with pytest.raises(RuntimeError):
    fail()
  assert path.read_text() == "old"
  assert names(tmp_path) == ["a.json"]


def test_two_writers_do_not_share_a_temporary_file(tmp_path):
  path = tmp_path / "a.txt"
  with replacing(path) as first, replacing(path) as second:
    first.write_text("first")
    second.write_text("second")
  assert path.read_text() == "first"  # closed last
  assert names(tmp_path) == ["a.txt"]


def test_a_long_name_has_room_for_the_temporary_suffix(tmp_path):
  for name in ("x" * 255, "\N{GRINNING FACE}" * 63):
    with replacing(tmp_path / name) as temporary:
      temporary.touch()
    assert (tmp_path / name).exists()


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
  def full(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(files.os, "fsync", full)
  with (
    pytest.raises(OSError, match=r"No space left on device: '.*a\.txt'"),
    replacing(tmp_path / "a.txt") as t,
  ):
    t.write_text("text")
  assert names(tmp_path) == []


def test_leftovers_of_killed_writers_go_and_files_in_writing_stay(tmp_path):
  code = """
import sys, time
from scops_jax.storage.files import replacing
with replacing(sys.argv[1]) as temporary:
  temporary.write_text("half")
  print("writing", flush=True)
  time.sleep(60)
"""
  writers = []
  for name in ("killed.txt", "living.txt"):
    command = [sys.executable, "-c", code, str(tmp_path / name)]
    writers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    assert writers[-1].stdout.readline() == "writing\n"
  try:
    writers[0].send_signal(signal.SIGKILL)
    writers[0].wait()
    (tmp_path / ".mine.tmp").touch()  # another program's
    with replacing(tmp_path / "a.txt") as temporary:
      temporary.write_text("text")
    found = names(tmp_path)
    assert found[0].startswith(".living.txt.")
    assert found[1:] == [".mine.tmp", "a.txt"]
  finally:
    writers[1].kill()
    for writer in writers:
      writer.communicate()
