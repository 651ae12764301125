"""Iterators that compute ahead of their reader, and in batches."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def ahead(pool: Executor, function: Callable[[S], T], arguments: Iterable[S], *, depth: int) -> Iterator[T]:
  """Yields function(argument) for all arguments in order; `pool` computes the next `depth` meanwhile."""
  queue: deque[Future[T]] = deque()
  for argument in arguments:
    queue.append(pool.submit(function, argument))
    if len(queue) > depth:
      yield queue.popleft().result()
  while queue:
    yield queue.popleft().result()


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
  """Yields lists of `size` items; the last may be shorter."""
  batch: list[T] = []
  for item in items:
    batch.append(item)
    if len(batch) == size:
      yield batch
      batch = []
  if batch:
    yield batch
