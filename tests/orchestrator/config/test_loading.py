"""Reading a config: what it may say, how keys are overridden, and one line for every mistake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.loading import check_config, dump_config, parse_mapping, read_config
from orchestrator.config.schema import Config
from search_spaces.errors import ConfigError

RAW: dict[str, Any] = {
    "model": {"build": "workers.models:cifar_resnet20"},
    "data": {"train": {"parquet": "train.parquet"}},
    "search": {"method": "mbs", "budget": {"parameters": 0.5}},
}

WriteConfig = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> WriteConfig:
    def write_config(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return write_config


@pytest.fixture
def path(write: WriteConfig) -> Path:
    return write(yaml.safe_dump(RAW))


def refused(path: Path, *overrides: str) -> str:
    """The message with which a config is refused: one line."""
    with pytest.raises(ConfigError) as caught:
        read_config(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_filled_in(path: Path) -> None:
    config = read_config(path)
    assert config.data.validation_size == 256
    assert config.cluster.evaluators == "auto"
    assert config.search.objective == "accuracy"
    assert [limit.cost for limit in config.limits] == ["parameters"]


def test_a_list_of_limits_means_the_mapping_of_all(path: Path) -> None:
    config = read_config(path, ["search.budget=[{parameters: 0.5}, {macs: 30000000}]"])
    assert config.search.budget == {"parameters": 0.5, "macs": 30e6}


@pytest.mark.parametrize("name", ["resnet20_mbs", "resnet56_mbs"])
def test_the_examples_are_right(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKRAY_DATA", "/somewhere")
    config = read_config(Path(__file__).parents[3] / "examples" / f"{name}.yaml")
    assert config.model.checkpoint == f"/somewhere/cifar10/{name.partition('_')[0]}.pt"
    assert config.data.train == {"parquet": "/somewhere/cifar10/train-*.parquet"}


class TestTheFile:
    def test_that_is_not_there(self, tmp_path: Path) -> None:
        assert refused(tmp_path / "config.yaml") == f"{tmp_path}/config.yaml: no such file"

    def test_that_is_not_there_but_for_a_typo(self, path: Path) -> None:
        assert refused(path.with_name("confg.yaml")).endswith("no such file; did you mean 'config.yaml'?")

    def test_that_is_a_folder(self, tmp_path: Path) -> None:
        assert refused(tmp_path).startswith(f"{tmp_path}: cannot be read: ")

    def test_that_is_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00")
        assert "config.yaml: cannot be read: " in refused(tmp_path / "config.yaml")

    @pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words", "3"])
    def test_that_holds_no_mapping(self, write: WriteConfig, text: str) -> None:
        assert "holds no mapping; a config starts with keys such as `model:`" in refused(write(text))

    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ("model:\n  build: a:b\n data: {}\n", ", line 3: is not YAML: "),
            ("model: {build: a:b\n", ", line 2: is not YAML: "),
            ("model: a\n\tdata: b\n", ", line 2: is not YAML: "),
            (
                "model: !!python/object/apply:os.system [id]\n",
                ", line 1: is not YAML: could not determine a constructor",
            ),
            ("a: 1\n---\nb: 2\n", ", line 2: is not YAML: but found another document"),
        ],
    )
    def test_that_is_no_yaml_names_the_line(self, write: WriteConfig, text: str, line: str) -> None:
        assert line in refused(write(text))

    @pytest.mark.parametrize("text", ["model: \x07\n", "model: 2026-99-99\n"])
    def test_that_yaml_cannot_read_and_says_so_without_a_line(self, write: WriteConfig, text: str) -> None:
        assert "config.yaml: is not YAML: " in refused(write(text))


class TestEnvironmentVariables:
    def test_are_put_in_wherever_text_stands(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATA", "/data")
        monkeypatch.setenv("SEED", "7")
        config = read_config(
            path, ["data.train.parquet=['${DATA}/a-${SEED}.parquet', b.parquet]", "search.seed=${SEED}"]
        )
        assert config.data.train == {"parquet": ["/data/a-7.parquet", "b.parquet"]}
        assert config.search.seed == 7

    def test_that_are_not_set_are_named_with_their_key(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("NOWHERE", raising=False)
        message = refused(path, "data.train.parquet=${NOWHERE}/x")
        assert message.startswith("data.train.parquet: environment variable NOWHERE is not set; set it, or ")


class TestOverrides:
    def test_set_one_key(self, path: Path) -> None:
        config = read_config(path, ["search.seed=3", "search.budget.macs=0.4", "cluster.evaluators=2"])
        assert (config.search.seed, config.search.budget, config.cluster.evaluators) == (
            3,
            {"parameters": 0.5, "macs": 0.4},
            2,
        )

    def test_the_last_one_counts(self, path: Path) -> None:
        assert read_config(path, ["search.seed=3", "search.seed=4"]).search.seed == 4

    def test_values_are_yaml(self, path: Path) -> None:
        config = read_config(path, ["search.include=[layer1.*, conv1]", "model.checkpoint=a=b.pt", "data.test=null"])
        assert config.search.include == ("layer1.*", "conv1")
        assert (config.model.checkpoint, config.data.test) == ("a=b.pt", None)

    def test_reach_into_lists(self, path: Path) -> None:
        two = "search.settings=[{step: 3, beam_size: 5}, {step: 4, beam_size: 6}]"
        settings: Any = read_config(path, [two, "search.settings.1.step=9"]).search
        assert [(one.step, one.beam_size) for one in settings.settings] == [(3, 5), (9, 6)]

    def test_beyond_a_list_are_refused(self, path: Path) -> None:
        message = refused(path, "search.settings=[{step: 3, beam_size: 5}]", "search.settings.1.step=9")
        assert message.startswith("--set search.settings.1.step=9: the list has no place 1")

    def test_a_list_of_limits_gives_way_to_one_limit(self, write: WriteConfig) -> None:
        path = write(yaml.safe_dump({**RAW, "search": {"method": "mbs", "budget": [{"macs": 0.3}]}}))
        assert read_config(path, ["search.budget.parameters=0.5"]).search.budget == {"parameters": 0.5}

    def test_leave_the_other_end_of_a_yaml_alias_alone(self, write: WriteConfig) -> None:
        text = "data:\n  train: &same {parquet: a}\n  test: *same\n" + yaml.safe_dump(
            {name: RAW[name] for name in ("model", "search")}
        )
        config = read_config(write(text), ["data.test.parquet=b"])
        assert (config.data.train, config.data.test) == ({"parquet": "a"}, {"parquet": "b"})

    @pytest.mark.parametrize("override", ["search.seed", "=3", "search..seed=3", ".seed=3", "search.=3", ""])
    def test_that_are_none_are_refused(self, path: Path, override: str) -> None:
        assert refused(path, override) == f"--set {override}: is no override; write --set search.seed=3"

    def test_that_are_no_yaml_are_named(self, path: Path) -> None:
        assert refused(path, "search.seed=[3").startswith("--set search.seed=[3, line 1: is not YAML: ")

    def test_of_unknown_keys_are_refused(self, path: Path) -> None:
        assert refused(path, "serach.seed=3") == "serach: unknown key; did you mean 'search'?"
        assert refused(path, "cluster.adress=x") == "cluster.adress: unknown key; did you mean 'address'?"


STATIC_LIMIT = "a compression C_d in (0, 1) or a whole number of parameters above 1"

MISTAKES = [
    # What is set, and the line that it is refused with: an unknown key, with the nearest known one ...
    ("searh={}", "searh: unknown key; did you mean 'search'?"),
    ("search.sed=1", "search.sed: unknown key; did you mean 'seed'?"),
    (
        "search.settings=[{stepp: 3, beam_size: 5, step: 3}]",
        "search.settings.0.stepp: unknown key; did you mean 'step'?",
    ),
    ("data.validation_sise=3", "data.validation_sise: unknown key; did you mean 'validation_size'?"),
    ("data.normalize={mean: [0], stdd: [1], std: [1]}", "data.normalize.stdd: unknown key; did you mean 'std'?"),
    ("model.chekpoint=x", "model.chekpoint: unknown key; did you mean 'checkpoint'?"),
    (
        "data.xyzzy=3",
        "data.xyzzy: unknown key; known: calibration_size, image_size, normalize, slice_size, test, train, "
        "validation_size",
    ),
    # ... a budget outside (0, 1) ...
    *(
        (
            f"search.budget.parameters={value}",
            f"search.budget: parameters = {value} is neither a compression C_d in (0, 1) "
            "nor a whole number of parameters above 1",
        )
        for value in ("0", "1", "-0.5", "1.5")
    ),
    ("search.budget.parameters=.nan", "search.budget: parameters = nan is no number; give " + STATIC_LIMIT),
    ("search.budget.parameters=.inf", "search.budget: parameters = inf is no number; give " + STATIC_LIMIT),
    (
        "search.budget.parameters=half",
        "search.budget: parameters = half is no number; give " + STATIC_LIMIT,
    ),
    ("search.budget={}", "search.budget: is empty; give at least one limit, as in {parameters: 0.5}"),
    ("search.budget=[{macs: 0.5}, {macs: 0.4}]", "search.budget: a cost is limited twice"),
    ("search.budget=0.5", "search.budget: input should be a mapping, not 0.5"),
    # ... beam size, step and the other numbers ...
    (
        "search.settings=[{step: 0, beam_size: 5}]",
        "search.settings.0.step: input should be greater than or equal to 1, not 0",
    ),
    (
        "search.settings=[{step: 3, beam_size: 5}, {step: 3, beam_size: 0}]",
        "search.settings.1.beam_size: input should be greater than or equal to 1, not 0",
    ),
    ("search.settings=[{step: 3}]", "search.settings.0.beam_size: is missing"),
    ("search.settings=[]", "search.settings: is empty; give at least one {step, beam_size}"),
    ("search.tolerance=0", "search.tolerance: input should be greater than 0, not 0"),
    (
        "search.tolerance=0.5",
        "search: tolerance 0.5 is not below C_d 0.5, so that the dense network would do; "
        "take a small part of C_d, such as 0.005",
    ),
    ("data.validation_size=0", "data.validation_size: input should be greater than or equal to 1, not 0"),
    ("data.image_size=[32]", "data.image_size.1: is missing"),
    ("data.normalize={mean: [0, 0], std: [1]}", "data.normalize: mean has 2 channels, std has 1"),
    ("cluster.evaluators=0", "cluster.evaluators: must be `auto` or a whole number from 1 on, not 0"),
    ("cluster.evaluators=many", "cluster.evaluators: must be `auto` or a whole number from 1 on, not 'many'"),
    ("cluster.evaluators=[2]", "cluster.evaluators: must be `auto` or a whole number from 1 on, not [2]"),
    ("cluster.gpus_per_evaluator=2", "cluster.gpus_per_evaluator: input should be less than or equal to 1, not 2"),
    ("cluster.evaluators=yes", "cluster.evaluators: must be `auto` or a whole number from 1 on, not True"),
    ("cluster.timeout_s=.inf", "cluster.timeout_s: input should be a finite number, not inf"),
    # ... names that are looked up ...
    ("search.method=msb", "search.method: unknown search method 'msb'; did you mean 'mbs'?"),
    (
        "search.method=null",
        "search.method: is missing; known: alds, beam_around, energy, energy_product, energy_product_exact, "
        "greedy_ratio, layerwise, lc_rule, mbs, uniform, vbmf",
    ),
    ("search.objective=acuracy", "search.objective: unknown objective 'acuracy'; did you mean 'accuracy'?"),
    ("search.norm=spectral", "search.norm: input should be 'weight' or 'activation', not 'spectral'"),
    ("search.start=middle", "search.start: input should be 'full' or 'break_even', not 'middle'"),
    # ... and blocks of the wrong kind.
    ("model=workers.models:cifar_resnet20", "model: input should be a mapping, not 'workers.models:cifar_resnet20'"),
    ("search.include=layer1", "search.include: input should be a list, not 'layer1'"),
    ("model.build=3", "model.build: input should be text, not 3"),
    ("data.train=digits", "data.train: input should be a mapping, not 'digits'"),
    ("data={}", "data.train: is missing"),
]


@pytest.mark.parametrize(("override", "message"), MISTAKES, ids=[override for override, _ in MISTAKES])
def test_a_mistake_is_one_line(path: Path, override: str, message: str) -> None:
    assert refused(path, override) == message


def test_of_several_mistakes_the_first_is_told_and_the_others_are_counted(path: Path) -> None:
    message = refused(path, "data.validation_size=0", "data.slice_size=0", "cluster.timeout_s=0")
    assert message.startswith("data.validation_size: ")
    assert message.endswith(" (and 2 more to mend)")


@pytest.mark.parametrize("block", ["model", "data", "search"])
def test_a_missing_block_is_named(write: WriteConfig, block: str) -> None:
    message = refused(write(yaml.safe_dump({name: RAW[name] for name in RAW if name != block})))
    assert f"{block}: is missing" in message


def test_a_key_that_is_no_text_is_named(write: WriteConfig) -> None:
    assert "3" in refused(write(yaml.safe_dump({**RAW, 3: 4})))


@pytest.mark.parametrize("search", [None, 3, [1], "mbs"])
def test_a_search_that_is_no_block(search: object) -> None:
    with pytest.raises(ConfigError, match=r"^here: search: is missing; a config needs `search: \{method: mbs"):
        check_config({**RAW, "search": search}, "here")


def test_a_mapping_is_a_config_too() -> None:
    assert check_config(RAW, "config").search.method == "mbs"


def test_bytes_are_parsed_as_text_is() -> None:
    assert parse_mapping(b"a: \xc3\xa9", "here") == {"a": "é"}
    with pytest.raises(ConfigError, match=r"^here: is not YAML: "):
        parse_mapping(b"\xff\xfe\xff", "here")


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8).filter(lambda text: "$" not in text)
YAML_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
POSITIVE = st.integers(1, 10**6)


def optional(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=values)


RAW_CONFIGS = st.fixed_dictionaries(
    {
        "model": st.builds(
            lambda more: {"build": "a:b", **more},
            optional(arguments=st.dictionaries(TEXT, YAML_VALUES, max_size=3), checkpoint=TEXT),
        ),
        "data": st.builds(
            lambda train, more: {"train": train, **more},
            st.dictionaries(TEXT, YAML_VALUES, max_size=3),
            optional(
                test=st.none() | st.dictionaries(TEXT, YAML_VALUES, max_size=3),
                normalize=st.builds(
                    lambda pairs: {"mean": [mean for mean, _ in pairs], "std": [std for _, std in pairs]},
                    st.lists(st.tuples(st.floats(-9, 9), st.floats(0.01, 9)), max_size=3),
                ),
                image_size=st.none() | st.lists(POSITIVE, min_size=2, max_size=2),
                validation_size=POSITIVE,
                slice_size=st.none() | POSITIVE,
            ),
        ),
        "search": st.builds(
            lambda budget, settings, more: {
                "method": "mbs",
                "budget": budget,
                "settings": [{"step": step, "beam_size": size} for step, size in settings],
                **more,
            },
            st.dictionaries(TEXT, st.floats(0.1, 0.9) | st.integers(2, 10**12), min_size=1, max_size=3),
            st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=3, unique=True),
            optional(
                tolerance=st.floats(1e-6, 0.09),
                gamma=st.floats(0.01, 0.99),
                seed=st.integers(0, 2**32 - 1),
                include=st.lists(TEXT, max_size=3),
                exclude=st.lists(TEXT, max_size=3),
                tie_break=st.sampled_from(["rank", "loss", "compression"]),
            ),
        ),
    },
    optional={
        "metric": TEXT,
        "cluster": optional(
            evaluators=st.just("auto") | POSITIVE,
            address=st.none() | TEXT,
            timeout_s=st.floats(0.1, 1e6),
            gpus_per_evaluator=st.floats(0, 1),
        ),
    },
)


@given(RAW_CONFIGS)
def test_a_config_that_is_written_reads_back_the_same(raw: dict[str, Any]) -> None:
    config: Config = check_config(raw, "config")
    again = check_config(parse_mapping(dump_config(config), "config"), "config")
    assert again == config
    assert type(again.search) is type(config.search)
    assert dump_config(again) == dump_config(config)
