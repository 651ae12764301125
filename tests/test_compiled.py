"""Compiled programs are kept where the config says, within a limit, unless the user has chosen a folder."""

import os
import subprocess
import sys

import jax
import pytest

from scops_jax.runs import compiled
from scops_jax.runs.compiled import keep_programs


@pytest.fixture
def no_folder():
  """JAX has no folder, as outside of tests."""
  names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
  before = {name: jax.config.values[name] for name in names}
  jax.config.update("jax_compilation_cache_dir", None)
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def test_a_second_process_finds_the_programs_of_the_first(tmp_path):
  code = """
import sys
import jax, jax.numpy as jnp
from scops_jax.runs import compiled
compiled._SHORTEST = 0.0
compiled.keep_programs(sys.argv[1])
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
jax.jit(lambda x: jnp.sort(x) @ x.T)(jnp.ones((9, 9))).block_until_ready()
print(sum(name == "/jax/compilation_cache/cache_hits" for name in hits) > 0)
"""
  environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
  outputs = [
    subprocess.run(
      [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, check=True
    )
    for _ in range(2)
  ]
  assert [output.stdout for output in outputs] == ["False\n", "True\n"]
  assert [output.stderr for output in outputs] == ["", ""]


@pytest.mark.usefixtures("no_folder")
def test_nothing_is_kept_without_a_folder_or_in_one_that_cannot_be_written(tmp_path, capsys):
  keep_programs("")
  assert not capsys.readouterr().err
  (tmp_path / "file").touch()
  keep_programs(str(tmp_path / "file"))
  assert "can't be written" in capsys.readouterr().err
  assert jax.config.values["jax_compilation_cache_dir"] is None


@pytest.mark.usefixtures("no_folder")
def test_what_was_not_used_for_longest_goes_and_a_chosen_folder_stays(tmp_path, monkeypatch):
  monkeypatch.setattr(compiled, "_LARGEST", 10)
  (tmp_path / "cpu-1").mkdir()
  for index, name in enumerate("abc"):
    (tmp_path / "cpu-1" / name).write_bytes(bytes(5))
    os.utime(tmp_path / "cpu-1" / name, (index, 0))
  keep_programs(str(tmp_path))
  assert sorted(path.name for path in (tmp_path / "cpu-1").iterdir()) == ["b", "c"]
  chosen = jax.config.values["jax_compilation_cache_dir"]
  assert chosen.startswith(str(tmp_path / "cpu"))
  keep_programs(str(tmp_path / "another"))
  assert jax.config.values["jax_compilation_cache_dir"] == chosen
