"""Readers that fail in every way that a campaign must notice, to show that it does."""

import os
import time

from ovss_core.errors import ImageError
from tests.fuzz.campaign import GROWTH_BYTES, Target

_SEEDS = {"a": b"0123456789" * 20, "b": b"{}" * 20}


def load_planted() -> list[Target]:
    """Build the readers; those called "sound" and "refusing" do what readers may do."""
    checks = (_sound, _refusing, _wordy, _raising, _leaving, _hanging, _growing)
    return [Target(check.__name__.removeprefix("_"), _SEEDS, check) for check in checks]


def load_nothing() -> list[Target]:
    """Fail to build any."""
    raise SystemExit(3)


def _sound(name: str, data: bytes) -> None:
    pass


def _refusing(name: str, data: bytes) -> None:
    raise ImageError("no image")


def _wordy(name: str, data: bytes) -> None:
    raise ImageError("no image,\nas everybody can see")


def _raising(name: str, data: bytes) -> None:
    raise ValueError("not enough values to unpack")


def _leaving(name: str, data: bytes) -> None:
    os.abort()


def _hanging(name: str, data: bytes) -> None:
    time.sleep(3600)


def _growing(name: str, data: bytes) -> None:
    bytearray(GROWTH_BYTES + (1 << 24))
