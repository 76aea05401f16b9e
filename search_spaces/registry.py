"""A registry: things by name, the built-in ones and those other packages offer through an entry point group."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from search_spaces.errors import ConfigError

__all__ = ["Registry", "nearest"]

T = TypeVar("T")

_NAMES_SHOWN = 12  # a model has hundreds of layers, and a message is one line


def nearest(name: str, known: list[str]) -> str:
    """A clause that names the known name closest to `name`: `; did you mean 'beam_size'?`, or the choice there is."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    if not known:
        return ""
    more = ", ..." if len(known) > _NAMES_SHOWN else ""
    return f"; known: {', '.join(sorted(known)[:_NAMES_SHOWN])}{more}"


class Registry(Generic[T]):
    """Looks things up by name. An entry point is imported only when its name is asked for.

    Args:
        group: entry point group of other packages (`rankray.schemes`).
        kind: what it holds, for messages (`scheme`).
        built_in: the project's own.
    """

    def __init__(self, group: str, kind: str, built_in: Mapping[str, T]) -> None:
        self._kind = kind
        self._built_in = dict(built_in)
        self._offered = {entry.name: entry for entry in entry_points(group=group)}

    def names(self) -> list[str]:
        """Every known name."""
        return sorted({*self._built_in, *self._offered})

    def get(self, name: str, key: str) -> T:
        """The thing called `name`.

        Args:
            key: config key that asked, for the message.

        Raises:
            ConfigError: no such name (the nearest one is named), or its entry point does not import.
        """
        if name in self._built_in:
            return self._built_in[name]
        if name not in self._offered:
            raise ConfigError(key, f"unknown {self._kind} {name!r}{nearest(name, self.names())}")
        try:
            loaded: T = self._offered[name].load()
        except Exception as error:
            raise ConfigError(key, f"{self._kind} {name!r} does not import: {type(error).__name__}: {error}") from error
        return loaded
