"""Prefetching: a threaded map that runs ahead of its consumer."""

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, most: int, workers: int | None = None
) -> Iterator[Result]:
    """Yields `function(item)` for each item, in order, computed in threads before the consumer asks for it.

    Args:
      function: called in a worker thread; an exception that it raises is raised where its result is consumed.
      items: iterated in the consumer's thread, so they may themselves come from `ahead`.
      most: maximum number of items that are in progress or wait to be consumed, which bounds the memory.
      workers: number of threads; by default one per core.
    """
    waiting: collections.deque = collections.deque()
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
