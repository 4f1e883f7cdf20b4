"""Names resolve to what was registered here or by an installed package, and a wrong name is answered with the nearest."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedlora.errors import ConfigError, UnknownNameError, suggest
from fedlora.registry import Registry


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
