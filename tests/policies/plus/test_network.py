"""The denoiser: one network at every site, any number of them in any order, and a null token for who is not to be known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedlora_policies.features import CLIENT_FEATURES, SITE_FEATURES
from fedlora_policies.plus.network import Critic, Denoiser, NetworkConfig

ROWS, SITES = 5, 7


def denoiser() -> Denoiser:
    """Return one whose null token is not zero either, as after training."""
    torch.manual_seed(1)
    made = Denoiser(NetworkConfig(width=16, blocks=2, time_width=8))
    torch.nn.init.normal_(made.nothing)
    return made


def inputs(sites: int = SITES, rows: int = ROWS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return noisy requests, steps, client features and site features."""
    torch.manual_seed(2)
    client, site = torch.randn(rows, len(CLIENT_FEATURES)), torch.randn(rows, sites, len(SITE_FEATURES))
    return torch.randn(rows, sites + 1), torch.arange(rows) * 11, client, site


@torch.no_grad()
def test_another_order_of_sites_gives_another_order_of_shares() -> None:
    net, (noisy, steps, client, sites) = denoiser(), inputs()
    found = net(noisy, steps, client, sites)
    order = torch.arange(SITES).roll(3)
    turned = net(torch.cat([noisy[:, order], noisy[:, -1:]], dim=1), steps, client, sites[:, order])
    torch.testing.assert_close(turned, torch.cat([found[:, order], found[:, -1:]], dim=1), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(turned[:, :-1], found[:, :-1], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 3, 60])
def test_any_number_of_sites(count: int) -> None:
    """And only their mean counts: each of them twice changes nothing."""
    net, (noisy, steps, client, sites) = denoiser(), inputs(count)
    found = net(noisy, steps, client, sites)
    assert found.shape == (ROWS, count + 1)
    twice = net(torch.cat([noisy[:, :-1].repeat(1, 2), noisy[:, -1:]], dim=1), steps, client, sites.repeat(1, 2, 1))
    torch.testing.assert_close(twice, torch.cat([found[:, :-1].repeat(1, 2), found[:, -1:]], dim=1), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_rows_are_apart_and_everything_given_counts() -> None:
    net, given = denoiser(), inputs()
    found = net(*given)
    torch.testing.assert_close(net(*(item[2:3] for item in given)), found[2:3], rtol=1e-4, atol=1e-6)
    for part in range(4):
        changed = [item.clone() for item in given]
        changed[part][1] += 5
        moved = net(*changed)
        assert not torch.allclose(moved[1], found[1], atol=1e-3), part
        torch.testing.assert_close(moved[[0, 2]], found[[0, 2]], rtol=1e-4, atol=1e-6)
    other = given[3].clone()
    other[:, 0] += 5
    assert not torch.allclose(net(*given[:3], other)[:, 1:], found[:, 1:], atol=1e-3)  # one site moves the others' shares


@torch.no_grad()
def test_the_null_token_hides_the_client() -> None:
    net, (noisy, steps, client, sites) = denoiser(), inputs()
    hidden = torch.tensor([True, False, True, False, True])
    found = net(noisy, steps, client, sites, hidden)
    moved = net(noisy, steps, client + 3.0, sites, hidden)
    assert torch.equal(found[hidden], moved[hidden])
    assert not torch.isclose(found[~hidden], moved[~hidden], atol=1e-4).all(dim=1).any()
    torch.testing.assert_close(found[~hidden], net(noisy, steps, client, sites)[~hidden])
    torch.nn.init.normal_(net.nothing)
    assert not torch.isclose(found[hidden], net(noisy, steps, client, sites, hidden)[hidden], atol=1e-4).all(dim=1).any()


def test_the_null_token_learns() -> None:
    net, (noisy, steps, client, sites) = denoiser(), inputs()
    net(noisy, steps, client, sites, torch.ones(ROWS, dtype=torch.bool)).sum().backward()
    assert net.nothing.grad is not None and net.nothing.grad.abs().sum() > 0
    assert net.client.weight.grad is not None and not net.client.weight.grad.any()


@torch.no_grad()
def test_the_critic_knows_no_order_either() -> None:
    critic, (_, _, client, sites) = Critic(16), inputs()
    found = critic(client, sites)
    assert found.shape == (ROWS,)
    torch.testing.assert_close(critic(client, sites.flip(1)), found, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(critic(client + 1, sites), found, atol=1e-4)
    assert not torch.allclose(critic(client, sites + 1), found, atol=1e-4)
