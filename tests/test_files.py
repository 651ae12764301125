"""Files are whole or absent."""

import pytest

from scops_jax.storage.files import replacing


def test_the_file_is_replaced_and_no_temporary_file_stays(tmp_path):
  path = tmp_path / "made" / "a.json"
  for text in ("1", "2"):
    with replacing(path) as temporary:
      temporary.write_text(text)
    assert path.read_text() == text
  assert [p.name for p in path.parent.iterdir()] == ["a.json"]


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
  assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
