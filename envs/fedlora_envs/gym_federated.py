"""The federated rank environment for Gymnasium; `fedlora_envs.gym_envs` registers it."""

from __future__ import annotations

from typing import Any

from fedlora.config import parse_section
from fedlora_envs.federated import FederatedConfig, FederatedRankAllocation
from fedlora_envs.gym_covers import RankAllocationEnv, RankAllocationVectorEnv


class FederatedRankAllocationEnv(RankAllocationEnv):
    """Federated rounds in a radio cell: one rank vector for each of K clients and round.

    ## Description
    K clients of a radio world train adapters and send them up before a deadline. What a client sends is bounded by the rank of
    each site; larger ranks move the global model more and take longer. What arrives in time moves it, what is late is lost, and
    an energy budget has to last for the whole episode. The policy sees what the strategy of `fedlora simulate` shows it.

    ## Action Space
    `MultiDiscrete`, K times the sites, client by client: action n is the rank n of that site, up to its cap. `action_masks()`
    gives the actions that fit each client's estimated budget while its other sites stay at 0.

    ## Observation Space
    `Box(-1, 1, (3 + 8 K + sites,), float32)`; names in order: `env.unwrapped.core.feature_names`.

    | Entries | Meaning | Min | Max |
    | --- | --- | --- | --- |
    | 1 | rounds done over the horizon | 0 | 1 |
    | 1 | energy left over the episode's budget (1: no budget) | 0 | 1 |
    | 1 | validation loss over that of the untrained model | 0 | 1 |
    | 8 per client | uplink SNR, uplink and downlink rate, age of the estimate, outage, computing time over the deadline, bytes \
that fit over the full adapter's, mean previous rank over the cap | -1 | 1 |
    | sites | worth of a site over that of the best one, as the server can tell | 0 | 1 |

    ## Rewards
    Decrease of the validation loss, minus `time_weight` times the round's time over the deadline, minus `energy_weight` times
    its energy over an even share of the budget.

    ## Starting State
    An untrained adapter; clients spread over the cell anew. `reset(seed=s)` starts the streams of s, `reset()` goes on to the
    next episode. Member i of a vector with seed s equals the single environment with seed s + i.

    ## Episode End
    Truncated after `horizon` rounds; terminated by the round that would take more energy than is left.

    ## Arguments
    Those of `fedlora_envs.federated.FederatedConfig`: world, clients, horizon, deadline_s, energy_budget_j, csi_delay and more.

    ```python
    import gymnasium, fedlora_envs.gym_envs
    env = gymnasium.make("fedlora/FederatedRankAllocation-v0", world="uma-macro", clients=8, deadline_s=5.0)
    ```

    `info` of a step: bits, latency_s, energy_j, paid_j (what the budget pays), cost (share of replies lost), utility, feasible
    (share of clients), delivered, loss, accuracy.

    ## Version History
    * v0: first version
    """

    def __init__(self, render_mode: str | None = None, **options: Any) -> None:
        self.render_mode = render_mode
        super().__init__(FederatedRankAllocation(parse_section(FederatedConfig, options), 1))


class FederatedRankAllocationVectorEnv(RankAllocationVectorEnv):
    """Many of `FederatedRankAllocationEnv` at once, in arrays (see there)."""

    def __init__(self, num_envs: int = 1, render_mode: str | None = None, **options: Any) -> None:
        self.render_mode = render_mode
        super().__init__(FederatedRankAllocation(parse_section(FederatedConfig, options), num_envs))
