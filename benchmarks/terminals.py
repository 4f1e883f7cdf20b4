"""User terminals around base stations, beside mobile-env: what a link costs, and what a step of an environment costs.

    python benchmarks/terminals.py                    about a minute, one thread

Links: the SNR and the Shannon rate of every terminal at every station, at the positions of mobile-env's three scenarios. Both
compute the same; the largest difference is printed.

Environments: K terminals that walk around one station, which serves them with equal shares of its time. mobile-env steps K Python
objects, fedlora's federated rank environment K rows of arrays, for one episode or many at once. Radio and geometry are those of
fedlora's world; replayed in mobile-env (a channel, a movement and a terminal of our own, as it provides for), SNRs and rates are
the same. Timed is each environment as it comes, with its own movement, observation and reward, so a step is not the same work:

* mobile-env also lets terminals connect and leave, checks their range, and computes a utility;
* fedlora's also times download, training and upload of each client, counts energy and drops, and moves a recorded global model.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

os.environ |= {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}

import gymnasium
import numpy as np
from macro_cell import BAND_HZ, BASE_HEIGHT_M, FC_GHZ, NOISE_FIGURE_DB, OPTIONS, POWER_DBM, SCENARIO, SIDE_M, USER_HEIGHT_M
from measure import compared, machine, save, span, table, timed
from numpy.typing import NDArray

import fedlora_envs.gym_envs  # noqa: F401 - registers the environments
from fedlora.streams import stream
from fedlora_envs.radio.budget import noise_dbm, snr_db
from fedlora_envs.radio.pathloss import path_loss_db
from fedlora_envs.radio.rates import shannon_bps

Floats = NDArray[np.float64]
Works = dict[str, Callable[[], Any]]
SCENARIOS = ("small", "medium", "large")
TERMINALS = (5, 30)
MEMBERS = 64
WINDOW_S = 0.2
TOLERANCE = 1e-6  # of dB, and of rates relatively


def our_links(users: Floats, stations: Floats) -> tuple[Floats, Floats]:
    """Return (SNR in dB, rate in bit/s with a whole station) of every user at every station, `[stations, users]`."""
    d2 = np.hypot(*(users[None] - stations[:, None]).transpose(2, 0, 1))
    loss = path_loss_db(SCENARIO, d2.ravel(), BASE_HEIGHT_M, USER_HEIGHT_M, FC_GHZ, np.zeros(d2.size, np.bool_)).reshape(d2.shape)
    snr = snr_db(POWER_DBM, 0.0, loss, noise_dbm(BAND_HZ, NOISE_FIGURE_DB), 0.0)
    return snr, np.asarray(shannon_bps(snr, BAND_HZ), np.float64)


def links(repeats: int) -> list[dict[str, Any]]:
    """Time all links of mobile-env's scenarios in both; return a row per scenario.

    Raises:
        RuntimeError: They do not compute the same.
    """
    import mobile_terminals as theirs

    rows = []
    for name in SCENARIOS:
        stations, users = theirs.places(name)
        env = theirs.environment(users, stations)
        ours, other = our_links(users, stations), theirs.links(env)
        check = {
            "snr_db": float(np.abs(ours[0] - other[0]).max()),
            "rate": float(np.abs(ours[1] / other[1] - 1).max()),
        }
        _same(f"links of '{name}'", check)
        works: Works = {"fedlora": partial(our_links, users, stations), "mobile-env": partial(theirs.links, env)}
        rows.append({"scenario": name, "stations": len(stations), "users": len(users), "check": check} | _per(works, 1, repeats))
    return rows


def environments(repeats: int, terminals: tuple[int, ...] = TERMINALS, members: int = MEMBERS) -> list[dict[str, Any]]:
    """Time steps of environments with K terminals; return a row per K, figures in seconds per terminal and step.

    Raises:
        RuntimeError: mobile-env sees other SNRs or rates than fedlora where the terminals walk the same way.
    """
    import mobile_terminals as theirs

    rows = []
    for count in terminals:
        check = replayed(count)
        _same(f"{count} terminals", check)
        station = np.array([[SIDE_M / 2, SIDE_M / 2]])
        env = theirs.environment(np.zeros((count, 2)), station, walk=True)
        single = gymnasium.make("fedlora/FederatedRankAllocation-v0", clients=count, **OPTIONS)
        vector = gymnasium.make_vec(
            "fedlora/FederatedRankAllocation-v0", members, vectorization_mode="vector_entry_point", clients=count, **OPTIONS
        )
        levels = np.asarray(single.action_space.nvec)  # type: ignore[attr-defined]
        actions = (stream(0, "benchmark.terminals").random((members, len(levels))) * levels).astype(np.int64)
        single.reset(seed=0)
        vector.reset(seed=0)
        works: Works = {
            "fedlora": partial(_step, single, actions[0]),
            f"fedlora, {members} at once": partial(vector.step, actions),
            "mobile-env": partial(theirs.step, env),
        }
        found = _per(works, count, repeats)
        found["seconds"][f"fedlora, {members} at once"] = [
            own / members for own in found["seconds"][f"fedlora, {members} at once"]
        ]
        rows.append({"terminals": count, "members": members, "check": check} | found)
    return rows


def replayed(count: int, steps: int = 20) -> dict[str, float]:
    """Let K terminals walk in fedlora's environment and replay their ways in mobile-env; return the largest differences.

    A station serves its terminals with equal shares of its time, so that each has 1/K of the rate that it would have alone.
    """
    import mobile_terminals as theirs

    env = gymnasium.make("fedlora/FederatedRankAllocation-v0", clients=count, **OPTIONS)
    env.reset(seed=0)
    core: Any = env.unwrapped.core  # type: ignore[attr-defined]
    ways, snrs, rates = [], [], []
    for _ in range(steps):
        measured = core.links.measured()
        ways.append(core.links.cell.walk.xy + SIDE_M / 2)
        snrs.append(measured[0])
        rates.append(core.links.expected(measured, count)[0] / count)
        env.step(np.zeros(env.action_space.shape or (), np.int64))
    found = theirs.replay(np.array(ways), np.array([[SIDE_M / 2, SIDE_M / 2]]))
    return {
        "snr_db": float(np.abs(np.array(snrs) - found[0]).max()),
        "rate": float(np.abs(np.array(rates) / found[1] - 1).max()),
    }


def _same(what: str, check: dict[str, float]) -> None:
    if not max(check.values()) <= TOLERANCE:
        raise RuntimeError(f"{what}: fedlora and mobile-env do not compute the same: they differ by {check}")


def _step(env: gymnasium.Env[Any, Any], action: NDArray[np.int64]) -> None:
    _, _, terminated, truncated, _ = env.step(action)
    if terminated or truncated:
        env.reset()


def _again(work: Callable[[], Any], count: int) -> None:
    for _ in range(count):
        work()


def _per(works: Works, share: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Return seconds of each work, one value per turn, divided by `share`; the works take turns."""
    calls = {name: max(1, round(WINDOW_S / min(timed(work)[0], timed(work)[0]))) for name, work in works.items()}
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            found[name].append(timed(partial(_again, work, calls[name]))[0] / calls[name] / share)
    return {"seconds": found}


def comparisons(link_rows: list[dict[str, Any]], env_rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the summary."""
    found = []
    for row in link_rows:
        count = row["stations"] * row["users"]
        work = f"SNR and rate of {row['users']} terminals at {row['stations']} stations"
        ours, theirs = ([count / own for own in row["seconds"][name]] for name in ("fedlora", "mobile-env"))
        found.append(compared("mobile-env", work, "links/s", ours, theirs, None, row["check"]))
    for row in env_rows:
        theirs = [1 / own for own in row["seconds"]["mobile-env"]]
        for name, seconds in row["seconds"].items():
            if name == "mobile-env":
                continue
            ours = [1 / own for own in seconds]
            work = f"environment of {row['terminals']} terminals{name.removeprefix('fedlora')}"
            found.append(compared("mobile-env", work, "terminal-steps/s", ours, theirs, None, row["check"]))
    return found


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the results as JSON")
    parser.add_argument("--repeats", type=int, default=7, help="measured repetitions (default 7)")
    options = parser.parse_args()
    print(machine() + f", numpy {np.__version__}\n", flush=True)
    if not find_spec("mobile_env"):
        why = "mobile-env is not installed (benchmarks/README.md)"
        print(f"nothing to compare with: {why}")
        save(options.out, {}, [], {"mobile-env": why})
        return
    link_rows, env_rows = links(options.repeats), environments(options.repeats)
    rows = comparisons(link_rows, env_rows)
    cells = [
        [row["work"], row["unit"], f"{median(row['ours']):,.0f}", f"{median(row['theirs']):,.0f}", span(row["times"], 1)]
        for row in rows
    ]
    print("Medians (smallest-largest).\n")
    print(table(["", "unit", "fedlora", "mobile-env", "fedlora is x times as fast"], cells))
    worst = {key: max(row["check"][key] for row in link_rows + env_rows) for key in ("snr_db", "rate")}
    print(f"\nAt the same places SNRs differ by at most {worst['snr_db']:.1e} dB, rates by {worst['rate']:.1e} of themselves.")
    save(options.out, {"links": link_rows, "environments": env_rows}, rows)


if __name__ == "__main__":
    main()
