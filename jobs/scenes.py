"""Draw scenes with ground truth: `ovss scenes --count N --output DIR`; the same command goes on after a stop."""

import sys

from jsonargparse import ArgumentParser

from ovss_core.errors import OvssError
from pipelines.scenes import ScenesConfig, draw_scenes


def main(arguments: list[str] | None = None) -> int:
    """Draw the scenes and return the exit status."""
    parser = ArgumentParser(prog="ovss scenes", description=__doc__)
    parser.add_class_arguments(ScenesConfig)
    settings = parser.parse_args(arguments)
    try:
        config = ScenesConfig(**settings.as_dict())
        drawn = draw_scenes(config)
    except (OvssError, OSError) as error:
        print(f"ovss scenes: {error}", file=sys.stderr)
        return 1
    print(f"drew {drawn} scenes into {config.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
