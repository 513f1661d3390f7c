"""Print what label calls ask of a GPU: `python -m tests.gpu_count --images 1,16,64 --classes 21,150`."""

import argparse
from collections.abc import Sequence
from dataclasses import replace

from ovss_core.head_names import host_names
from tests.gpu_count.counting import count_call, enlarge, labelling, workload_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Count one call for each number of images and classes."""
    parser = argparse.ArgumentParser("python -m tests.gpu_count", description=__doc__)
    parser.add_argument("--images", default="1,16", help="numbers of images in one call, by commas")
    parser.add_argument("--classes", default="150", help="numbers of classes, by commas")
    parser.add_argument("--host", default="sfp", choices=host_names())
    parser.add_argument("--purify", default="freecp", choices=("none", "freecp"))
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--variant", default="image", choices=("image", "filter", "released", "paper"))
    parser.add_argument(
        "--window-batch", type=int, help="windows encoded at once; left out, the device's own"
    )
    parser.add_argument(
        "--side", type=int, help="side of square pictures, pixels; left out, photographs' size"
    )
    parser.add_argument(
        "--places", type=int, default=0, help="lines of the core that ask for most operations"
    )
    given = parser.parse_args(arguments)
    images, classes = ([int(part) for part in text.split(",")] for text in (given.images, given.classes))
    workload = workload_of(max(images), max(classes), given.precision)
    if given.side:
        workload = replace(workload, pictures=[enlarge(picture, given.side) for picture in workload.pictures])
    config = labelling(given.host, given.purify, given.variant, given.window_batch)
    print("| images | classes | crops | operations | an image | uploads | downloads | awaited | waits |")
    print("|---|---|---|---|---|---|---|---|---|")
    for number in classes:
        for count in images:
            part = replace(workload, pictures=workload.pictures[:count])
            call = count_call(part, config, number)
            counts = call.counts
            print(
                f"| {count} | {number} | {call.crops} | {counts.operations} | {counts.operations / count:.1f} | "
                f"{counts.uploads} | {counts.downloads} | {counts.awaited} | {counts.waits.total()} |"
            )
            for place, times in counts.places.most_common(given.places):
                print(f"  {times:5} operations in {place}")
            for place, times in counts.waits.most_common():
                print(f"\n{times} waits in {place}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
