"""A directory that begins with a config: what those of comparisons and of sweeps have in common."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import yaml

from orchestrator.config.loading import parse_mapping
from orchestrator.run_directory import RunDirectory
from orchestrator.storage import Storage
from search_spaces.errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ConfigDirectory"]


class ConfigDirectory:
    """A folder that is what it is because a config of a given name lies in it.

    Args:
        location: a local path or a `pyarrow.fs` URI.
        key: what to call it in messages.

    Attributes:
        kind, command: what it holds, and the command that writes one, for messages.
        config_name: of the file.
    """

    kind: ClassVar[str]
    command: ClassVar[str]
    config_name: ClassVar[str]

    def __init__(self, location: str, key: str = "--run-dir") -> None:
        self.storage = Storage(location, key)
        self.location = location

    @classmethod
    def open(cls, location: str, key: str = "run") -> Self:
        """An existing one.

        Raises:
            ConfigError: there is none at this place.
        """
        directory = cls(location, key)
        if not directory.storage.exists(cls.config_name):
            raise ConfigError(
                key, f"{location} is no {cls.kind}: it has no {cls.config_name}; `rankray {cls.command}` writes one"
            )
        return directory

    @classmethod
    def lies_at(cls, location: str) -> bool:
        """Whether there is one at this place.

        Raises:
            ConfigError: the place cannot be reached.
        """
        return Storage(location, "run").exists(cls.config_name)

    def raw(self) -> dict[str, Any]:
        """The config that it was started with."""
        return parse_mapping(self.storage.read(self.config_name), f"{self.location}/{self.config_name}")

    def write_raw(self, raw: Mapping[str, Any]) -> None:
        """Writes the config."""
        plain = json.loads(json.dumps(raw, default=str))  # from Python a config may hold paths and tuples
        self.storage.write(self.config_name, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).encode())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process from working on the same local folder.

        Raises:
            RunStoppedError: one does already.
        """
        with RunDirectory(self.location).locked():
            yield
