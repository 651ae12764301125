"""Keeps compiled programs whole, so that a process that runs them again does not trace them.

JAX's own cache of compiled programs is asked only after tracing and lowering, which take nine tenths of a
start of tiny networks. The programs are the real ones; only making them is skipped.
"""

import functools
import hashlib
import pathlib
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from scops_jax.kernels import compilation
from scops_jax.runs import parallel, setup
from scops_jax.storage.files import replacing

# The method and all that it calls, and how it is compiled; tiny.py has the networks.
_SOURCES = ("scops_jax/[!c]*.py", "scops_jax/kernels/*.py", "scops_jax/models/*.py", "tests/tiny.py")
_SOURCES += ("scops_jax/config.py", "scops_jax/runs/parallel.py")


def keep_compiled_steps(folder: pathlib.Path) -> None:
  """Lets compile_steps and the drawing of variables take their programs from a folder, or put them there.

  Args:
    folder: for one state of the sources and one config; its files' names tell only functions and shapes.
  """
  count = 0

  def jit(function: Callable, **options: Any) -> Callable:
    nonlocal count
    count += 1
    return _Kept(compilation.jit(function, **options), folder / f"step{count}")

  def initialize(network: Any, key: jax.Array, image: jax.Array) -> Any:
    return _Kept(jax.jit(network.init), folder / type(network).__name__)(key, image)

  parallel.jit = jit
  setup._initialize = initialize


def sources_digest() -> str:
  """Returns a digest of the sources that the programs are made of."""
  root = pathlib.Path(__file__).parent.parent.parent
  digest = hashlib.sha256(jax.__version__.encode())
  for path in sorted(path for pattern in _SOURCES for path in root.glob(pattern)):
    digest.update(path.read_bytes())
  return digest.hexdigest()[:16]


@contextmanager
def _without_cache() -> Iterator[None]:
  """Compiles anew: a program that comes from JAX's own cache can't be written again."""
  for enabled in (False, True):
    jax.config.update("jax_enable_compilation_cache", enabled)
    compilation_cache.reset_cache()
    if not enabled:
      yield


class _Kept:
  """A jitted function whose programs are kept by the shapes of its arguments."""

  def __init__(self, jitted: jax.stages.Wrapped, path: pathlib.Path) -> None:
    self._jitted, self._path = jitted, path
    self._load = functools.cache(self._load_file)

  def __call__(self, *arguments: Any) -> Any:
    leaves, structure = jax.tree.flatten(arguments)
    shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
    try:
      program = self._load(structure, shapes)
    except FileNotFoundError:
      with _without_cache():
        program = self._jitted.lower(*arguments).compile()
      with replacing(self._file(structure, shapes)) as temporary:
        temporary.write_bytes(pickle.dumps(serialize_executable.serialize(program)))
    return program(*arguments)

  def _load_file(self, structure: Any, shapes: tuple[Any, ...]) -> Callable:
    content = self._file(structure, shapes).read_bytes()
    return serialize_executable.deserialize_and_load(
      *pickle.loads(content)
    )  # of this experiment's own making

  def _file(self, structure: Any, shapes: tuple[Any, ...]) -> pathlib.Path:
    digest = hashlib.sha256(f"{structure} {shapes}".encode()).hexdigest()[:16]
    return self._path.with_name(f"{self._path.name}-{digest}")
