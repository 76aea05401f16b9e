"""Import paths: `package.module:callable`, by which a user names a model, a data set or a metric of their own."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from search_spaces.errors import ConfigError, RankRayError
from search_spaces.registry import nearest
from workers.causes import cause

__all__ = ["build", "import_object"]


def import_object(path: str, key: str) -> Any:
    """What an import path names.

    Modules beside the config are found: the current directory is put at the end of `sys.path` (Ray hands the
    driver's `sys.path` to its workers).

    Args:
        path: `package.module:name`, or `package.module:Class.method`.
        key: config key the path stands under, for messages.

    Raises:
        ConfigError: another format, a module that does not import, or a name that it does not have.

    Example:
        >>> import_object("math:sqrt", "search.metric")(9.0)
        3.0
    """
    module_name, attributes = _parse(path, key)
    found: Any = _import_module(module_name, path, key)
    for attribute in attributes:
        try:
            found = getattr(found, attribute)
        except AttributeError:
            raise ConfigError(key, _unknown_attribute(found, attribute, path)) from None
    return found


def build(path: str, arguments: Mapping[str, Any], key: str, *, expected: type = object) -> Any:
    """Calls what an import path names.

    Args:
        path: `package.module:callable`.
        arguments: keyword arguments of the call.
        key: config key the path stands under, for messages.
        expected: type that the result must be an instance of (`torch.nn.Module`).

    Raises:
        ConfigError: the path does not resolve, is no callable, the call raises, or its result is of another type.
    """
    call = import_object(path, key)
    if not callable(call):
        raise ConfigError(key, f"{path} is of type {type(call).__name__}; give something that can be called")
    shown = f"{path}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"
    try:
        built = call(**arguments)
    except RankRayError:
        raise  # one line already, and nearer to the mistake
    except (Exception, SystemExit) as error:
        raise ConfigError(key, f"{shown} raised {cause(error)}") from error
    if not isinstance(built, expected):
        raise ConfigError(key, f"{shown} returned {type(built).__name__}; it must return a {expected.__name__}")
    return built


def _parse(path: str, key: str) -> tuple[str, list[str]]:
    """Splits an import path into the module's name and the attributes to follow from it."""
    module_name, _, rest = path.partition(":")
    parts = [*module_name.split("."), *rest.split(".")]
    if not all(part.isidentifier() for part in parts):
        raise ConfigError(key, f"{path!r} is no import path; write package.module:callable")
    return module_name, rest.split(".")


def _import_module(name: str, path: str, key: str) -> ModuleType:
    _make_current_directory_importable()
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a script without a __main__ guard may exit while it is imported
        raise ConfigError(key, f"{path} does not import: {cause(error)}") from error


def _make_current_directory_importable() -> None:
    """Last, not first: a `random.py` or a `workers/` in the user's directory must not stand in for the real one."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)


def _unknown_attribute(owner: object, attribute: str, path: str) -> str:
    """What lacks the attribute, and the nearest name; its file shows a module that was found in an unexpected place."""
    name = getattr(owner, "__name__", type(owner).__name__)
    where = f" ({owner.__file__})" if getattr(owner, "__file__", None) else ""  # type: ignore[attr-defined]
    known = [one for one in dir(owner) if not one.startswith("_")]
    return f"{path}: {name}{where} has no {attribute!r}{nearest(attribute, known)}"
