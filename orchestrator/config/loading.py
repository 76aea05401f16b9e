"""Reads a config: YAML, environment variables, `--set` overrides, then the check; every mistake is one line."""

from __future__ import annotations

import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from orchestrator.config.schema import Config
from orchestrator.searches.registry import search_methods
from search_spaces.errors import ConfigError
from search_spaces.registry import nearest

__all__ = ["check_config", "dump_config", "expand", "parse_mapping", "read_config", "read_mapping", "validated"]


def read_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads and checks a config file.

    Args:
        overrides: `search.seed=3`: a dotted key and a YAML value.

    Raises:
        ConfigError: naming the file or key, what is wrong, and what would be right.
    """
    return check_config(read_mapping(path, overrides), str(path))


def read_mapping(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What a config file holds, with overrides, unchecked.

    Raises:
        ConfigError: it cannot be read, or an override is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = [one.name for one in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise ConfigError(str(path), f"no such file{nearest(path.name, beside)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"cannot be read: {_one_line(error)}") from None
    raw = parse_mapping(text, str(path))
    for override in overrides:
        _override(raw, override)
    return raw


def check_config(raw: Mapping[str, Any], source: str) -> Config:
    """Checks a config that was read already.

    Args:
        source: what to call it where a message has no key to name.
    """
    expanded = expand(raw, "")
    search = expanded.get("search")
    if not isinstance(search, dict):
        raise ConfigError(f"{source}: search", "is missing; a config needs `search: {method: mbs, budget: ...}`")
    if not isinstance(search.get("method"), str):
        known = ", ".join(search_methods().names())
        raise ConfigError("search.method", f"is missing; known: {known}")
    method = search_methods().get(search["method"], "search.method")
    settings = validated(method.settings, search, "search.")
    config: Config = validated(Config, {**expanded, "search": settings}, "")
    return config


def dump_config(config: Config) -> str:
    """The config as YAML that reads back to the same config, defaults written out."""
    raw = config.model_dump(mode="json", serialize_as_any=True)
    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)


def parse_mapping(text: str | bytes, where: str) -> dict[str, Any]:
    """The mapping that a config's YAML holds.

    Args:
        where: what to call it in messages.

    Raises:
        ConfigError: it is no YAML (the line is named), or no mapping.
    """
    raw = _parse(text, where)
    if not isinstance(raw, dict):
        raise ConfigError(where, "holds no mapping; a config starts with keys such as `model:` and `search:`")
    return raw


def _parse(text: str | bytes, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: what looks like a date, and is none
        mark = getattr(error, "problem_mark", None)
        line = f"{where}, line {mark.line + 1}" if mark else where
        raise ConfigError(line, f"is not YAML: {getattr(error, 'problem', None) or _one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _override(raw: dict[str, Any], override: str) -> None:
    """Sets one key; a number stands for a place in a list: `search.settings.0.step=3`."""
    key, _, value = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if "=" not in override or not all(parts):
        raise ConfigError(f"--set {override}", "is no override; write --set search.seed=3")
    place: Any = raw
    for depth, part in enumerate(parts[:-1]):
        index = _index(place, part, override)
        inner = place[index] if isinstance(place, list) else place.get(index)
        if isinstance(inner, list) and not parts[depth + 1].isdecimal():
            inner = {}  # a list where the rest of the key wants a mapping: it is replaced
        # A copy: what a YAML alias (`test: *train`) names elsewhere stays as it is.
        place[index] = inner.copy() if isinstance(inner, dict | list) else {}
        place = place[index]
    place[_index(place, parts[-1], override)] = _parse(value, f"--set {override}")


def _index(place: Any, part: str, override: str) -> Any:
    """The key or list index that a part of an override's key means."""
    if not isinstance(place, list):
        return part
    if int(part) >= len(place):
        raise ConfigError(f"--set {override}", f"the list has no place {part}; its {len(place)} places count from 0")
    return int(part)


def expand(value: Any, key: str = "") -> Any:
    """The value with environment variables put into its strings: `${RANKRAY_DATA}`.

    Args:
        key: the value's place in the config, for messages.

    Raises:
        ConfigError: one is not set.
    """
    if isinstance(value, dict):
        return {name: expand(item, f"{key}.{name}".lstrip(".")) for name, item in value.items()}
    if isinstance(value, list):
        return [expand(item, key) for item in value]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise ConfigError(key, f"environment variable {name} is not set; set it, or write the path itself")
        return os.environ[name]

    return re.sub(r"\$\{(\w+)\}", variable, value)


def validated(model: type[Any], raw: Mapping[str, Any], prefix: str) -> Any:
    """A block of the config as its pydantic model.

    Args:
        prefix: the block's place in the config, with a dot at the end.

    Raises:
        ConfigError: naming the first key that is wrong.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        faults = error.errors()
        first = faults[0]
        place = [str(part) for part in first["loc"]]
        message = _message(model, first)
        more = f" (and {len(faults) - 1} more to mend)" if len(faults) > 1 else ""
        raise ConfigError((prefix + ".".join(place)).strip(".") or "config", message + more) from None


def _message(model: type[BaseModel], fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        return f"unknown key{nearest(str(fault['loc'][-1]), _known_keys(model, fault['loc'][:-1]))}"
    if fault["type"] == "missing":
        return "is missing"
    text = re.sub(r" or instance of \w+", "", str(fault["msg"]).removeprefix("Value error, "))
    for theirs, ours in (("a valid dictionary", "a mapping"), ("a valid tuple", "a list"), ("a valid string", "text")):
        text = text.replace(theirs, ours)
    given = fault.get("input")
    shown = "" if isinstance(given, dict | list | tuple) or fault["type"] == "value_error" else f", not {given!r}"
    return text[0].lower() + text[1:] + shown


def _known_keys(model: Any, place: tuple[int | str, ...]) -> list[str]:
    """Keys that are known at a place in a model."""
    for part in place:
        if part not in model.model_fields:  # a number in a list, or a name in a mapping of blocks
            continue
        model = _block(model.model_fields[part].annotation)
        if model is None:
            return []
    return list(model.model_fields)


def _block(annotation: Any) -> Any:
    """The config block inside an annotation such as `tuple[Block, ...]` or `Block | None`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    return next((block for one in typing.get_args(annotation) if (block := _block(one)) is not None), None)
