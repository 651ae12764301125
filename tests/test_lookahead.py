"""Iterators that compute ahead."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from scops_jax.data.lookahead import ahead, batches


def test_results_come_in_order_and_no_more_is_asked_for_than_agreed():
  asked = []

  def arguments():
    for i in range(10):
      asked.append(i)
      yield i

  with ThreadPoolExecutor(2) as pool:
    results = ahead(pool, lambda x: x * x, arguments(), depth=3)
    assert next(results) == 0
    assert asked == [0, 1, 2, 3]
    assert list(results) == [i * i for i in range(1, 10)]


def test_an_error_is_raised_in_its_place():
  with ThreadPoolExecutor(2) as pool:
    results = ahead(pool, lambda x: 1 // x, [1, 0, 1], depth=5)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
      next(results)


def test_the_last_batch_has_what_is_left():
  assert list(batches(range(5), 2)) == [[0, 1], [2, 3], [4]]
  assert list(batches([], 2)) == []
