"""The denoiser of airllm-plus: the same small network at every site, with a mean over sites as the only thing they share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedlora_policies.airllm.diffusion import sinusoids
from fedlora_policies.features import CLIENT_FEATURES, SITE_FEATURES


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes.

    Attributes:
        width: Hidden numbers per site.
        blocks: Residual blocks.
        time_width: Numbers of the embedding of the chain's step.
    """

    width: int = 64
    blocks: int = 2
    time_width: int = 32


class Denoiser(nn.Module):
    """Predicts the clean request behind a noisy one, given the state.

    The order of sites makes no difference but through their features, and there may be any number of them: the network is a
    function of each site, of the client, and of the mean over sites.

    Args:
        config: Sizes.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.site = nn.Linear(len(SITE_FEATURES) + 1, width)
        self.client = nn.Linear(len(CLIENT_FEATURES) + 1, width)
        self.time = nn.Linear(config.time_width, width)
        self.nothing = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(_Block(width) for _ in range(config.blocks))
        self.share = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, 1))
        self.total = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, noisy: Tensor, steps: Tensor, client: Tensor, sites: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Return the predicted clean requests, `[n, L + 1]`, not bounded.

        Args:
            noisy: Noisy requests, `[n, L + 1]`, the bytes last.
            steps: Their steps of the noise schedule, `[n]`.
            client: Client features, `[n, C]`.
            sites: Site features, `[n, L, F]`.
            hidden: Where the client features are hidden and the learned null token stands for them, `[n]`; None: nowhere.
        """
        about = self.client(torch.cat([client, noisy[:, -1:]], dim=1))
        if hidden is not None:
            about = torch.where(hidden[:, None], self.nothing, about)
        about = about + self.time(sinusoids(steps, self.config.time_width))
        state = self.site(torch.cat([sites, noisy[:, :-1, None]], dim=2)) + about[:, None]
        for block in self.blocks:
            state = block(state, about)
        total = self.total(state.mean(dim=1) + about)
        return torch.cat([self.share(state)[:, :, 0], total], dim=1)


class _Block(nn.Module):
    """Each site's state moves by what it is, and by the mean of all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.own = nn.Linear(width, width)
        self.shared = nn.Linear(2 * width, width)
        self.out = nn.Linear(width, width)

    def forward(self, state: Tensor, about: Tensor) -> Tensor:
        """Return the next state, `[n, L, width]`."""
        normed = self.norm(state)
        shared = self.shared(torch.cat([normed.mean(dim=1), about], dim=1))
        moved: Tensor = self.out(nn.functional.silu(self.own(normed) + shared[:, None]))
        return state + moved


class Critic(nn.Module):
    """Estimates what is still to be gained, from the client's features and a mean over sites.

    Args:
        width: Hidden numbers.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.site = nn.Sequential(nn.Linear(len(SITE_FEATURES), width), nn.SiLU())
        self.out = nn.Sequential(
            nn.Linear(width + len(CLIENT_FEATURES), width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )

    def forward(self, client: Tensor, sites: Tensor) -> Tensor:
        """Return values, `[n]`."""
        found: Tensor = self.out(torch.cat([self.site(sites).mean(dim=1), client], dim=1))
        return found[:, 0]
