"""Many small reads by threads, in order, of which few wait at a time: what waits costs memory that is not given back."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_WAITING = 8
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Yield what the work gives for each item, in their order; at most `_WAITING` a thread are ahead of the caller.

    Raises:
        Exception: What the work raises, in the place of its item.
    """
    ahead: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                ahead.append(pool.submit(work, item))
                if len(ahead) >= _WAITING * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:  # whoever stops asking waits for what has begun, and for no more
            for future in ahead:
                future.cancel()
