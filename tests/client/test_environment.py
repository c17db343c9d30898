"""Settings of the client half from the environment."""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import milepost
from milepost.client.environment import (
    WrongSetting,
    number,
    number_or_text,
    one_of,
    read_settings,
    setting,
    truth,
    whole_number,
)
from milepost.errors import ConfigurationError
from milepost.worker.settings import load_settings


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What there is."""

    seconds: float = setting(number(at_least=0, at_most=10), 1.5)
    count: int | None = setting(whole_number(at_least=1), None)
    is_on: bool = setting(truth, True)
    word: str = setting(one_of("red", "green", "blue"), "red")
    delay: float | str = setting(number_or_text, 0.0)


def test_what_nobody_says_is_as_it_was_declared() -> None:
    assert read_settings(Settings) == Settings()


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("SECONDS", " 2.5 ", 2.5),
        ("SECONDS", "1e1", 10.0),
        ("COUNT", "1_000", 1000),
        ("COUNT", "7.0", 7),
        ("IS_ON", "No", False),
        ("IS_ON", "on", True),
        ("WORD", "GREEN", "green"),
        ("DELAY", "90s", "90s"),
    ],
)
def test_what_is_given_is_read(
    monkeypatch: pytest.MonkeyPatch, name: str, given: str, expected: object
) -> None:
    for variable in (f"MILEPOST_{name}", f"milepost_{name.lower()}"):
        with monkeypatch.context() as context:
            context.setenv(variable, given)
            assert getattr(read_settings(Settings), name.lower()) == expected


@pytest.mark.parametrize(
    ("name", "given", "reason"),
    [
        ("seconds", "soon", "Input should be a valid number, unable to parse string as a number"),
        ("seconds", "", "Input should be a valid number, unable to parse string as a number"),
        ("seconds", "-1", "Input should be greater than or equal to 0"),
        ("seconds", "11", "Input should be less than or equal to 10"),
        ("seconds", "nan", "Input should be greater than or equal to 0"),
        ("count", "0", "Input should be greater than or equal to 1"),
        ("count", "1.5", "Input should be a valid integer, unable to parse string as an integer"),
        ("is_on", "perhaps", "Input should be a valid boolean, unable to interpret input"),
        ("word", "pink", "Input should be 'red', 'green' or 'blue'"),
    ],
)
def test_what_cannot_be_is_told(monkeypatch: pytest.MonkeyPatch, name: str, given: str, reason: str) -> None:
    monkeypatch.setenv(f"MILEPOST_{name.upper()}", given)
    with pytest.raises(WrongSetting) as caught:
        read_settings(Settings)
    assert (caught.value.name, caught.value.reason, caught.value.given) == (name, reason, given)


@pytest.mark.parametrize(
    ("name", "given"),
    [("count", 1.5), ("count", []), ("is_on", 2), ("seconds", {}), ("delay", []), ("word", 1)],
)
def test_what_toml_has_is_checked_too(name: str, given: Any) -> None:
    with pytest.raises(WrongSetting, match=name):
        read_settings(Settings, otherwise={name: given})


def test_the_environment_comes_first_and_an_empty_variable_may_be_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MILEPOST_COUNT", "3")
    monkeypatch.setenv("MILEPOST_WORD", "")
    found = read_settings(Settings, ignores_empty=True, otherwise={"count": 4, "seconds": 5, "delay": 6})
    assert found == Settings(count=3, seconds=5.0, delay=6.0)


def test_a_wrong_setting_of_a_worker_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILEPOST_LOG_LEVEL", "loud")
    words = (
        "wrong setting MILEPOST_LOG_LEVEL: Input should be 'debug', 'info', 'warning', 'error' or 'critical', "
        "not 'loud'"
    )
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert str(caught.value) == words


def test_each_public_name_is_where_checkers_are_told() -> None:
    """What is imported when it is asked for is what the imports say that only checkers see."""
    assert milepost.__file__ is not None
    module = ast.parse(Path(milepost.__file__).read_text(encoding="utf-8"))
    told = {
        name.asname or name.name: node.module
        for node in ast.walk(module)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("milepost")
        for name in node.names
    }
    assert told.pop("auth") == "milepost"
    places: dict[str, str] = milepost._PLACES  # pyright: ignore[reportPrivateUsage]
    assert places == told
    assert sorted([*places, "auth"]) == sorted(milepost.__all__)
    for name in milepost.__all__:
        assert getattr(milepost, name) is getattr(milepost, name)
    assert set(milepost.__all__) <= set(dir(milepost))
    with pytest.raises(AttributeError, match="no attribute 'taks'"):
        _ = milepost.taks  # type: ignore[attr-defined]
