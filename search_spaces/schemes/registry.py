"""The schemes by name: the built-in ones and those that other packages register."""

from __future__ import annotations

from functools import cache

from search_spaces.registry import Registry
from search_spaces.schemes.channel_svd import ChannelSVD
from search_spaces.schemes.contract import Scheme
from search_spaces.schemes.sliced_svd import SlicedSVD
from search_spaces.schemes.spatial_svd import SpatialSVD
from search_spaces.schemes.tucker2 import Tucker2

__all__ = ["schemes"]


@cache
def schemes() -> Registry[Scheme]:
    """Scheme instances by name; other packages add theirs through the entry point group `rankray.schemes`."""
    built_in: tuple[Scheme, ...] = (ChannelSVD(), SpatialSVD(), SlicedSVD(), Tucker2())
    return Registry("rankray.schemes", "scheme", {scheme.name: scheme for scheme in built_in})
