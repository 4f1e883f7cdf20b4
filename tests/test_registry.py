"""Names resolve to what was registered here or by an installed package, and a wrong name is answered with the nearest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedlora.errors import ConfigError, UnknownNameError, suggest
from fedlora.registry import Registry, construct


def filled() -> Registry[object]:
    registry: Registry[object] = Registry("adapter method")
    registry.add("lora", 1, "one")
    registry.add("ravan", 2, "two")
    return registry


def test_names_come_sorted_and_entries_say_where_they_are_from() -> None:
    registry = filled()
    assert registry.names() == ["lora", "ravan"]
    assert registry.get("ravan") == 2
    entry = registry.entry("lora")
    assert (entry.name, entry.value, entry.summary, entry.source) == ("lora", 1, "one", "fedlora")
    assert [own.name for own in registry.entries()] == ["lora", "ravan"]


def test_the_decorator_hands_back_what_it_registers() -> None:
    registry = filled()

    @registry.register("mine", "a class")
    class Mine:
        pass

    assert registry.get("mine") is Mine and registry.entry("mine").summary == "a class"


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="adapter method 'lora' is registered twice"):
        filled().add("lora", 3)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("lorra", "Did you mean 'lora'?"),
        ("Ravan", "Did you mean 'ravan'?"),
        ("xyz", "Known: lora, ravan."),
        ("", "Known: lora, ravan."),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        filled().get(name)
    assert str(caught.value) == f"unknown adapter method '{name}'. {hint}"
    assert isinstance(caught.value, ConfigError) and caught.value.valid == ["lora", "ravan"]


def test_nothing_registered_is_said_so() -> None:
    assert suggest("x", []) == "Known: none."


def test_another_package_adds_names_that_are_loaded_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "thirdparty-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thirdparty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[fedlora.tests]\nmore = fedlora_thirdparty_for_tests:More\nbroken = fedlora_no_such_module:x\n"
    )
    (tmp_path / "fedlora_thirdparty_for_tests.py").write_text(
        'class More:\n    """What it does, in a line.\n\n    And more.\n    """\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    registry: Registry[object] = Registry("adapter method", "fedlora.tests")
    registry.add("own", 1)
    assert registry.names() == ["broken", "more", "own"]  # listed without an import, so that a broken one does no harm
    entry = registry.entry("more")
    assert (entry.summary, entry.source) == ("What it does, in a line.", "fedlora_thirdparty_for_tests")
    assert registry.get("more") is entry.value
    with pytest.raises(ConfigError, match=r"fedlora_no_such_module.*cannot be loaded"):
        registry.get("broken")


# -- options -----------------------------------------------------------------------------------------------------------------


class Maker:
    """Takes two arguments from the run and two options from the user."""

    def __init__(self, seed: int, name: str, *, scale: float = 1.0, power: int) -> None:
        if scale < 0:
            raise ValueError(f"scale is {scale}; give a number >= 0")
        self.made = (seed, name, scale * 2, power)


def anything(seed: int, **options: Any) -> tuple[int, dict[str, Any]]:
    return seed, options


def of_type(seed: int, count: int = 1) -> list[int]:
    return [seed] * count


def strict(seed: int) -> None:
    raise UnknownNameError("device tier", "phne", ["phone"])


def test_options_become_keyword_arguments() -> None:
    made = construct("policy.name", "mine", Maker, 3, "x", options={"scale": 2, "power": 7})
    assert made.made == (3, "x", 4, 7)
    assert construct("world.name", "any", anything, 3, options={"a": {"b": 1}}) == (3, {"a": {"b": 1}})
    assert construct("world.name", "any", anything, 3, options={}) == (3, {})


@pytest.mark.parametrize(
    ("factory", "arguments", "options", "says"),
    [
        (
            Maker,
            (3, "x"),
            {"scael": 2, "power": 1},
            "policy.options do not fit policy.name = 'mine': .*'scael'.* Its options: scale, power",
        ),
        (Maker, (3, "x"), {}, "policy.options do not fit policy.name = 'mine': .*'power'"),
        (Maker, (3, "x"), {"seed": 2, "power": 1}, "policy.options do not fit policy.name = 'mine': .*'seed'"),
        (Maker, (3, "x"), {"scale": -1, "power": 1}, "cannot work with policy.name = 'mine': scale is -1; give a number >= 0"),
        (Maker, (3, "x"), {"scale": "two", "power": 1}, "policy.options = .*'two'.* cannot work with policy.name = 'mine'"),
        (anything, (3,), {"seed": 2}, "policy.options do not fit policy.name = 'mine'"),
        (of_type, (3,), {"count": 1.5}, "policy.options = {'count': 1.5} cannot work with policy.name = 'mine'"),
        (of_type, (3,), {"size": 1}, "Its options: count$"),
        (strict, (3,), {"size": 1}, "Its options: none$"),
        (strict, (3,), {}, "^unknown device tier 'phne'. Did you mean 'phone'\\?$"),
    ],
)
def test_options_that_do_not_fit_are_one_error(
    factory: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        construct("policy.name", "mine", factory, *arguments, options=options)
    assert "\n" not in str(caught.value)
