"""Teachers under the control: nothing of what sites are worth is left in their decisions."""

from __future__ import annotations

import numpy as np

from fedlora_policies.features import Reader
from fedlora_policies.plus.policy import NAME
from fedlora_policies.plus.teachers import _misled, gather
from fedlora_policies.rollout import Stage
from rank_problem import RankProblem

ORACLE = {"oracle": {"price": [0.0], "share": [0.4], "backoff": [1.0]}}
SEEDS = np.arange(200, dtype=np.uint64)


def test_misled_oracles_know_what_fits_and_not_what_it_is_worth() -> None:
    setup = Stage(RankProblem(6, sites=5, cap=4)).setup(0)
    assert setup.truth is not None
    wrong = _misled(setup, np.random.default_rng(0)).truth
    assert wrong is not None
    for _ in range(3):
        true, found = setup.truth(), wrong()
        np.testing.assert_array_equal(found.budget_bytes, true.budget_bytes)
        for row, gains in zip(found.gains, true.gains, strict=True):
            # The same curves, each whole, on other sites.
            assert sorted(map(tuple, row)) == sorted(map(tuple, gains))
        assert not np.array_equal(found.gains, true.gains)


def test_lessons_of_the_control_favour_no_site() -> None:
    """Of sites of one size, an oracle that is told the truth sends the one that pays more; a misled one both alike."""
    stage = Stage(RankProblem(len(SEEDS), sites=5, cap=4, horizon=3))
    reader = Reader(stage.setup(0), NAME)
    gap = {}
    for name, rng in (("true", None), ("shuffled", np.random.default_rng(1))):
        requests = gather(stage, reader, SEEDS, teachers=ORACLE, shuffle=rng).requests.mean(dim=0)
        gap[name] = float(requests[[0, 1]].sum() - requests[[3, 4]].sum())
    assert gap["true"] > 0.3 and abs(gap["shuffled"]) < 0.1 * gap["true"], gap
