"""``ovss train-demo``: train the small model that ships with ovss."""

from pathlib import Path

from jobs.arguments import RUN, START, make_parser
from jobs.flags import Flag, flags_of
from jobs.parser import CommandParser
from jobs.reporting import Arguments, reported
from pipelines.demonstration.recipe import TrainingConfig

RECIPE = "the recipe"


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    folder = "Holds the scenes, the checkpoint and, at the end, ovss_demo.safetensors."
    return make_parser(
        "train-demo",
        "--folder FOLDER [flags]",
        "Train the model that ships with ovss, from scratch, on drawn scenes.\n\n"
        "  ovss train-demo --folder out/training\n\n"
        "The same command goes on where an earlier one stopped.",
        [
            Flag("folder", Path, folder, START, required=True),
            Flag("stop_after", int | None, "Stop, with a checkpoint, after this many steps in all.", RUN),
            Flag(
                "training",
                str,
                "YAML file with any of these, such as 'seed: 1'.",
                RECIPE,
                value="FILE",
                group_file=True,
            ),
            *flags_of(TrainingConfig, RECIPE, "training"),
        ],
    )


@reported
def main(arguments: Arguments = None) -> int:
    """Run the training and return the exit status."""
    given = build_parser().parse_args(arguments)
    config = TrainingConfig(**vars(given.training))
    from pipelines.preflight import require_place  # brings Arrow, which help does not need

    require_place(str(given.folder), "--folder")
    from pipelines.demonstration.training import train_demo  # brings torch, which help does not need

    print(f"wrote {train_demo(given.folder, config, given.stop_after)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
