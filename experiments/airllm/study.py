"""Does AirLLM as published learn? Its training loop beside the same loop with rewards that say nothing of the actions.

    python experiments/airllm/study.py

1. For every setting and seed the loop runs twice from the same random numbers: with its own rewards, and with each reward drawn
   from all true ones of the run so far. What only the first one does is learning; what both do is not.
2. The trained policy, weights frozen, then plays one episode on each of 50 channels that no run has seen (coarse action at its
   mean), beside the untrained policy and two rules.
3. How much the coarse action, PPO's only lever, moves the mean rank: 24 coarse actions crossed with 24 starting noises.

One environment and 15 steps an episode, as published; a bandwidth that loads the link as OPT-1.3B at rank 8 loads 100 MHz.

Runs lie in runs/airllm-study and are not repeated when they are there: a stopped study goes on where it was.
Writes results.json beside this file and prints the tables of README.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

import fedlora_envs.gym_envs  # noqa: F401 - makes the environment known
from fedlora.files import write_json
from fedlora.runs.environment import environment
from fedlora_envs.gym_covers import RankAllocationVectorEnv
from fedlora_policies.airllm.diffusion import DiffusionConfig, Refiner, sinusoids
from fedlora_policies.airllm.published import AirLLM
from fedlora_policies.learners import TEST_SEEDS
from fedlora_policies.rollout import play
from fedlora_policies.sb3_env import RankVecEnv
from fedlora_policies.statistics import bootstrap, rank_correlation

Floats = NDArray[np.float64]

HERE = Path(__file__).parent
RUNS = Path("runs/airllm-study")
BANDWIDTH_HZ = 1.043e6
EDGE = 50
"""Episodes at the beginning and at the end of a run that are averaged for "first" and "last"; half of a shorter run."""
GRID = 24
"""Coarse actions, and starting noises, of the variance table."""
NOISE_SEED = 77
"""Of the refiner's starting noise once training is over: the same for all runs, so that they are compared at equal noise."""
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
RULES = ("random-feasible", "greedy")


@dataclass(frozen=True)
class Setting:
    """One environment and decoding rule, and for how many episodes and seeds the budget of time lasts."""

    title: str
    levels_db: tuple[float, ...]
    decode: str
    episodes: int
    seeds: int = 5


SETTINGS = {
    "10dB": Setting("10 dB, as shipped", (10.0,), "floor", 500),
    "all": Setting("-5 to 15 dB in one run", (-5.0, 0.0, 5.0, 10.0, 15.0), "floor", 100),
    "-5dB": Setting("-5 dB", (-5.0,), "floor", 30, seeds=3),
    "10dB-round": Setting("10 dB, decoded by rounding", (10.0,), "round", 100, seeds=3),
}


class Ledger(RankVecEnv):
    """An environment that notes true rewards, and with `shuffle` hands out others: each drawn from all true ones so far.

    Args:
        env: The native vector environment.
        shuffle: Whether to.
        seed: Of the drawing.
    """

    def __init__(self, env: RankAllocationVectorEnv, shuffle: bool, seed: int) -> None:
        super().__init__(env, shuffle)
        self.true: list[float] = []
        self.rng = np.random.default_rng(seed)

    def _handed_out(self, reward: NDArray[np.float32]) -> NDArray[np.float32]:
        self.true.extend(reward.tolist())
        return super()._handed_out(reward)


def make_env(setting: Setting, count: int) -> RankAllocationVectorEnv:
    """Return `count` environments of a setting."""
    options: dict[str, Any] = {"task": "minilm-trec", "levels_db": list(setting.levels_db), "bandwidths_hz": [BANDWIDTH_HZ]}
    made = gymnasium.make_vec("fedlora/RemoteFineTuning-v0", count, vectorization_mode="vector_entry_point", **options)
    env = made.unwrapped
    assert isinstance(env, RankAllocationVectorEnv)
    return env


def make_method(setting: Setting, seed: int, shuffle: bool = False) -> tuple[AirLLM, Ledger]:
    """Return the untrained method and its environment."""
    ledger = Ledger(make_env(setting, 1), shuffle, seed)
    method = AirLLM(ledger, diffusion=DiffusionConfig(decode=setting.decode), seed=seed)
    hasten(method.refiner)
    return method, ledger


def hasten(refiner: Refiner) -> None:
    """Put in place of the refiner's sampler one that gives the same numbers to the last bit in less than half the time.

    Whatever depends on the time step alone is worked out once per version of the weights, and not again for each decision.
    """
    config, scheduler, denoiser = refiner.config, refiner.scheduler, refiner.denoiser
    scheduler.set_timesteps(config.sample_steps)
    times = [int(step) for step in scheduler.timesteps]
    stride, alphas = config.train_steps // config.sample_steps, scheduler.alphas_cumprod
    factors = []
    for step in times:
        now, then = alphas[step], alphas[step - stride] if step >= stride else scheduler.final_alpha_cumprod
        factors.append(((1 - now) ** 0.5, now**0.5, then**0.5, (1 - then) ** 0.5))
    embedded: dict[tuple[int, ...], list[torch.Tensor]] = {}

    def embeddings(rows: int) -> list[torch.Tensor]:
        version = (rows, *(parameter._version for parameter in denoiser.time.parameters()))
        if version not in embedded:
            embedded.clear()
            embedded[version] = [denoiser.time(sinusoids(torch.full((rows,), step), config.time_width)) for step in times]
        return embedded[version]

    def tail(hidden: torch.Tensor, layers: Any) -> torch.Tensor:
        norm, linear = layers[0], layers[2]
        normed = functional.layer_norm(hidden, (config.width,), norm.weight, norm.bias)
        return functional.linear(functional.mish(normed), linear.weight, linear.bias)

    @torch.no_grad()
    def sample(condition: NDArray[np.float32]) -> NDArray[np.float32]:
        given = torch.from_numpy(np.asarray(condition, np.float32))
        x = torch.randn(len(given), refiner.sites, generator=refiner.generator)
        both, inside = torch.cat([torch.zeros_like(given), given]), denoiser.inside
        for embedding, (spread, scale, next_scale, next_spread) in zip(embeddings(2 * len(given)), factors, strict=True):
            hidden = functional.linear(torch.cat([torch.cat([x, x]), both], 1), inside.weight, inside.bias) + embedding
            for block in denoiser.blocks:
                hidden = hidden + tail(hidden, block)
            free, held = tail(hidden, denoiser.out).chunk(2)
            noise = free + config.guidance * (held - free)
            clean = ((x - spread * noise) / scale).clamp(-1, 1)
            x = next_scale * clean + next_spread * noise
        return np.asarray(x.clamp(-1, 1).numpy())

    refiner.sample = sample  # type: ignore[method-assign]


def check(refiner: Refiner) -> None:
    """Stop where the fast sampler and the refiner's own differ, in one bit of one number."""
    state, coarse = refiner.generator.get_state(), np.linspace(-1, 1, 48, dtype=np.float32).reshape(3, 16)
    for rows in (coarse[:1], coarse):
        found = []
        for sampler in (refiner.sample, lambda given: Refiner.sample(refiner, given)):
            refiner.generator.manual_seed(NOISE_SEED)
            found.append(sampler(rows))
        assert np.array_equal(found[0], found[1]), "the fast sampler gives other numbers than the refiner's own"
    refiner.generator.set_state(state)


def cached(name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what `work` gives, from disk where it is there."""
    path = RUNS / f"{name}.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    path.parent.mkdir(parents=True, exist_ok=True)
    began, cpu = time.perf_counter(), time.process_time()
    outcome = work()
    outcome["seconds"], outcome["cpu_seconds"] = time.perf_counter() - began, time.process_time() - cpu
    write_json(path, outcome)
    print(f"{name}: {outcome['seconds']:.0f} s", flush=True)
    return outcome


def run(setting: Setting, seed: int, episodes: int, shuffle: bool) -> dict[str, Any]:
    """Train one method and measure it; without episodes: measure the untrained one."""
    method, ledger = make_method(setting, seed, shuffle)
    outcome: dict[str, Any] = {}
    check(method.refiner)
    if episodes:
        history = method.train(episodes)
        check(method.refiner)
        rewards = np.array(ledger.true).reshape(episodes, -1).mean(axis=1)
        outcome = {"reward": rewards.tolist(), "mean_rank": history.mean_rank, "feasible": history.feasible}
    return outcome | {"test": held_out(method, setting), "lever": lever(method, setting)}


def held_out(method: AirLLM, setting: Setting) -> dict[str, Any]:
    """Play one episode on each test channel with frozen weights."""
    env = make_env(setting, len(TEST_SEEDS))
    features, _ = env.reset(seed=TEST_SEEDS[0])
    method.refiner.generator.manual_seed(NOISE_SEED)
    returns, feasible = np.zeros(len(TEST_SEEDS)), []
    ranks_seen, snr_seen = [], []
    for _ in range(env.core.horizon):
        ranks = method.choose(features, deterministic=True)
        features, reward, _, _, info = env.step(ranks - method.refiner.codec.low)
        returns += reward
        feasible.append(info["feasible"])
        ranks_seen.append(ranks.mean(axis=1))
        snr_seen.append(info["snr_db"])
    mean_ranks, snr_db = np.concatenate(ranks_seen), np.concatenate(snr_seen)
    return {
        "returns": returns.tolist(),
        "feasible": float(np.mean(feasible)),
        "mean_rank": float(mean_ranks.mean()),
        "mean_rank_by_snr_db": {f"{level:g}": float(mean_ranks[snr_db == level].mean()) for level in setting.levels_db},
        "snr_correlation": rank_correlation(mean_ranks, snr_db),
    }


def lever(method: AirLLM, setting: Setting) -> dict[str, float]:
    """Return what share of the variance of the mean rank the coarse action explains, and the starting noise.

    Coarse actions are drawn from the policy, each in the first state of another test channel; all meet the same noises.
    """
    features, _ = make_env(setting, GRID).reset(seed=TEST_SEEDS[0])
    torch.manual_seed(NOISE_SEED)
    coarse = np.tanh(method.ppo.predict(features, deterministic=False)[0]).astype(np.float32)
    means = []
    for action in coarse:
        method.refiner.generator.manual_seed(NOISE_SEED)
        means.append(method.refiner.refine(np.repeat(action[None], GRID, axis=0)).mean(axis=1))
    table: Floats = np.array(means)
    whole = float(table.var())
    by_action, by_noise = float(table.mean(axis=1).var()) / whole, float(table.mean(axis=0).var()) / whole
    return {"coarse_action": by_action, "starting_noise": by_noise, "std": whole**0.5}


def rules(setting: Setting) -> dict[str, Any]:
    """Play the rules on the test channels."""
    seeds, found = np.array(TEST_SEEDS, np.uint64), {}
    for name in RULES:
        episodes = play(make_env(setting, len(seeds)).core, name, {}, seeds)
        found[name] = {
            "returns": episodes.returns.tolist(),
            "feasible": float(episodes.feasible.mean()),
            "mean_rank": float(episodes.mean_ranks.mean()),
        }
    return found


def interval(values: Floats) -> dict[str, Any]:
    """Return the mean of a number per seed, its 95 % bootstrap interval over seeds, Student's half width, and the numbers.

    Seeds are what is drawn: the 50 episodes of one training run are no 50 proofs. With five of them the bootstrap is too narrow,
    which Student's interval is not.
    """
    half = T95[len(values)] * float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) in T95 else None
    seeds = [round(float(value), 6) for value in values]
    return {**bootstrap(np.asarray(values, np.float64)[None]).plain(), "half_width_t": half, "seeds": seeds}


def summary(setting: Setting, seeds: list[int], runs: dict[str, list[dict[str, Any]]], ruled: dict[str, Any]) -> dict[str, Any]:
    """Return a setting's numbers over seeds. `runs` holds the kinds "true", "shuffled" and "untrained", a run per seed each."""
    result: dict[str, Any] = {"title": setting.title, "levels_db": setting.levels_db, "decode": setting.decode}
    episodes = len(runs["true"][0]["reward"])
    edge, change = min(EDGE, episodes // 2), {}
    result |= {"episodes": episodes, "edge": edge, "seeds": seeds, "training": {}, "test": {}}
    for kind in ("true", "shuffled"):
        training: dict[str, Any] = {"feasible": interval(np.array([np.mean(item["feasible"]) for item in runs[kind]]))}
        for key in ("mean_rank", "reward"):
            series = np.array([item[key] for item in runs[kind]])
            first, last = series[:, :edge].mean(axis=1), series[:, -edge:].mean(axis=1)
            training[key] = {"first": interval(first), "last": interval(last), "change": interval(last - first)}
            training[key]["by_part"] = series[:, : episodes // edge * edge].reshape(len(seeds), -1, edge).mean(axis=2).tolist()
            change[kind, key] = last - first
        result["training"][kind] = training
    for key in ("mean_rank", "reward"):
        result["training"][f"{key}_change_true_minus_shuffled"] = interval(change["true", key] - change["shuffled", key])
    returns = {kind: np.array([item["test"]["returns"] for item in items]) for kind, items in runs.items()}
    for kind, items in runs.items():
        result["test"][kind] = {
            "return": interval(returns[kind].mean(axis=1)),
            "feasible": interval(np.array([item["test"]["feasible"] for item in items])),
            "mean_rank": interval(np.array([item["test"]["mean_rank"] for item in items])),
            "mean_rank_by_snr_db": {
                f"{level:g}": float(np.mean([item["test"]["mean_rank_by_snr_db"][f"{level:g}"] for item in items]))
                for level in setting.levels_db
            },
            "snr_correlation": [item["test"]["snr_correlation"] for item in items],
            "share_of_coarse_action": interval(np.array([item["lever"]["coarse_action"] for item in items])),
            "share_of_starting_noise": interval(np.array([item["lever"]["starting_noise"] for item in items])),
        }
    for name in RULES:
        result["test"][name] = {key: float(np.mean(ruled[name][key])) for key in ("returns", "feasible", "mean_rank")}
    others = {"shuffled": returns["shuffled"], "untrained": returns["untrained"]}
    others |= {name: np.array(ruled[name]["returns"]) for name in RULES}
    result["test"]["true_minus"] = {name: interval((returns["true"] - other).mean(axis=1)) for name, other in others.items()}
    minutes = sum(item["cpu_seconds"] for items in runs.values() for item in items) / 60
    return result | {"cpu_minutes": minutes}


def text(found: dict[str, Any], digits: int = 3) -> str:
    """Return an interval for a table."""
    return f"{found['value']:.{digits}f} ({found['low']:.{digits}f} to {found['high']:.{digits}f})"


def contrast(found: dict[str, Any], digits: int = 3) -> str:
    """Return a difference for a table, with both intervals."""
    half = found["half_width_t"]
    return text(found, digits) + ("" if half is None else f", t ± {half:.{digits}f}")


def show(results: dict[str, dict[str, Any]]) -> None:
    """Print the tables of README.md."""
    print("\n| setting | reward | episodes | mean rank, first -> last | change | feasible | reward, first -> last |")
    print("| --- | --- | ---: | --- | --- | --- | --- |")
    for result in results.values():
        for kind in ("true", "shuffled"):
            found = result["training"][kind]
            rank, reward = found["mean_rank"], found["reward"]
            print(
                f"| {result['title']} | {kind} | {result['episodes']} "
                f"| {rank['first']['value']:.3f} -> {rank['last']['value']:.3f} | {text(rank['change'])} "
                f"| {found['feasible']['value']:.4f} | {reward['first']['value']:.3f} -> {reward['last']['value']:.3f} |"
            )
        gap = result["training"]["mean_rank_change_true_minus_shuffled"]
        gain = result["training"]["reward_change_true_minus_shuffled"]
        print(f"| {result['title']} | true - shuffled | | | {contrast(gap)} | | change: {contrast(gain, 4)} |")
    print("\n| setting | reward | mean rank by 50 episodes (half a run where that is shorter) |\n| --- | --- | --- |")
    for result in results.values():
        for kind in ("true", "shuffled"):
            parts = np.mean(result["training"][kind]["mean_rank"]["by_part"], axis=0)
            print(f"| {result['title']} | {kind} | {', '.join(f'{part:.2f}' for part in parts)} |")
    print("\n| setting | true - shuffled | true - untrained | true - random-feasible | true - greedy |")
    print("| --- | --- | --- | --- | --- |")
    for result in results.values():
        against = result["test"]["true_minus"]
        cells = [contrast(against[name]) for name in ("shuffled", "untrained", *RULES)]
        print(f"| {result['title']} | {' | '.join(cells)} |")
    print("\n| setting | policy | return | feasible | mean rank | by SNR | share of coarse action | of starting noise |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for result in results.values():
        for kind in ("true", "shuffled", "untrained"):
            found = result["test"][kind]
            levels = ", ".join(f"{rank:.2f}" for rank in found["mean_rank_by_snr_db"].values())
            print(
                f"| {result['title']} | {kind} | {text(found['return'])} | {found['feasible']['value']:.4f} "
                f"| {found['mean_rank']['value']:.3f} | {levels} | {text(found['share_of_coarse_action'])} "
                f"| {found['share_of_starting_noise']['value']:.3f} |"
            )
        for name in RULES:
            found = result["test"][name]
            row = f"| {found['returns']:.3f} | {found['feasible']:.4f} | {found['mean_rank']:.3f} | | | |"
            print(f"| {result['title']} | {name} {row}")


def main() -> None:
    """Train, measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", help="default: from 0 on, as many as the setting has")
    parser.add_argument("--episodes", type=int, help="of every setting, at least 2; default: each setting's own")
    parser.add_argument("--output", type=Path, default=HERE / "results.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, dict[str, Any]] = {}
    for key in arguments.settings:
        setting = SETTINGS[key]
        count, seeds = arguments.episodes or setting.episodes, arguments.seeds or list(range(setting.seeds))
        runs: dict[str, list[dict[str, Any]]] = {"untrained": [], "true": [], "shuffled": []}
        for seed in seeds:
            for kind, found in runs.items():
                episodes = 0 if kind == "untrained" else count
                work = partial(run, setting, seed, episodes, kind == "shuffled")
                found.append(cached(f"{key}-{kind}-episodes{episodes}-seed{seed}", work))
        results[key] = summary(setting, seeds, runs, rules(setting))
        write_json(arguments.output, {"environment": environment(), "settings": results})
    show(results)


if __name__ == "__main__":
    main()
