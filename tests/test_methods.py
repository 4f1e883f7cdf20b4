"""`method = "..."`: what it sets, what it refuses, and the ranks that equal budgets buy."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fedlora.adapters import ADAPTERS
from fedlora.aggregation import AGGREGATORS
from fedlora.config import AdapterConfig, RunConfig, load_config, parse_config
from fedlora.errors import ConfigError, UnknownNameError
from fedlora.methods import METHODS, rank_for_budget
from fedlora.sites import Site

ALL = [
    "fed-sb",
    "fedex-lora",
    "fedit",
    "fedsa-lora",
    "ffa-lora",
    "flexlora",
    "flora",
    "full",
    "hetlora",
    "lora-fair",
    "ravan",
    "rolora",
]


def test_every_method_of_the_comparison_is_there() -> None:
    assert METHODS.names() == ALL


@pytest.mark.parametrize("name", ALL)
def test_a_method_is_an_adapter_and_a_rule_that_fits_it(name: str) -> None:
    method = METHODS.get(name)
    adapter = ADAPTERS.get(method.adapter)(Site("q", 12, 20), AdapterConfig(method=method.adapter, rank=3, heads=2), 0, 0)
    rule = AGGREGATORS.get(method.aggregator)([adapter])
    assert all((method.summary, method.trained, method.up, method.down, method.exact, method.mixed_ranks, method.source))
    assert (method.exact == "yes" or method.exact.startswith("yes,")) == rule.exact.startswith("yes")
    assert rule.mixed_ranks == (not method.mixed_ranks.startswith("no"))
    config = load_config(overrides=[f"method={name}"])
    assert (config.method, config.adapter.method, config.aggregator.method) == (name, method.adapter, method.aggregator)
    assert config.wire.downlink == method.sets.get("wire.downlink", "broadcast")
    assert rule.sliced_downlink or config.wire.downlink == "broadcast"


@pytest.mark.parametrize("name", ALL)
def test_a_stored_run_file_reads_back_the_same(name: str) -> None:
    config = load_config(overrides=[f"method={name}", "adapter.rank=4"])
    assert parse_config(tomllib.loads(config.to_toml())) == config
    assert load_config(overrides=[f"method={name}"], base=config.model_dump(exclude_none=True)) == config


def test_files_without_a_method_are_what_they_were() -> None:
    assert RunConfig().method == "" and load_config().adapter.method == "ravan"
    assert load_config(overrides=["adapter.method=lora", "aggregator.method=stack"]).method == ""


def test_further_keys_are_the_users_to_choose(tmp_path: Path) -> None:
    config = load_config(overrides=["method=flexlora", "wire.downlink=broadcast"])
    assert (config.adapter.method, config.wire.downlink) == ("lora", "broadcast")
    file = tmp_path / "run.toml"
    file.write_text('[adapter]\nmethod = "ravan"\nrank = 5\n[aggregator]\nweighting = "uniform"\n', encoding="utf-8")
    later = load_config(file, ["method=fedit"])  # the later word counts
    assert (later.adapter.method, later.adapter.rank, later.aggregator.weighting) == ("lora", 5, "uniform")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('method = "fedti"', "unknown method 'fedti'. Did you mean 'fedit'?"),
        (
            'method = "fedit"\nadapter.method = "ravan"',
            "method = 'fedit' sets adapter.method = 'lora', and the run file asks for 'ravan'. Leave out adapter.method, or",
        ),
        (
            'method = "ravan"\naggregator.method = "stack"',
            "method = 'ravan' sets aggregator.method = 'ravan', and the run file asks for 'stack'. Leave out aggregator.method",
        ),
        ('method = "fedit"\nadapter = 3', "adapter = 3: this is a section of keys. Write adapter.method=VALUE"),
        ("method = 3", "unknown method '3'. Known: fed-sb"),
    ],
)
def test_a_contradiction_is_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(caught.value).startswith(message)


def test_the_methods_cost_no_heavy_import() -> None:
    code = "import sys, fedlora.methods; print(sorted({'torch', 'transformers', 'flwr', 'numpy'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# -- equal budgets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "ranks"),
    [
        (49_152, {"fedit": 32, "fedex-lora": 32, "ffa-lora": 64, "fed-sb": 221, "ravan": 110}),
        (98_304, {"fedit": 64, "fedex-lora": 64, "ffa-lora": 128, "fed-sb": 313, "ravan": 156}),
    ],
)
def test_equal_budgets_give_the_papers_ranks(numbers: int, ranks: dict[str, int]) -> None:
    """arXiv 2506.05568, Table 10: d = 768, four heads."""
    assert {method: rank_for_budget(method, numbers, 768, 768) for method in ranks} == ranks


@pytest.mark.parametrize("name", [name for name in ADAPTERS.names() if name != "full"])
@pytest.mark.parametrize(("out", "width"), [(12, 12), (20, 12), (12, 20)])
def test_a_budget_buys_the_largest_rank_that_it_pays_for(name: str, out: int, width: int) -> None:
    def trained(rank: int) -> int:
        config = AdapterConfig(method=name, rank=rank, heads=2)
        adapter = ADAPTERS.get(name)(Site("q", width, out), config, 0, 0)
        return adapter.trainable - (2 if name == "ravan" else 0)  # its scales are not counted

    for numbers in range(60, 400, 17):
        rank = rank_for_budget(name, numbers, out, width, heads=2)
        assert trained(rank) <= numbers
        assert rank == 12 or trained(rank + 1) > numbers


@pytest.mark.parametrize(
    ("method", "numbers", "message"),
    [
        ("ravan", 3, "a budget of 3 numbers is too small for one number in each of its 4 heads of 'ravan': it takes at least 4"),
        ("fedit", 1535, "a budget of 1535 numbers is too small for rank 1 of 'fedit': it takes at least 1536"),
        ("fed-sb", 0, "a budget of 0 numbers is too small for rank 1 of 'fed-sb': it takes at least 1"),
        ("full", 10**6, "method 'full' has no rank that a budget could choose. Known: lora"),
    ],
)
def test_a_budget_that_buys_nothing_says_what_it_takes(method: str, numbers: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rank_for_budget(method, numbers, 768, 768)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("heads", [0, -1])
def test_a_budget_for_no_heads_is_refused(heads: int) -> None:
    with pytest.raises(ConfigError, match=f"^heads = {heads} trains nothing; ravan has at least 1 head$"):
        rank_for_budget("ravan", 10_000, 768, 768, heads=heads)


def test_a_budget_for_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"^unknown method or adapter 'ravn'\. Did you mean 'ravan'\?$"):
        rank_for_budget("ravn", 10_000, 768, 768)
