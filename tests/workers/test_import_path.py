"""Import paths: how a user names a model, a data set or a metric of their own."""

from __future__ import annotations

import math
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from search_spaces.errors import ConfigError
from workers.import_path import build, import_object

WriteModule = Callable[[str, str], None]


class TestImportObject:
    def test_a_function_of_a_package(self) -> None:
        assert import_object("math:sqrt", "metric") is math.sqrt

    def test_an_attribute_of_an_attribute(self) -> None:
        assert import_object("collections:OrderedDict.fromkeys", "metric")("ab") == OrderedDict(a=None, b=None)

    def test_a_module_in_the_current_directory(self, write_module: WriteModule) -> None:
        write_module("mynets_beside_config", "def make():\n    return 'a net'\n")
        assert import_object("mynets_beside_config:make", "model.build")() == "a net"

    def test_the_current_directory_comes_last(self, write_module: WriteModule, tmp_path: Path) -> None:
        write_module("random", "raise RuntimeError('the user has a random.py of their own')\n")
        sys.modules.pop("random", None)
        assert hasattr(import_object("random:Random", "metric"), "seed")
        assert sys.path[-1] == str(tmp_path)

    @pytest.mark.parametrize(
        "path", ["math", "math:", ":sqrt", "math.sqrt", "a b:c", "math:sq rt", "../x:y", "", "a:b:c"]
    )
    def test_another_format(self, path: str) -> None:
        with pytest.raises(ConfigError, match=r"^model\.build: .* is no import path; write package\.module:callable$"):
            import_object(path, "model.build")

    def test_no_such_module_says_what_python_said(self) -> None:
        with pytest.raises(ConfigError) as raised:
            import_object("no_such_package.nets:make", "model.build")
        assert str(raised.value) == (
            "model.build: no_such_package.nets:make does not import: "
            "ModuleNotFoundError: No module named 'no_such_package'"
        )

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("import a_library_not_installed\n", "ModuleNotFoundError: No module named 'a_library_not_installed'"),
            ("def make(:\n", "SyntaxError"),
            ("raise ValueError('first line\\nsecond line')\n", "ValueError: first line second line"),
            ("import sys\nsys.exit('usage: ...')\n", "SystemExit: usage: ..."),
        ],
    )
    def test_a_module_that_raises_is_one_line(self, write_module: WriteModule, text: str, said: str) -> None:
        write_module("broken_nets", text)
        with pytest.raises(ConfigError) as raised:
            import_object("broken_nets:make", "model.build")
        assert said in str(raised.value)
        assert "\n" not in str(raised.value)
        assert raised.value.__cause__ is not None

    def test_a_missing_name_is_answered_with_the_nearest_and_the_file(
        self, write_module: WriteModule, tmp_path: Path
    ) -> None:
        write_module("nets_with_typo", "def make_resnet():\n    return None\n")
        with pytest.raises(ConfigError, match=r"has no 'make_resent'; did you mean 'make_resnet'\?$") as raised:
            import_object("nets_with_typo:make_resent", "model.build")
        assert str(tmp_path / "nets_with_typo.py") in str(raised.value)


class TestBuild:
    def test_arguments_go_to_the_call(self) -> None:
        layer = build("torch.nn:Linear", {"in_features": 3, "out_features": 2}, "model.build", expected=nn.Module)
        assert layer.weight.shape == (2, 3)

    def test_a_call_that_raises_is_shown_with_its_arguments(self) -> None:
        with pytest.raises(ConfigError, match=r"^model\.build: torch\.nn:Linear\(width=3\) raised TypeError: .*width"):
            build("torch.nn:Linear", {"width": 3}, "model.build")

    def test_something_that_cannot_be_called(self) -> None:
        with pytest.raises(ConfigError, match="math:pi is of type float; give something that can be called"):
            build("math:pi", {}, "model.build")

    def test_a_result_of_another_type(self) -> None:
        with pytest.raises(ConfigError, match=r"builtins:dict\(\) returned dict; it must return a Module"):
            build("builtins:dict", {}, "model.build", expected=nn.Module)

    def test_a_config_error_of_the_call_keeps_its_own_line(self, write_module: WriteModule) -> None:
        write_module(
            "strict_nets",
            "from search_spaces.errors import ConfigError\ndef make():\n    raise ConfigError('w.pt', 'too old')\n",
        )
        with pytest.raises(ConfigError, match=r"^w\.pt: too old$"):
            build("strict_nets:make", {}, "model.build")
