"""Measure what a listing of Google's store takes: ``python -m tests.measure_google_listing --keys 1000000``.

The tests' own store has so many keys of 43 letters in folders of a thousand. Printed are the listing's seconds, its
processor time and its memory; the answers come from this machine, so that the seconds say nothing of a network.
"""

import argparse
import resource
import time

from pipelines.storage import open_storage, walk
from tests.pipelines.google_store import running_google_store


def megabytes() -> float:
    """Return the most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    """Measure, and print a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    keys: int = parser.parse_args().keys
    with running_google_store() as store:
        store.make_bucket()
        store.fill(keys)
        filesystem, path = open_storage(store.uri("photos"))
        before, begun, computed = megabytes(), time.monotonic(), time.process_time()
        files = walk(filesystem, path)
        next(files)
        listed = time.monotonic() - begun
        found = 1 + sum(1 for _ in files)
    if found != keys:
        raise SystemExit(f"{found} files came of {keys} keys")
    print(
        f"{keys:,} keys: {time.monotonic() - begun:.1f} s ({listed:.1f} to the first), "
        f"{time.process_time() - computed:.1f} core-seconds, {megabytes() - before:,.0f} MB more than before"
    )


if __name__ == "__main__":
    main()
