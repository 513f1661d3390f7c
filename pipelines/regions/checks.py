"""What can be known to be wrong with a run that makes regions before anything is loaded or started."""

from importlib.util import find_spec

from ovss_core.errors import ModelError
from pipelines.preflight import check_run, require_apart
from pipelines.run.options import PoolOptions, RunOptions, SourceOptions


def check_regions(source: SourceOptions, run: RunOptions, pools: PoolOptions) -> list[str]:
    """Refuse what cannot work; returns warnings.

    Raises:
        ConfigError: The output lies in the source, or options contradict each other.
        ModelError: transformers is not installed.
    """
    if find_spec("transformers") is None:
        raise ModelError("mask generators need the package transformers; pip install 'ovss[regions]'")
    require_apart(source.kind.places(), run.output)
    return check_run(run, pools, source.fetch_timeout_s)
