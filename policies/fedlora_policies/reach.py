"""Bytes and airtime until a policy is as good as the reference ends up: what it takes to get equally far, not how far it gets.

The level is, episode by episode, the loss (or accuracy) that the reference policy ends with. What counts is the first step after
which a policy is there, for the reference itself as well: measurements waver, and their luck is then the same for all. An
episode in which a policy never gets there counts with all that it used, and at least with what the reference used in all: it
must not look cheap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora_policies.rollout import Episodes
from fedlora_policies.statistics import Interval, bootstrap, difference

Floats = NDArray[np.float64]
SPENT = ("bytes", "latency_s")


@dataclass(frozen=True)
class Reach:
    """How a policy gets to where the reference ends.

    Attributes:
        share: Share of episodes that get there.
        spent: Mean bytes and latency_s until then.
        less: Mean paired differences of these to the reference's.
    """

    share: float
    spent: dict[str, Interval]
    less: dict[str, Interval]

    def plain(self) -> dict[str, Any]:
        """Return it as plain data."""
        spent, less = ({key: item.plain() for key, item in part.items()} for part in (self.spent, self.less))
        return {"share": self.share, "spent": spent, "less": less}


def reaches(played: dict[str, list[Episodes]], reference: str, draws: int, seed: int) -> dict[str, dict[str, Reach]]:
    """Return by label, then by what is measured ("loss", "accuracy"), how policies get to where the reference ends.

    A measure is left out unless every policy was measured by it after each step of each episode.

    Args:
        played: The runs of each policy, on the same episodes.
        reference: Label of the reference.
        draws: Bootstrap resamples.
        seed: Of the resampling.
    """
    found: dict[str, dict[str, Reach]] = {label: {} for label in played}
    for measure in ("loss", "accuracy"):
        if not all(_measured(run, measure) for runs in played.values() for run in runs):
            continue
        level = np.mean([run.final[measure] for run in played[reference]], axis=0)
        most = {key: np.mean([run.sums[key] for run in played[reference]], axis=0) for key in SPENT}
        spent = {label: [_spent(run, measure, level, most) for run in runs] for label, runs in played.items()}
        arrays = {label: {key: np.stack([one[key] for one in runs]) for key in runs[0]} for label, runs in spent.items()}
        for label, own in arrays.items():
            found[label][measure] = Reach(
                float(own["there"].mean()),
                {key: bootstrap(own[key], draws=draws, seed=seed) for key in SPENT},
                {key: difference(own[key], arrays[reference][key], draws=draws, seed=seed) for key in SPENT},
            )
    return found


def _measured(run: Episodes, measure: str) -> bool:
    return not (np.isnan(run.course[measure]) & ~np.isnan(run.course["bytes"])).any()


def _spent(run: Episodes, measure: str, level: Floats, most: dict[str, Floats]) -> dict[str, Floats]:
    """Return bytes and latency_s until each episode is at its level, and whether it gets there, `[E]` each."""
    sign = -1.0 if measure == "loss" else 1.0
    good = sign * run.course[measure] >= sign * level  # False where the episode is over
    there, first, episodes = good.any(axis=0), good.argmax(axis=0), np.arange(len(level))
    spent: dict[str, Floats] = {
        key: np.where(there, run.course[key][first, episodes], np.maximum(run.sums[key], most[key])) for key in SPENT
    }
    spent["there"] = np.asarray(there, np.float64)
    return spent
