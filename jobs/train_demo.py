"""Train the demonstration model: `python -m jobs.train_demo --folder DIR`; the same command goes on after a stop."""

import sys
from pathlib import Path

from jsonargparse import ArgumentParser

from ovss_core.demonstration.training import TrainingConfig, train_demo
from ovss_core.errors import OvssError


def main(arguments: list[str] | None = None) -> int:
    """Run the training and return the exit status."""
    parser = ArgumentParser(prog="ovss train-demo", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="holds scenes, checkpoint and weights")
    parser.add_argument(
        "--stop_after", type=int | None, default=None, help="stop after this many steps in all"
    )
    parser.add_class_arguments(TrainingConfig, "training")
    settings = parser.instantiate(parser.parse_args(arguments))
    try:
        written = train_demo(settings.folder, settings.training, settings.stop_after)
    except (OvssError, OSError) as error:
        print(f"ovss train-demo: {error}", file=sys.stderr)
        return 1
    print(f"wrote {written}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
