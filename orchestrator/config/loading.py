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

__all__ = ["check_config", "dump_config", "read_config"]


def read_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads and checks a config file.

    Args:
        overrides: `search.seed=3`: a dotted key and a YAML value.

    Raises:
        ConfigError: naming the file or key, what is wrong, and what would be right.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = [one.name for one in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise ConfigError(str(path), f"no such file{nearest(path.name, beside)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"cannot be read: {error}") from None
    raw = _parse(text, str(path))
    if not isinstance(raw, dict):
        raise ConfigError(str(path), "holds no mapping; a config starts with keys such as `model:` and `search:`")
    for override in overrides:
        _override(raw, override)
    return check_config(raw, str(path))


def check_config(raw: Mapping[str, Any], source: str) -> Config:
    """Checks a config that was read already.

    Args:
        source: what to call it where a message has no key to name.
    """
    expanded = _expand(raw, "")
    search = expanded.get("search")
    if not isinstance(search, dict):
        raise ConfigError(f"{source}: search", "is missing; a config needs `search: {method: mbs, budget: ...}`")
    if not isinstance(search.get("method"), str):
        known = ", ".join(search_methods().names())
        raise ConfigError("search.method", f"is missing; known: {known}")
    method = search_methods().get(search["method"], "search.method")
    settings = _validated(method.settings, search, "search.")
    config: Config = _validated(Config, {**expanded, "search": settings}, "")
    return config


def dump_config(config: Config) -> str:
    """The config as YAML that reads back to the same config, defaults written out."""
    raw = config.model_dump(mode="json", serialize_as_any=True)
    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{where}, line {mark.line + 1}" if mark else where
        raise ConfigError(line, f"is not YAML: {getattr(error, 'problem', None) or error}") from None


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override}", "is no override; write --set search.seed=3")
    parts = key.strip().split(".")
    place: Any = raw
    for part in parts[:-1]:
        if not isinstance(place.get(part), dict):
            place[part] = {}
        place = place[part]
    place[parts[-1]] = _parse(value, f"--set {override}")


def _expand(value: Any, key: str) -> Any:
    """Environment variables in strings: `${RANKRAY_DATA}`."""
    if isinstance(value, dict):
        return {name: _expand(item, f"{key}.{name}".lstrip(".")) for name, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, key) for item in value]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise ConfigError(key, f"environment variable {name} is not set; set it, or write the path itself")
        return os.environ[name]

    return re.sub(r"\$\{(\w+)\}", variable, value)


def _validated(model: type[Any], raw: Mapping[str, Any], prefix: str) -> Any:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        faults = error.errors()
        first = faults[0]
        place = [str(part) for part in first["loc"]]
        message = _message(model, first)
        more = f" (and {len(faults) - 1} more to mend)" if len(faults) > 1 else ""
        raise ConfigError(prefix + ".".join(place) or "config", message + more) from None


def _message(model: type[BaseModel], fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        return f"unknown key{nearest(str(fault['loc'][-1]), _known_keys(model, fault['loc'][:-1]))}"
    if fault["type"] == "missing":
        return "is missing"
    text = str(fault["msg"]).removeprefix("Value error, ").replace("a valid dictionary", "a mapping")
    given = fault.get("input")
    shown = "" if isinstance(given, dict | list | tuple) or fault["type"] == "value_error" else f", not {given!r}"
    return text[0].lower() + text[1:] + shown


def _known_keys(model: Any, place: tuple[int | str, ...]) -> list[str]:
    """Keys that are known at a place in a model."""
    for part in place:
        if isinstance(part, int):
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
