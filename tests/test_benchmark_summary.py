"""What `acktr benchmark` says of runs: scales, comparisons, verdicts and steps, on results made by hand."""

import csv
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from acktr.agents.benchmark import summary
from acktr.agents.benchmark.comparisons import comparisons
from acktr.agents.benchmark.records import Chance, Record, Results
from acktr.agents.metrics_file import COLUMNS


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open() as handle:
        return list(csv.DictReader(handle))


def record(env: str, contestant: str, seed: int, score: float) -> Record:
    row = {**dict.fromkeys(COLUMNS), "timesteps": 100.0, "wall_time": 2.0, "return_mean": score, "episodes": 100.0}
    return Record(
        env=env, contestant=contestant, seed=seed, last_row=row, curve=np.array([[50.0, 0.0], [100.0, score]])
    )


def results(
    scores: dict[str, dict[str, list[float]]], chance: dict[str, float], references: tuple[str, ...] = ("trpo", "a2c")
) -> Results:
    records = tuple(
        record(env, name, seed, score)
        for env, own in scores.items()
        for name, values in own.items()
        for seed, score in enumerate(values)
    )
    return Results(
        records=records,
        chance={env: Chance(mean=mean, error=0.1) for env, mean in chance.items()},
        references=references,
        contestants=("acktr", "a2c", "trpo"),
    )


TWO = results(
    {
        "One": {"acktr": [20.0, 30.0], "a2c": [10.0, 10.0], "trpo": [20.0]},
        "Two": {"acktr": [5.0, 5.0], "a2c": [4.0, 6.0]},
    },
    {"One": 0.0, "Two": -5.0},
)


def test_the_scale_is_the_first_reference_that_ran() -> None:
    assert (TWO.reference("One"), TWO.reference("Two")) == (("trpo", 20.0), ("a2c", 5.0))
    one, two = (TWO.on(env).normalised("acktr") for env in ("One", "Two"))
    np.testing.assert_allclose(one, [1.0, 1.5])
    np.testing.assert_allclose(two, [1.0, 1.0])


def compared(found: Results) -> list[tuple[tuple[str, ...], list[str]]]:
    return [(comparison.contestants, comparison.environments) for comparison in comparisons(found)]


def test_contestants_are_compared_where_all_of_them_ran() -> None:
    assert compared(TWO) == [(("acktr", "a2c"), ["One", "Two"]), (("acktr", "a2c", "trpo"), ["One"])]


def test_nobody_who_shares_an_environment_with_the_first_goes_uncompared() -> None:
    """Two may have run on as many environments, and on other ones."""
    found = results(
        {
            "One": {"acktr": [1.0], "a2c": [1.0]},
            "Two": {"acktr": [1.0], "a2c": [1.0], "trpo": [1.0]},
            "Three": {"acktr": [1.0], "trpo": [1.0]},
        },
        {"One": 0.0, "Two": 0.0, "Three": 0.0},
    )
    assert compared(found) == [(("acktr", "a2c"), ["One", "Two"]), (("acktr", "trpo"), ["Two", "Three"])]


def test_an_environment_without_a_scale_is_left_out_and_named(tmp_path: Path) -> None:
    """A reference at random play's level would divide by nothing."""
    for score in (0.0, 0.29):  # within three standard errors of chance a scale would be noise
        flat = results(
            {env: {"acktr": [1.0, 1.1], "a2c": [score if env == "Two" else 1.0]} for env in ("One", "Two", "Three")},
            {"One": 0.0, "Two": 0.0, "Three": 0.0},
        )
        assert flat.reference("Two") is None
        assert compared(flat) == [(("acktr", "a2c"), ["One", "Three"])]
        table = summary.write(flat, tmp_path, title="A suite")
        assert "Left out of the comparison of scores: Two (no reference above random play)." in table
    assert results({"One": {"acktr": [1.0], "a2c": [0.31]}}, {"One": 0.0}).reference("One") == ("a2c", 0.31)
    unknown = results(
        {env: {"acktr": [1.0], "a2c": [1.0]} for env in ("One", "Two", "Three")}, {"One": 0.0, "Two": 0.0}
    )
    table = summary.write(unknown, tmp_path, title="A suite")
    assert "Left out of the comparison of scores: Three (random play was not measured)." in table


def test_one_environment_alone_is_compared_by_returns_which_need_no_scale(tmp_path: Path) -> None:
    alone = results({"One": {"acktr": [20.0, 21.0, 22.0], "a2c": [0.0, 0.5, -0.5]}}, {"One": 0.0})
    assert alone.reference("One") is None
    table = summary.write(alone, tmp_path, title="A suite")
    assert "| a2c | 0.00 [-1.24, 1.24] | +21.0 [+18.9, +23.1], separated |" in table


def test_on_atari_the_scale_may_be_the_human_testers() -> None:
    """A2C that has learnt nothing yet would make one of noise."""
    games = {
        "PongNoFrameskip-v4": {"acktr": [14.6]},
        "ALE/Breakout-v5": {"acktr": [30.5]},
        "CartPole-v1": {"a2c": [9.0]},
    }
    found = results(games, dict.fromkeys(games, -20.7), references=("human", "a2c"))
    assert found.reference("PongNoFrameskip-v4") == ("human", 14.6)
    assert found.reference("ALE/Breakout-v5") == ("human", 30.5)
    assert found.reference("CartPole-v1") == ("a2c", 9.0)
    np.testing.assert_allclose(found.on("PongNoFrameskip-v4").normalised("acktr"), [1.0])


def test_the_table_says_who_is_separated(tmp_path: Path) -> None:
    clear = results(
        {env: {"acktr": [20.0, 21.0, 22.0], "a2c": [10.0, 10.5, 11.0]} for env in ("One", "Two")},
        {"One": 0.0, "Two": 0.0},
    )
    table = summary.write(clear, tmp_path, title="A suite")
    assert "| One | 0 | 21.0 [18.5, 23.5], 3 | 10.5 [9.3, 11.7], 3 |" in table
    assert ", separated |" in table
    alike = dataclasses.replace(
        clear, records=tuple(record(r.env, r.contestant, r.seed, 5.0 + r.seed) for r in clear.records)
    )
    assert "not separated" in summary.write(alike, tmp_path, title="A suite")
    assert {file.name for file in tmp_path.iterdir()} == {
        *("runs.csv", "curves.csv", "aggregate.csv", "settings.yaml", "table.md", "curves.png", "scores.png"),
    }


def test_the_final_policies_games_are_compared_beside_the_scores(tmp_path: Path) -> None:
    """What explores for long scores low, and may still have learnt most."""
    scores = {env: {"acktr": [20.0, 21.0], "a2c": [10.0, 10.5]} for env in ("One", "Two")}
    found = results(scores, {"One": 0.0, "Two": 0.0})
    played = {"acktr": 21.0, "a2c": 42.0}
    records = tuple(dataclasses.replace(r, evaluation=played[r.contestant] + r.seed) for r in found.records)
    table = summary.write(dataclasses.replace(found, records=records), tmp_path, title="A suite")
    assert "| One | 21.5 [15.1, 27.9], 2 | 42.5 [36.1, 48.9], 2 |" in table
    by_score, by_games = table.split("(One, Two), returns of the final policies' own games normalised")
    assert re.search(r"^\| a2c \| 1.00 .*\| \+1.00 .*, separated \|", by_score, re.MULTILINE)
    assert re.search(r"^\| a2c \| 1.00 .*\| -0.49 .*, separated \|", by_games, re.MULTILINE)
    rows = {(row["what"], row["contestant"]): row for row in rows_of(tmp_path / "aggregate.csv")}
    assert rows["final policy", "a2c"]["value"] == "42.5"
    apart = rows["final policy: normalised difference", "acktr - a2c"]
    assert float(apart["value"]) == pytest.approx(21.5 / 42.5 - 1, rel=1e-4)
    assert (apart["verdict"], rows["return", "random"]["low"]) == ("separated", "-0.196")


def test_no_verdict_is_given_by_the_games_where_some_runs_lack_them(tmp_path: Path) -> None:
    """Those that lack them may be the best, or the worst."""
    scores = {env: {"acktr": [20.0, 21.0, 2.0], "a2c": [10.0, 10.5, 11.0]} for env in ("One", "Two")}
    found = results(scores, {"One": 0.0, "Two": 0.0})
    records = tuple(
        dataclasses.replace(r, evaluation=None if (r.contestant, r.seed) == ("acktr", 2) else r.score)
        for r in found.records
    )
    table = summary.write(dataclasses.replace(found, records=records), tmp_path, title="A suite")
    assert "| One | 20.5 [14.1, 26.9], 2 (1 without) | 10.5 [9.3, 11.7], 3 |" in table
    by_games = table.split("returns of the final policies' own games normalised")[1]
    assert "no verdict while games are missing |" in by_games
    unfinished = (
        dataclasses.replace(found, records=records, unfinished={("Two", "acktr"): 1}).of_evaluations().unfinished
    )
    assert {pair: number for pair, number in unfinished.items() if number} == {("One", "acktr"): 1, ("Two", "acktr"): 2}
    assert [row["final_policy"] for row in rows_of(tmp_path / "runs.csv") if row["seed"] == "2"] == ["", "11"] * 2


def test_no_verdict_is_given_on_single_runs_or_while_some_are_unfinished(tmp_path: Path) -> None:
    """What went wrong did not finish: the others alone would flatter a contestant."""
    scores = {env: {"acktr": [20.0, 21.0, 22.0], "a2c": [10.0, 10.5]} for env in ("One", "Two")}
    clear = results(scores, {"One": 0.0, "Two": 0.0})
    diverged = dataclasses.replace(clear, unfinished={("Two", "a2c"): 1})
    table = summary.write(diverged, tmp_path, title="A suite")
    assert "10.2 [7.1, 13.4], 2 (1 unfinished) |" in table
    assert "no verdict while runs are unfinished |" in table
    single = results({"One": {"acktr": [20.0], "a2c": [19.9]}}, {"One": 0.0})
    table = summary.write(single, tmp_path, title="A suite")
    assert "| One | return | steps | acktr's steps |\n" in table
    assert "| random | 0 |  |  |\n| acktr | 20.0, 1 | 0k, 1 of 1 |  |\n" in table
    assert "| a2c | 19.9 | +0.100, no verdict on single runs |" in table


def test_no_verdict_is_given_while_runs_that_set_the_scale_are_unfinished(tmp_path: Path) -> None:
    """Their mean decides how much each environment counts. It will be another one, or another contestant's."""
    scores = {env: {"acktr": [20.0, 21.0, 22.0], "a2c": [10.0, 10.5]} for env in ("One", "Two")}
    third = {env: {**own, "trpo": [9.0, 9.5]} for env, own in scores.items()}
    words = "no verdict while runs of the scale are unfinished |"
    for own, unfinished, count in (
        (third, {}, 0),
        (third, {("Two", "trpo"): 1}, 1),
        (scores, {("Two", "trpo"): 1}, 1),  # none of it finished yet: it will set the scale in place of a2c
        ({"One": third["One"]}, {("One", "trpo"): 1}, 0),  # returns of one environment have no scale
    ):
        found = dataclasses.replace(results(own, {"One": 0.0, "Two": 0.0}), unfinished=unfinished)
        verdicts = [line for line in summary.write(found, tmp_path, title="").splitlines() if line.startswith("| a2c")]
        assert sum(words in line for line in verdicts) == count
        assert sum(", separated |" in line for line in verdicts) == 1 - count


def test_contestants_and_environments_whose_runs_are_all_unfinished_are_named(tmp_path: Path) -> None:
    found = results({"One": {"acktr": [20.0, 21.0]}}, {"One": 0.0})
    begun = dataclasses.replace(found, unfinished={("One", "trpo"): 2, ("Two", "acktr"): 1})
    table = summary.write(begun, tmp_path, title="A suite")
    assert "| environment | random | acktr | a2c | trpo |" in table
    assert "| One | 0 | 20.5 [14.1, 26.9], 2 |  | (2 unfinished) |" in table
    assert "| Two |  | (1 unfinished) |  |  |" in table


def test_runs_without_any_spread_are_not_called_separated(tmp_path: Path) -> None:
    """Seeds that change nothing prove no more than one of them."""
    found = results({"One": {"acktr": [20.0, 20.0], "a2c": [10.0, 10.0]}}, {"One": 0.0})
    table = summary.write(found, tmp_path, title="A suite")
    assert "| a2c | 10.0 [10.0, 10.0] | +10.0 [+10.0, +10.0], no verdict on runs without any spread |" in table


def test_an_end_that_is_not_zero_is_not_printed_as_zero(tmp_path: Path) -> None:
    """It would leave open what the verdict is."""
    found = results({"One": {"acktr": [20.0, 22.0], "a2c": [10.0, 8.7]}}, {"One": 0.0})
    (comparison,) = comparisons(found)
    low = comparison.differences["a2c"].interval.low
    assert low is not None
    for shift in (0.004, -0.03):
        moved = results({"One": {"acktr": [20.0 - low + shift, 22.0 - low + shift], "a2c": [10.0, 8.7]}}, {"One": 0.0})
        table = summary.write(moved, tmp_path, title="A suite")
        assert f"[{shift:+}, " in table
        assert ("not separated" in table) == (shift < 0)


def test_the_table_has_the_steps_to_the_score_at_which_the_others_ended(tmp_path: Path) -> None:
    """A run that rises evenly to 40 in 100,000 steps is at 10 after a quarter of them."""
    found = results(
        {"One": {"acktr": [40.0, 20.0, 5.0], "a2c": [9.0, 11.0]}, "Two": {"acktr": [3.0], "trpo": [4.0]}},
        {"One": 0.0, "Two": 0.0},
    )
    share = np.linspace(0.0, 1.0, 101)
    rising = tuple(
        dataclasses.replace(run, curve=np.stack([share * 100_000, share * run.score], axis=1)) for run in found.records
    )
    found = dataclasses.replace(found, records=rising)
    np.testing.assert_allclose(found.steps_to_the_end_of("One", "a2c"), [25_000, 50_000, np.inf])
    assert len(found.steps_to_the_end_of("Two", "a2c")) == 0
    ahead = found.steps_to_most_of_the_first("One", "acktr")  # at 0.9 of 65/3, the mean of three runs
    np.testing.assert_allclose(ahead, [48_750, 97_500, np.inf])
    np.testing.assert_allclose(found.steps_to_most_of_the_first("One", "a2c"), [np.inf, np.inf])
    table = summary.write(found, tmp_path, title="A suite")
    assert "| One | 50k [25k, never], 2 of 3 |  |" in table
    assert "| Two |  | never, 0 of 1 |" in table
    assert "| One | 98k [49k, never], 2 of 3 | never, 0 of 2 |  |" in table
    steps = [row for row in rows_of(tmp_path / "aggregate.csv") if row["what"] == "steps: the first, to its end"]
    assert [tuple(row[name] for name in ("contestant", "runs", "statistic", "value")) for row in steps] == [
        ("a2c", "3", "reached", "2"),
        ("a2c", "3", "median", "50000"),
        ("a2c", "3", "least", "25000"),
        ("a2c", "3", "most", "inf"),
        ("trpo", "1", "reached", "0"),
        *(("trpo", "1", kind, "inf") for kind in ("median", "least", "most")),
    ]


def test_steps_do_not_depend_on_how_far_apart_rows_are() -> None:
    """A noisy curve is above a level the sooner the more often it is looked at."""
    found = results({"One": {"acktr": [40.0], "a2c": [40.0]}}, {"One": 0.0})
    steps = np.arange(1.0, 1001.0) * 100
    curve = np.stack([steps, 4e-4 * steps + np.random.default_rng(0).normal(0.0, 4.0, 1000)], axis=1)
    thinned = curve[9::10]
    curves = {"acktr": curve, "a2c": thinned}
    own = dataclasses.replace(
        found, records=tuple(dataclasses.replace(run, curve=curves[run.contestant]) for run in found.records)
    )
    often, seldom = (own.steps_to_most_of_the_first("One", name) for name in ("acktr", "a2c"))
    np.testing.assert_allclose(often, seldom)
    assert steps[np.argmax(curve[:, 1] >= 36.0)] < thinned[np.argmax(thinned[:, 1] >= 36.0) - 1, 0] < often


def test_a_curve_that_only_touches_a_level_has_it() -> None:
    """Returns of many games have a ceiling, 500 of CartPole."""
    found = results({"One": {"acktr": [500.0], "a2c": [500.0]}}, {"One": 0.0})
    np.testing.assert_allclose(found.steps_to_the_end_of("One", "a2c"), [100.0])


def test_nobody_is_timed_to_what_random_play_has() -> None:
    found = results({"One": {"acktr": [40.0], "a2c": [-1.0]}}, {"One": 0.0})
    assert len(found.steps_to_the_end_of("One", "a2c")) == 0
    hardly = results({"One": {"acktr": [40.0], "a2c": [0.29]}}, {"One": 0.0})  # three standard errors are 0.3
    assert len(hardly.steps_to_the_end_of("One", "a2c")) == 0
    for chance in ({"One": 0.0}, {}):
        silent = results({"One": {"acktr": [40.0], "a2c": [float("nan")]}}, chance)
        assert len(silent.steps_to_the_end_of("One", "a2c")) == 0


def test_the_first_contestant_is_the_suites_whatever_ran_first() -> None:
    late = results({"One": {"a2c": [1.0]}, "Two": {"acktr": [3.0], "a2c": [2.0]}}, {"One": 0.0, "Two": 0.0})
    assert compared(late) == [(("acktr", "a2c"), ["Two"])]


def test_a_run_without_an_ended_game_is_no_score(tmp_path: Path) -> None:
    silent = results({"One": {"acktr": [float("nan")], "a2c": [1.0]}}, {"One": 0.0})
    table = summary.write(silent, tmp_path, title="A suite")
    assert "no game ended" in table
    assert "nan" not in table


def test_a_run_without_an_ended_game_does_not_hide_the_others(tmp_path: Path) -> None:
    nan = float("nan")
    found = results(
        {"One": {"acktr": [20.0, 22.0, nan], "a2c": [1.0]}, "Two": {"acktr": [2.0], "a2c": [1.0]}},
        {"One": 0.0, "Two": 0.0},
    )
    table = summary.write(found, tmp_path, title="A suite")
    assert "| One | 0 | 21.0 [8.3, 33.7], 2 (no game ended in 1 more) | 1.00, 1 |" in table
    assert "Left out of the comparison of scores: One (a run of acktr ended no game)." in table


@pytest.mark.parametrize(
    ("references", "verdict"),
    [
        ([3.0], "no verdict on a scale of single runs"),
        ([0.1, -0.6, 2.0], "no verdict, the reference being hardly above random play"),
        ([3.0, 3.1, 3.2], "separated"),
    ],
)
def test_no_verdict_is_given_by_a_scale_that_is_not_known(
    tmp_path: Path, references: list[float], verdict: str
) -> None:
    scores = {"acktr": [20.0, 21.0], "a2c": [10.0, 10.1], "trpo": references}
    found = results({"One": scores, "Two": scores}, {"One": 0.0, "Two": 0.0})
    assert re.search(rf"^\| a2c \| .* {verdict} \|$", summary.write(found, tmp_path, title="A suite"), re.MULTILINE)
