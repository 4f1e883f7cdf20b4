"""The readable reference of the clock: one SimPy process per client, written as one would tell it."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field

import simpy

from fedlora_envs.clock import TIE_S, RoundPlan, Status


@dataclass
class Story:
    """What became of one client."""

    status: Status | None = None
    finish_s: float = math.inf
    seconds: dict[str, float] = field(default_factory=lambda: {"downlink": 0.0, "compute": 0.0, "uplink": 0.0})
    phase: str = "downlink"
    since: float = 0.0
    bits_sent: float = 0.0


def client_processes(rates_bps: list[float], plan: RoundPlan) -> tuple[list[Story], float]:
    """Return (the story of each client, when the round closes) where each client has a fixed rate."""
    env = simpy.Environment()
    stories = [Story() for _ in range(plan.clients)]
    last = [0.0]
    for client, story in enumerate(stories):
        env.process(_client(env, story, last, plan, client, rates_bps[client]))
    env.run()
    missing = any(story.status is not Status.DONE for story in stories)
    duration = plan.deadline_s if missing and plan.deadline_s < math.inf else last[0]
    for story in stories:
        if story.status is None:  # it waits for what never comes
            story.status = Status.OUTAGE
            story.seconds[story.phase] = duration - story.since
    return stories, duration


def _client(
    env: simpy.Environment, story: Story, last: list[float], plan: RoundPlan, client: int, rate_bps: float
) -> Generator[simpy.Event, None, None]:
    bits, leaves = float(plan.bits_up[client]), float(plan.leave_s[client])
    upload_s = bits / rate_bps if rate_bps > 0 else math.inf
    phases = [
        ("downlink", float(plan.downlink_s[client]), 0.0, Status.DROPPED_DOWNLOAD),
        ("compute", float(plan.compute_s[client]), 0.0, Status.DROPPED_COMPUTE),
        ("uplink", upload_s, TIE_S, Status.DROPPED_UPLOAD),
    ]
    for phase, seconds, grace_s, dropped in phases:
        story.phase, story.since = phase, env.now
        if phase == "uplink":
            last[0] = max(last[0], env.now)
        work = _after(env, seconds)
        gone = _after(env, leaves + grace_s - env.now)
        closed = _after(env, plan.deadline_s + grace_s - env.now)
        yield work | gone | closed
        spent = min(env.now, leaves, plan.deadline_s) - story.since
        story.seconds[phase] = spent
        if phase == "uplink":
            story.bits_sent = bits if work.processed else (rate_bps * spent if spent > 0 else 0.0)
        if work.processed:
            continue
        last[0] = max(last[0], story.since + spent)
        if leaves < plan.deadline_s:
            story.status = dropped
        else:
            silent = phase == "uplink" and spent > 0 and story.bits_sent == 0
            never = phase == "downlink" and seconds == math.inf
            story.status = Status.OUTAGE if silent or never else Status.LATE
        return
    story.status = Status.DONE
    story.finish_s = min(env.now, leaves, plan.deadline_s)
    last[0] = max(last[0], story.finish_s)


def _after(env: simpy.Environment, seconds: float) -> simpy.Event:
    """Return what happens in `seconds`; never, if that is inf."""
    return env.timeout(max(0.0, seconds)) if seconds < math.inf else env.event()
