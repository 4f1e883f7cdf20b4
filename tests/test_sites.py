"""Site discovery: what each pattern picks, in which order, on the architectures that name things differently."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from fedlora.errors import ModelError
from fedlora.sites import Site, find_sites
from tiny import TEXT, tiny_text_model

# Last parts of the names that "auto" has to find in one block, in module order (OPT lists the value before the query).
AUTO = {
    "bert": ["query", "value"],
    "roberta": ["query", "value"],
    "distilbert": ["q_lin", "v_lin"],
    "deberta": ["query_proj", "value_proj"],
    "modernbert": ["Wqkv"],
    "gpt2": ["c_attn"],
    "llama": ["q_proj", "v_proj"],
    "opt": ["v_proj", "q_proj"],
    "gpt-neox": ["query_key_value"],
    "phi3": ["qkv_proj"],
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    return load(tmp_path_factory.mktemp("bert"), "bert")


def load(folder: Path, architecture: str) -> nn.Module:
    return transformers.AutoModelForSequenceClassification.from_pretrained(tiny_text_model(folder, architecture))


def names(sites: list[Site]) -> list[str]:
    return [site.name for site in sites]


@pytest.mark.parametrize("architecture", AUTO)
def test_auto_finds_query_and_value_of_every_block_in_order(architecture: str, tmp_path: Path) -> None:
    model = load(tmp_path, architecture)
    sites = find_sites(model)
    assert [site.name.rpartition(".")[2] for site in sites] == 2 * AUTO[architecture]
    order = [name for name, _ in model.named_modules()]
    assert names(sites) == sorted(names(sites), key=order.index)
    for site in sites:
        weight = model.get_submodule(site.name).weight
        assert (site.in_features, site.out_features) == (tuple(weight.shape) if site.transposed else tuple(weight.shape[::-1]))
        assert site.transposed == (architecture == "gpt2")


def test_auto_has_an_expectation_for_every_tiny_architecture() -> None:
    assert {*AUTO, "t5"} == set(TEXT)


def test_auto_takes_all_attention_of_an_encoder_decoder(tmp_path: Path) -> None:
    found = names(find_sites(load(tmp_path, "t5")))
    kinds = {tuple(name.split(".")[i] for i in (1, -2, -1)) for name in found}
    assert kinds == {
        (side, attention, projection)
        for side, attention in (("encoder", "SelfAttention"), ("decoder", "SelfAttention"), ("decoder", "EncDecAttention"))
        for projection in "qv"
    }
    assert len(found) == 12  # two blocks of each


def test_shapes_of_grouped_query_attention_and_of_a_transposed_projection(tmp_path: Path) -> None:
    query, value = find_sites(load(tmp_path / "llama", "llama"))[:2]
    assert (query.in_features, query.out_features) == (32, 32)
    assert (value.in_features, value.out_features) == (32, 16)  # two of four heads
    assert find_sites(load(tmp_path / "gpt2", "gpt2"))[0] == Site("transformer.h.0.attn.c_attn", 32, 96, transposed=True)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("query", ["layer.0.attention.self.query", "layer.1.attention.self.query"]),
        ("attention.output.dense", ["layer.0.attention.output.dense", "layer.1.attention.output.dense"]),
        ("bert.encoder.layer.1.attention.self.key", ["layer.1.attention.self.key"]),
        ("*.layer.0.*.query", ["layer.0.attention.self.query"]),
        ("*.layer.[1].intermediate.*", ["layer.1.intermediate.dense"]),
        (
            r"re:.*layer\.\d+\.attention\.self\.(key|value)",
            [f"layer.{i}.attention.self.{n}" for i in (0, 1) for n in ("key", "value")],
        ),
    ],
)
def test_patterns(bert: nn.Module, pattern: str, expected: list[str]) -> None:
    assert names(find_sites(bert, [pattern])) == [f"bert.encoder.{end}" for end in expected]


def test_several_patterns_give_each_site_once_in_module_order(bert: nn.Module) -> None:
    both = names(find_sites(bert, ["value", "auto", "key"]))
    assert both == [f"bert.encoder.layer.{i}.attention.self.{n}" for i in (0, 1) for n in ("query", "key", "value")]


def test_a_word_does_not_match_a_part_of_a_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'proj' in adapter.targets matches no projection"):
        find_sites(load(tmp_path, "llama"), ["proj"])


def test_a_regular_expression_has_to_match_the_whole_name(bert: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"'re:query' in adapter.targets matches no projection"):
        find_sites(bert, ["re:query"])


def test_excluded_modules_are_no_sites(bert: nn.Module) -> None:
    assert "classifier" in names(find_sites(bert, ["*"]))
    assert "classifier" not in names(find_sites(bert, ["*"], exclude=("classifier",)))
    inside = names(find_sites(bert, ["*"], exclude=("bert.encoder.layer.1", "bert.encoder.layer")))
    assert inside == ["bert.pooler.dense", "classifier"]


def test_every_pattern_has_to_match_and_the_message_names_the_nearest(bert: nn.Module) -> None:
    with pytest.raises(ModelError) as caught:
        find_sites(bert, ["value", "self.qeury"], exclude=("classifier",))
    message = str(caught.value)
    assert message.startswith("'self.qeury' in adapter.targets matches no projection of this model")
    assert "end in: query, key, value, dense " in message
    assert "classifier" not in message


def test_auto_says_what_there_is_where_it_knows_no_name() -> None:
    model = nn.Sequential()
    model.add_module("mixing", nn.Linear(4, 4))
    with pytest.raises(ModelError, match=r"'auto' in adapter.targets finds no attention projection by a name it knows.*mixing"):
        find_sites(model)


def test_a_pattern_for_the_head_alone_is_explained(bert: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"'classifier' in adapter.targets matches only the task head"):
        find_sites(bert, ["classifier"], exclude=("classifier",))


@pytest.mark.parametrize("targets", [(), "query"])
def test_targets_have_to_be_a_list_with_something_in_it(bert: nn.Module, targets: tuple[str, ...] | str) -> None:
    with pytest.raises(ModelError, match="names nothing to adapt"):
        find_sites(bert, targets)


def test_a_broken_regular_expression_is_named(bert: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"'re:\(' in adapter.targets is not a valid regular expression"):
        find_sites(bert, ["re:("])


def test_a_model_without_projections_is_refused() -> None:
    with pytest.raises(ModelError, match="has no linear projections"):
        find_sites(nn.Sequential(nn.ReLU()), ["query"])


def test_the_output_of_torch_attention_is_never_called_and_so_no_site() -> None:
    attention = nn.MultiheadAttention(8, 2)
    calls = []
    attention.out_proj.register_forward_hook(lambda *_: calls.append(1))
    attention(*[torch.zeros(3, 1, 8)] * 3)
    assert not calls
    with pytest.raises(ModelError):
        find_sites(attention, ["out_proj"])
