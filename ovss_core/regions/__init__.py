"""Regions of images that any mask generator made: read, laid on windows, and used to vote."""

from ovss_core.regions.region_map import RegionMap
from ovss_core.regions.vote import RegionVote, vote

__all__ = ["RegionMap", "RegionVote", "vote"]
