"""Draws faces in several processes, because drawing holds Python's lock.

multiprocessing would import the caller's main module in each process, which fails if that is a script without
a main guard or comes from standard input. These processes run `python -m` with this module instead.
"""

import os
import pickle
import queue
import signal
import subprocess
import sys
from typing import Any

from scops_jax.data.toy_faces.drawing import FaceDrawing, draw_numbered_face


class FaceProcesses:
  """Processes that draw; as a context manager, it ends them."""

  def __init__(self, count: int) -> None:
    """Starts `count` processes, which see the same modules as this one."""
    command = [sys.executable, "-P", "-m", "scops_jax.data.toy_faces.processes"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    self._processes = [
      subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
      for _ in range(count)
    ]
    self._idle: queue.SimpleQueue[subprocess.Popen] = queue.SimpleQueue()
    for process in self._processes:
      self._idle.put(process)

  def draw(self, key: tuple[int, ...]) -> FaceDrawing:
    """Returns `draw_numbered_face(key)`; waits for an idle process, so several threads may call it.

    Raises:
      RuntimeError: the process ended.
    """
    process: Any = self._idle.get()
    try:
      pickle.dump(key, process.stdin)
      process.stdin.flush()
      return pickle.load(process.stdout)
    except (EOFError, OSError, pickle.UnpicklingError) as error:
      raise RuntimeError("a process that draws toy faces ended; run the command again") from error
    finally:
      self._idle.put(process)

  def __enter__(self) -> "FaceProcesses":
    return self

  def __exit__(self, *exception: object) -> None:
    for process in self._processes:
      process.communicate()  # closes its input, and so ends it


def _draw_until_closed() -> None:
  """Answers each key on standard input with its face on standard output."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller decides what an interruption ends
  while True:
    try:
      key = pickle.load(sys.stdin.buffer)
    except EOFError:
      return
    pickle.dump(draw_numbered_face(key), sys.stdout.buffer)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
  _draw_until_closed()
