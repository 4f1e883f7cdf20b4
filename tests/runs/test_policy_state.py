"""What a policy remembers crosses a kill, and a policy that learns hears how its choice went."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from children import fedlora_command
from fedlora.federation.policy import POLICIES, Observation, PolicySetup, Ranks
from fedlora.registry import Entry
from fedlora.runs.checkpoint import list_checkpoints, load_checkpoint
from fedlora.runs.simulate import simulate
from runs_compared import assert_same_run
from tiny_run import Ground

RUN = ("rounds=4", "adapter.method=triplet", "output.keep_checkpoints=4")
KINDS = {
    "lyapunov": (*RUN, "policy.name=lyapunov", "policy.options.share=0.3"),
    "importance": (*RUN, "policy.name=importance", "policy.options.share=0.5"),
}


@pytest.mark.parametrize(("kind", "kept"), [("lyapunov", "queue"), ("importance", "smooth")])
def test_killed_and_resumed(ground: Ground, tmp_path: Path, kind: str, kept: str) -> None:
    arguments = ["simulate", *ground.overrides(*KINDS[kind])]
    assert fedlora_command([*arguments, "--out", "whole"], tmp_path).code == 0
    for event in range(30, 150, 10):  # how often a run touches the disk before round 2 is nobody's promise
        cut = tmp_path / f"cut-{event}"
        cut.mkdir()
        assert fedlora_command([*arguments, "--out", "run"], cut, kill_at=event).code == -signal.SIGKILL
        found = list_checkpoints(cut / "run" / "checkpoints")
        if found and (before := load_checkpoint(found[-1])).state.round >= 2:
            break
    assert before.state.round < 4 and (np.nan_to_num(before.policy[kept]) != 0).any()
    assert fedlora_command([*arguments, "--resume", "run"], cut).code == 0
    assert_same_run(cut / "run", tmp_path / "whole")


class Listener:
    """Sends the whole adapter, counts in a state what it hears, and keeps all of it."""

    heard: list[tuple[int, list[int], list[bool]]]

    def __init__(self, setup: PolicySetup) -> None:
        self.caps, self.count = setup.caps, np.zeros(setup.clients, np.int64)
        Listener.heard = []

    def choose(self, observation: Observation) -> Ranks:
        return np.tile(self.caps, (len(observation.clients), 1))

    def feedback(self, observation: Observation, ranks: Ranks, done: NDArray[np.bool_]) -> None:
        assert (ranks == self.caps).all()
        self.count[observation.clients] += done
        Listener.heard.append((observation.round, observation.clients.tolist(), done.tolist()))

    def state(self) -> dict[str, NDArray[Any]]:
        return {"count": self.count}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        self.count = state["count"].copy()


def test_feedback_says_whose_updates_counted(ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES._entries, "listener", Entry("listener", Listener, "", "tests"))
    late = ("world.name=umi-indoor", "world.options.deadline_s=0.02")
    result = simulate(ground.config(*RUN, *late, "policy.name=listener"), tmp_path / "run")
    last = load_checkpoint(list_checkpoints(result.folder / "checkpoints")[-1])
    assert [number for number, _, _ in Listener.heard] == [1, 2, 3, 4]
    dones = [flag for _, _, done in Listener.heard for flag in done]
    assert any(dones) and not all(dones)
    assert sum(dones) == last.policy["count"].sum()
    for row, (_, _, done) in zip(result.rounds[1:], Listener.heard, strict=True):
        assert row["clients_selected"] - row["clients_late"] - row["clients_dropped"] == sum(done)
