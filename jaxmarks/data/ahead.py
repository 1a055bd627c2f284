"""Work that runs ahead of who takes its results."""

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
    """What `function` makes of each item, in their order, computed by threads before it is asked for.

    Args:
      function: called in a thread; what it raises is raised where its result is taken.
      items: taken in the caller's thread, so they may themselves be ahead of it.
      most: items that are worked on or wait, which bounds the memory.
      workers: threads; by default one for each core.
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
