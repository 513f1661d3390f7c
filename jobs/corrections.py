"""``ovss evaluate --labels``: what people changed in labels that came back from an annotation tool."""

from jobs.arguments import START, labels_flag, make_parser
from jobs.flags import Flag
from jobs.parser import CommandParser
from jobs.reporting import Arguments, reported


def build_parser() -> CommandParser:
    """Return the parser of this way of the command."""
    masks = "Folder of what came back: .png masks, or an export of Label Studio (.json) or of CVAT (.xml)."
    return make_parser(
        "evaluate",
        "--labels FOLDER --masks FOLDER [flags]",
        "Say for each class what people changed in labels that they corrected.\n\n"
        "  ovss evaluate --labels out/photos --masks corrected/",
        [
            labels_flag(),
            Flag("masks", str, masks, START, required=True),
            Flag("output", str | None, "File for the numbers as JSON.", START, value="FILE"),
        ],
        ("labels", "masks", "output"),
        {},
    )


@reported
def main(arguments: Arguments = None) -> int:
    """Compare, print what changed, and return 0 if an image could be compared."""
    values = build_parser().parse_args(arguments)
    # imported here: help and wrong flags do not wait for Arrow
    import json

    from pipelines.derive.corrections import compare, describe, read_corrections
    from pipelines.derive.formats.base import Classes
    from pipelines.label.reader import open_labels
    from pipelines.storage import Folder

    labels = open_labels(values.labels)
    corrections = read_corrections(Folder(values.masks), Classes(labels.class_names, labels.ignore_index))
    report = compare(labels, corrections)
    print(describe(report))
    if values.output:
        place, _, name = values.output.rpartition("/")
        Folder(place or ".").write(name, json.dumps(report, indent=2, ensure_ascii=False).encode())
    return 0 if report["images"] else 1
