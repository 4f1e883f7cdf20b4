"""The recorded task: the fit finds what made the records, the arrays obey the contract, and a bad artefact is one error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from fedlora.errors import ConfigError
from fedlora_envs.tasks.fitting import fit
from fedlora_envs.tasks.recorded import RecordedTask, load_recorded
from fedlora_envs.tasks.recording import Records, random_ranks
from fedlora_envs.tasks.response import Response, component_worth, find, load, shipped

SITES, CAP, HORIZON = 4, 4, 12
TRUE: dict[str, Any] = {
    "sites": [f"block.{site}" for site in range(SITES)], "caps": [CAP] * SITES, "numbers": [65, 65, 129, 129], "untrained": 1.8,
    "plateau": 1.6, "floor": 0.4, "settle": 1.0, "weights": [0.002, 0.004, 0.008, 0.016], "curve": 2.0, "head": 0.02,
    "shape": 2.0, "cut": 0.1, "batch_std": 0.0, "pace_std": 0.0, "text_mean": [0.8, 0.5, 0.1], "text_std": [0.02, 0.03, 0.04],
    "text_weights": [0.0, 0.0, 0.0], "knots_loss": [0.3, 0.6, 1.7], "knots_accuracy": [0.9, 0.8, 0.2],
    "energy": [1.0, 2.0, 4.0, 8.0], "energy_std": 0.0,
}  # fmt: skip


def response(**changes: Any) -> Response:
    return Response(**{**TRUE, **changes})


def task(episodes: int, seed: int = 0, **changes: Any) -> RecordedTask:
    made = RecordedTask(response(**changes), episodes)
    begin(made, seed)
    return made


def begin(made: RecordedTask, seed: int = 0, fresh: bool = True) -> None:
    count = made.episodes
    made.begin(np.ones(count, np.bool_), np.full(count, seed, np.uint64), np.arange(count), fresh)


def every(made: RecordedTask) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.ones(made.episodes, np.bool_)


def uniform(made: RecordedTask, *levels: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.repeat(np.array(levels)[:, None], len(made.sites), axis=1)


def records_of(episodes: int, **changes: Any) -> Records:
    """Play episodes of a known response at the ranks that a recording draws, and write them down."""
    made = task(episodes, **changes)
    pairs = [random_ranks(made.sites, HORIZON, 0, episode) for episode in range(episodes)]
    ranks, measured = (np.stack([pair[part] for pair in pairs]) for part in (0, 1))
    columns: dict[str, list[Any]] = {name: [] for name in ("batch_loss", "text", "loss", "accuracy", "gains")}
    for step in range(HORIZON):
        columns["text"].append(made.text())
        columns["batch_loss"].append(made.train(ranks[:, step], every(made)))
        loss, accuracy = made.measure(measured[:, step])
        columns["loss"].append(loss)
        columns["accuracy"].append(accuracy)
        columns["gains"].append(made.gains())
    header = {name: TRUE[name] for name in ("sites", "caps", "numbers")}
    header |= {"untrained_loss": TRUE["untrained"], "run": {}, "seed": 0, "horizon": HORIZON, "local_steps": 5, "heldout": 64}
    return Records(header, ranks=ranks, measured=measured, **{name: np.stack(own, axis=1) for name, own in columns.items()})


# -- fit ----------------------------------------------------------------------------------------------------------------------


def test_the_fit_finds_what_made_the_records() -> None:
    found = fit(records_of(32))
    assert found.errors["loss_rmse"] < 0.01 and found.errors["loss_r2"] > 0.999
    assert found.weights == pytest.approx(TRUE["weights"], rel=0.25)
    for name, tolerance in {"floor": 0.05, "plateau": 0.05, "shape": 0.1, "curve": 0.25, "head": 0.15, "cut": 0.25}.items():
        assert getattr(found, name) == pytest.approx(TRUE[name], rel=tolerance), name
    assert found.pace_std < 0.05 and found.batch_std < 0.01 and found.text_weights == [0.0, 0.0, 0.0]
    assert found.energy == pytest.approx(TRUE["energy"], rel=0.05)
    loss = np.linspace(found.knots_loss[0], found.knots_loss[-1], 20)
    assert np.abs(found.accuracy(loss) - response().accuracy(loss)).max() < 0.05


def test_the_fit_finds_noise_and_text() -> None:
    noisy = records_of(48, pace_std=0.3, batch_std=0.05, text_weights=[0.08, 0.0, -0.05])
    found = fit(noisy)
    assert np.abs(np.log2(np.array(found.weights) / TRUE["weights"])).max() < 1.0
    assert spearmanr(found.weights, TRUE["weights"]).statistic == pytest.approx(1.0)
    assert found.pace_std == pytest.approx(0.3, abs=0.12)
    assert found.text_weights == pytest.approx([0.08, 0.0, -0.05], abs=0.02)
    assert found.text_mean == pytest.approx(TRUE["text_mean"], abs=0.01)
    assert fit(records_of(48, energy_std=0.5)).energy_std == pytest.approx(0.5, abs=0.1)
    assert 0.5 < found.errors["loss_r2"] < 0.99


def test_the_error_is_of_episodes_that_were_not_fitted() -> None:
    """Losses that have nothing to do with ranks cannot be predicted, whatever the fit makes of them."""
    honest = records_of(16)
    noise = np.random.default_rng(0).uniform(0.5, 1.6, (16, 1)) + np.zeros((16, HORIZON))
    made_up = Records(**{**vars(honest), "loss": noise, "batch_loss": noise})
    assert fit(made_up).errors["loss_r2"] < 0.1
    with pytest.raises(ConfigError, match="3 recorded episodes are too few"):
        fit(honest.take(slice(3)))


def test_ranks_are_drawn_over_the_whole_range() -> None:
    sites = response().where
    drawn = np.stack([random_ranks(sites, HORIZON, 0, episode)[0] for episode in range(60)])
    assert (np.bincount(drawn.ravel(), minlength=CAP + 1) > 0.1 * drawn.size).all()
    spread = drawn.max(axis=2) == drawn.min(axis=2)
    assert 0.2 < spread.mean() < 0.5  # all sites alike
    assert 0.2 < (drawn == drawn[:, :1]).all(axis=(1, 2)).mean() < 0.5  # the same in every step
    again, measured = random_ranks(sites, HORIZON, 0, 7)
    assert np.array_equal(again, drawn[7]) and np.array_equal(measured[::2], again[::2])


# -- the task -----------------------------------------------------------------------------------------------------------------


def test_a_member_of_many_is_the_same_alone() -> None:
    noise = {"pace_std": 0.3, "batch_std": 0.1, "energy_std": 0.5, "text_weights": [0.1, 0.0, 0.0]}
    together = RecordedTask(response(**noise), 5)
    seeds, numbers = np.array([3, 1, 4, 1, 5], np.uint64), np.array([0, 0, 2, 1, 0])
    together.begin(np.ones(5, np.bool_), seeds, numbers, True)
    ranks = np.random.default_rng(0).integers(0, CAP + 1, (6, 5, SITES))
    which = np.random.default_rng(1).random((6, 5)) < 0.7
    kept = [
        (together.text(), together.train(own, chosen), *together.measure(own), together.gains(), together.worth())
        for own, chosen in zip(ranks, which, strict=True)
    ]
    for episode in range(5):
        alone = RecordedTask(response(**noise), 1)
        alone.begin(np.ones(1, np.bool_), seeds[[episode]], numbers[[episode]], True)
        for step in range(6):
            own = ranks[step, [episode]]
            found = (alone.text(), alone.train(own, which[step, [episode]]), *alone.measure(own), alone.gains(), alone.worth())
            for left, right in zip(found, kept[step], strict=True):
                assert np.allclose(left[0], right[episode], rtol=1e-6, equal_nan=True)
    assert len(np.unique(kept[-1][2])) == 5


def test_the_formula_by_hand() -> None:
    """Site weights w at rank 4 for two steps, then 1 of 4 components left: worth times 2^2 of these, less the cut of the rest."""
    made = task(1)
    for _ in range(2):
        made.train(uniform(made, 4), every(made))
    worth = component_worth(np.array(TRUE["weights"]), 2.0, np.full(SITES, CAP))
    assert worth.sum(axis=1) == pytest.approx(TRUE["weights"])
    assert worth[0, 0] / TRUE["weights"][0] == pytest.approx((1 - np.exp(-0.5)) / (1 - np.exp(-2)))
    left, total = 4 * worth[:, 0].sum(), 4 * worth.sum()
    progress = 0.02 * 2 + left - 0.1 * (total - left)
    wanted = 0.4 + 1.2 / np.sqrt(1 + progress**2 / 0.5) + 0.2 * np.exp(-2.0)
    loss, accuracy = made.measure(uniform(made, 1))
    assert loss[0] == pytest.approx(wanted) and accuracy[0] == pytest.approx(np.interp(wanted, [0.3, 0.6, 1.7], [0.9, 0.8, 0.2]))


def test_higher_ranks_learn_faster_and_cuts_cost() -> None:
    made = task(5)
    for _ in range(8):
        batch = made.train(uniform(made, 0, 1, 2, 3, 4), every(made))
    losses, accuracy = made.measure(uniform(made, 0, 1, 2, 3, 4))
    assert (np.diff(losses) < 0).all() and (np.diff(accuracy) >= 0).all() and (np.diff(batch) < 0).all()
    assert (made.measure(uniform(made, 0, 0, 1, 2, 3))[0][1:] > losses[1:]).all()
    assert made.measure(uniform(made, 0, 1, 0, 0, 0))[0][2:] == pytest.approx(
        made.measure(uniform(made, 0, 1, 0, 0, 0))[0][2:].clip(min=losses[0])
    )


def test_only_the_chosen_train_and_ranks_bound_what_moves() -> None:
    made = task(2)
    made.train(uniform(made, 2, 2), every(made))
    before = made._age.copy()
    assert np.isnan(made.train(uniform(made, 4, 1), np.array([False, True]))).tolist() == [True, False]
    moved = (made._age != before).reshape(2, SITES, CAP)
    assert not moved[0].any() and moved[1, :, 0].all() and not moved[1, :, 1:].any()


def test_episodes_begin_anew_or_go_on() -> None:
    made = task(2, pace_std=0.3, batch_std=0.1)
    full = uniform(made, 4, 4)
    first, text = made.train(full, every(made)), made.text()
    later = made.measure(full)[0]
    begin(made, fresh=False)
    assert np.array_equal(made.measure(full)[0], later)
    assert not np.array_equal(made.text(), text)
    begin(made)
    assert np.array_equal(made.train(full, every(made)), first)
    begin(made, seed=1)
    assert not np.array_equal(made.train(full, every(made)), first)


def test_text_is_drawn_about_its_mean_and_known_before_the_step() -> None:
    made = task(4000)
    text = made.text()
    assert np.array_equal(made.text(), text)
    made.train(uniform(made, *[1] * 4000), every(made))
    assert not np.array_equal(made.text(), text)
    assert text.mean(axis=0) == pytest.approx(TRUE["text_mean"], abs=0.003)
    assert text.std(axis=0) == pytest.approx(TRUE["text_std"], rel=0.1)
    assert (text >= 0).all() and (text <= 1).all()


def test_gains_fall_along_a_site_and_worth_is_what_holds() -> None:
    made = task(3)
    assert (made.gains() > 0).all()
    for ranks in ((1, 2, 4), (4, 1, 4)):
        made.train(uniform(made, *ranks), every(made))
    gains = made.gains()
    assert (np.diff(gains, axis=-1) <= 0).all() and gains.shape == (3, SITES, CAP)
    assert gains[0, :, 0] / gains[0, 0, 0] == pytest.approx([1, 2, 4, 8], rel=0.01)
    before, worth = made._total.copy(), made.worth()
    made.train(uniform(made, 1, 2, 4), every(made))
    added = [worth[0, :, :1].sum(), worth[1, :, :2].sum(), worth[2].sum()]
    assert made._total - before == pytest.approx(np.array(added), rel=1e-5)


def test_sites_of_different_caps() -> None:
    made = RecordedTask(response(caps=[4, 2, 4, 1]), 2)
    begin(made)
    caps = np.tile([4, 2, 4, 1], (2, 1))
    made.train(caps, every(made))
    gains = made.gains()
    assert (gains[:, 1, 2:] == 0).all() and (gains[:, 3, 1:] == 0).all() and (gains[:, 3, 0] > 0).all()
    assert made._total[0] == pytest.approx(sum(TRUE["weights"]), rel=1e-5)


# -- the artefact -------------------------------------------------------------------------------------------------------------


def test_an_artefact_comes_back_as_it_was(tmp_path: Path) -> None:
    saved = response(errors={"loss_rmse": 0.1}, source={"seed": 3})
    saved.save(tmp_path / "mine.json")
    assert load(tmp_path / "mine.json") == saved
    assert load_recorded(tmp_path / "mine.json", 3).response == saved


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "cannot be read"),
        ("[1, 2]", "has format None; this version reads 1"),
        ('{"format": 7}', "has format 7; this version reads 1"),
        ('{"format": 1}', "is damaged: sites: Field required"),
        (json.dumps({**response().model_dump(), "weights": [1.0]}), "is damaged: values: .*weights has 1 values for 4 sites"),
        (json.dumps({**response().model_dump(), "weights": [1, 1, 1, -1]}), "is damaged: .*weights"),
        (json.dumps({**response().model_dump(), "floor": float("nan")}), "is damaged: floor"),
        (json.dumps({**response().model_dump(), "caps": [4, 4, 4, 0]}), "is damaged: .*a cap is below 1"),
        (json.dumps({**response().model_dump(), "knots_loss": [1, 1, 2]}), "is damaged: .*knots_loss does not rise"),
        (json.dumps({**response().model_dump(), "more": 1}), "is damaged: more"),
    ],
)
def test_a_bad_artefact_is_one_error(content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=says) as caught:
        load_recorded(path, 2)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value) and "fedlora record-response" in str(caught.value)


def test_an_unknown_name_and_a_missing_file() -> None:
    with pytest.raises(ConfigError, match=r"unknown response model 'minilm-trek'\. Did you mean 'minilm-trec'\?"):
        find("minilm-trek")
    with pytest.raises(ConfigError, match=r"there is no response model nowhere\.json"):
        find("nowhere.json")


@pytest.mark.parametrize(
    ("name", "model", "sites", "r2", "steps"),
    [("minilm-trec", "minilm-l6", 12, 0.9, 7), ("smollm2-trec", "smollm2-135m", 60, 0.8, 15)],
)
def test_what_is_shipped(name: str, model: str, sites: int, r2: float, steps: int) -> None:
    made = load_recorded(name, 64)
    assert made.response.errors["loss_r2"] > r2 and made.response.source["run"]["model"]["name"] == model
    assert len(made.sites) == sites and made.sites.caps.tolist() == [8] * sites
    begin(made)
    low, high = uniform(made, *[1] * 64), uniform(made, *[8] * 64)
    for _ in range(steps):
        made.train(np.where(np.arange(64)[:, None] < 32, low, high), every(made))
    loss = made.measure(np.where(np.arange(64)[:, None] < 32, low, high))[0]
    assert loss[32:].mean() < loss[:32].mean() - 0.2


def test_nothing_else_is_shipped() -> None:
    assert list(shipped()) == ["minilm-trec", "smollm2-trec"]
