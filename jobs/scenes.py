"""``ovss scenes``: draw pictures with ground truth, any number of them; the same command goes on after a stop."""

from jobs.reporting import Arguments, make_parser, reported
from pipelines.scenes import ScenesConfig, draw_scenes


@reported
def main(arguments: Arguments = None) -> int:
    """Draw the scenes and return the exit status."""
    parser = make_parser("scenes", "Draw picture-book scenes with exact label maps.")
    parser.add_class_arguments(ScenesConfig)
    given = parser.parse_args(arguments).as_dict()
    given.pop("config", None)
    config = ScenesConfig(**given)
    print(f"drew {draw_scenes(config)} scenes into {config.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
