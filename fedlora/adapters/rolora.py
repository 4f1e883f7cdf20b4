"""RoLoRA: rounds take turns, B trains in odd ones and A in even ones (Chen et al. 2024, arXiv 2409.02346).

The half that stands still is the same for all clients of a round, so the mean of what they send is the mean of their updates.
It is not sent up. It does go down with the broadcast: a client that sat out needs it.
"""

from __future__ import annotations

import copy

from fedlora.adapters.base import ADAPTERS
from fedlora.adapters.lora import LoRA


class RoLoRA(LoRA):
    """LoRA of which one factor trains per round; B, which starts at zero, goes first, since A has no gradient before."""

    summary = "LoRA whose factors train in turns, B in odd rounds, A in even ones; averages exactly"
    trained = "B or A"
    source = "arXiv 2409.02346"
    averages_exactly = True
    default_aggregator = "mean"
    period = 2
    sliceable = False

    def check(self) -> None:
        super().check()
        self.turn = "B"

    @property
    def sent(self) -> tuple[str, ...]:
        return (self.turn,)

    def at(self, round_number: int) -> RoLoRA:
        turn = "AB"[round_number % 2]
        if turn == self.turn:
            return self
        other = copy.copy(self)
        other.turn = turn
        return other


ADAPTERS.add("rolora", RoLoRA, RoLoRA.summary)
