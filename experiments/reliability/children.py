"""Commands in forked children of one process that has imported everything: a start costs no imports.

JAX has started no backend when a child is forked, and the parent has one thread, so a child is like a new
process whose imports are done. It ends as the interpreter does, with its threads joined and its exit handlers
run, unless it is killed.
"""

import ctypes
import itertools
import os
import pathlib
import resource
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# Only here to protect the machine; what a child really held is measured (`Ended.peak`).
MAX_ADDRESSES = 16 << 30  # bytes

Command = Callable[[], None]


@dataclass(frozen=True)
class Ended:
  """How a child ended."""

  code: int  # of the exit; minus the signal's number if one ended it
  seconds: float  # from its start on
  cpu: float  # seconds of all its threads and waited-for processes
  peak: int  # bytes it held, those it shared with its parent included
  hung: bool  # ended here, because it took too long
  output: str
  error: str


def run(command: Command, *, log: pathlib.Path, seconds: float = 600.0, folder: str | None = None) -> Ended:
  """Runs a command in a child and waits for it.

  Args:
    command: what it does; SystemExit has its meaning, other exceptions print a traceback and exit with 1.
    log: a path to which ".out" and ".err" are appended for what it writes.
    seconds: after which it is killed.
    folder: its working directory.
  """
  began = time.monotonic()
  pid = _fork(command, log, folder)
  with _opened(pid) as descriptor:
    hung = not select.select([descriptor], [], [], seconds)[0]
    if hung:
      os.kill(pid, signal.SIGKILL)
    _, status, used = os.wait4(pid, 0)
  output, error = (path.read_text(encoding="utf-8", errors="replace") for path in _logs(log))
  return Ended(
    code=os.waitstatus_to_exitcode(status),
    seconds=time.monotonic() - began,
    cpu=used.ru_utime + used.ru_stime,
    peak=1024 * used.ru_maxrss,
    hung=hung,
    output=output,
    error=error,
  )


def killing(command: Command, owner: Any, name: str, *, call: int, delay: float) -> Command:
  """Returns the command with a timer that kills it `delay` seconds after a function is called.

  The timer is the kernel's, and its signal (SIGALRM, with the default action) ends the process between two
  instructions, whatever they are, as SIGKILL does.

  Args:
    command: to be killed.
    owner: the module or class of the function.
    name: of the function.
    call: which call, from 1 on.
    delay: seconds.
  """

  def act() -> None:
    signal.setitimer(signal.ITIMER_REAL, max(delay, 1e-6))

  return _at_call(command, owner, name, call, act)


def signalled(command: Command, owner: Any, name: str, *, number: signal.Signals, call: int = 1) -> Command:
  """Returns the command with a signal to it 20 ms after a call of a function, from another thread."""
  return _at_call(
    command, owner, name, call, lambda: threading.Timer(0.02, os.kill, (os.getpid(), number)).start()
  )


def _at_call(command: Command, owner: Any, name: str, call: int, act: Callable[[], None]) -> Command:
  """Returns the command with an action just before call number `call` of a function."""

  def start() -> None:
    called, calls = getattr(owner, name), itertools.count(1)

    def function(*args: Any, **kwargs: Any) -> Any:
      if next(calls) == call:
        act()
      return called(*args, **kwargs)

    setattr(owner, name, function)
    command()

  return start


def was_killed(ended: Ended) -> bool:
  """Returns whether the timer of `killing` ended the child."""
  return ended.code == -signal.SIGALRM


def _fork(command: Command, log: pathlib.Path, folder: str | None) -> int:
  sys.stdout.flush()
  sys.stderr.flush()
  pid = os.fork()
  if pid:
    return pid
  code = 1
  try:
    for number, path in enumerate(_logs(log), 1):
      descriptor = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666)
      os.dup2(descriptor, number)
      os.close(descriptor)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESSES, MAX_ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if folder is not None:
      os.chdir(folder)
    command()
    code = 0
  except SystemExit as error:
    code = _exit_code(error)
  except BaseException:
    traceback.print_exc()
  sys.stdout.flush()
  sys.stderr.flush()
  # Ends as `python -m` does, without what the parent has on its stack.
  ctypes.pythonapi.Py_Exit(code)
  raise AssertionError("the interpreter has ended")


def _exit_code(error: SystemExit) -> int:
  if error.code is None or isinstance(error.code, int):
    return error.code or 0
  print(error.code, file=sys.stderr)
  return 1


def _logs(log: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  return log.with_name(f"{log.name}.out"), log.with_name(f"{log.name}.err")


@contextmanager
def _opened(pid: int) -> Iterator[int]:
  descriptor = os.pidfd_open(pid)
  try:
    yield descriptor
  finally:
    os.close(descriptor)
