"""What every command shares: its parser, and how errors become one line and an exit status."""

import logging
import sys
from collections.abc import Callable, Sequence
from functools import wraps

from jsonargparse import ArgumentParser

from ovss_core.errors import ClusterError, ConfigError, ModelError, OvssError, StorageError, WeightsError
from pipelines.transport.addresses import ScrubbedFormatter, scrub

USAGE = 2
FAILED = 1
_BEFORE_START = (ConfigError, ModelError, WeightsError, StorageError, ClusterError)
Arguments = Sequence[str] | None
Main = Callable[..., int]


def make_parser(command: str, description: str) -> ArgumentParser:
    """Return the parser of ``ovss command``; every flag may also stand in a file given as ``--config``."""
    parser = ArgumentParser(prog=f"ovss {command}", description=description)
    parser.add_argument("--config", action="config", help="YAML file with any of these flags.")
    return parser


def reported(main: Main) -> Main:
    """Turn errors into one line on standard error and an exit status.

    0: done, even if some images failed (they are counted and listed). 2: the command cannot work as it stands;
    nothing was started. 1: the run stopped, or its counts do not add up.
    """

    @wraps(main)
    def run(arguments: Arguments = None) -> int:
        handler = logging.StreamHandler()
        handler.setFormatter(ScrubbedFormatter("%(levelname)s %(name)s: %(message)s"))
        logging.basicConfig(level=logging.WARNING, handlers=[handler])
        try:
            return main(arguments)
        except _BEFORE_START as error:
            print(f"ovss: error: {scrub(str(error))}", file=sys.stderr)
            return USAGE
        except OvssError as error:
            print(f"ovss: error: {scrub(str(error))}", file=sys.stderr)
            return FAILED
        except KeyboardInterrupt:
            print("ovss: interrupted; the same command goes on where it stopped", file=sys.stderr)
            return 130

    return run
