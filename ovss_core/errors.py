"""The errors ovss raises; each says what is wrong, what was got and what to do.

OvssError
├── ConfigError (ValueError)          a setting or a combination of settings cannot work
│   ├── VocabularyError               a vocabulary file or list cannot be used
│   └── OutputMismatchError           an output belongs to a run with another configuration
├── ModelError (ValueError)           an architecture ovss cannot take apart
├── WeightsError (OSError)            weights cannot be found, downloaded or read
├── ImageError (ValueError)           one image cannot be decoded; the message is the reason
├── StorageError (OSError)            an input or output location cannot be used
└── ClusterError (ValueError)         the Ray cluster cannot hold the job
"""

from collections.abc import Iterable
from difflib import get_close_matches


class OvssError(Exception):
    """Base of every error that ovss raises on purpose."""


class ConfigError(OvssError, ValueError):
    """A setting, or a combination of settings, cannot work."""


class VocabularyError(ConfigError):
    """A vocabulary file or list of classes cannot be used."""


class OutputMismatchError(ConfigError):
    """An output folder belongs to a run with another configuration."""


class ModelError(OvssError, ValueError):
    """An architecture that ovss cannot take apart, such as a ResNet tower."""


class WeightsError(OvssError, OSError):
    """Weights that cannot be found, downloaded or read."""


class ImageError(OvssError, ValueError):
    """One image that cannot be decoded; the message is the reason."""


class StorageError(OvssError, OSError):
    """An input or output location that cannot be used."""


class ClusterError(OvssError, ValueError):
    """A Ray cluster too small for the job."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the known name that is most like a mistyped one, or "" where none is."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    found = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f" (did you mean {by_lower[found[0]]!r}?)" if found else ""
