"""``ovss train-demo``: train the demonstration model; the same command goes on after a stop."""

from pathlib import Path

from jobs.reporting import Arguments, make_parser, reported
from ovss_core.demonstration.training import TrainingConfig, train_demo


@reported
def main(arguments: Arguments = None) -> int:
    """Run the training and return the exit status."""
    parser = make_parser("train-demo", "Train the model that ships with ovss, from scratch, on drawn scenes.")
    parser.add_argument("--folder", type=Path, required=True, help="Holds scenes, checkpoint and weights.")
    parser.add_argument("--stop-after", type=int, help="Stop after this many steps in all.")
    parser.add_class_arguments(TrainingConfig, "training")
    given = parser.instantiate(parser.parse_args(arguments))
    print(f"wrote {train_demo(given.folder, given.training, given.stop_after)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
