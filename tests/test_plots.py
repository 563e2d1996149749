"""Learning curves: how runs are grouped, named and averaged, and that the picture holds them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

from acktr.agents.metrics_file import MetricsFile
from acktr.agents.plots import _band, _label, experiment, plot, read_curve
from acktr.agents.run_folder import RunFolder
from acktr.agents.settings import Settings
from acktr.errors import UserError

SETTINGS = Settings(env="CartPole-v1", total_timesteps=1000)


def make_run(path: Path, points: Sequence[tuple[int, float | None]], settings: Settings = SETTINGS) -> Path:
    folder = RunFolder.create(settings, path)
    with MetricsFile(path / "metrics.csv") as file:
        for timesteps, mean in points:
            file.write({"timesteps": timesteps, "return_mean": mean, "return_std": None if mean is None else 1.0})
    return folder.path


def colours(picture: Path) -> int:
    """Distinct colours that are neither white, black nor grey: there are some where a curve is drawn."""
    pixels = imageio.imread(picture)[..., :3].reshape(-1, 3).astype(int)
    return len(np.unique(pixels[np.ptp(pixels, axis=1) > 60], axis=0))


def test_rows_before_the_first_episode_are_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [(10, None), (20, 1.5), (30, 2.0)])
    assert read_curve(run / "metrics.csv").tolist() == [[20, 1.5, 1.0], [30, 2.0, 1.0]]


def test_seeds_are_averaged_over_the_timesteps_that_all_have() -> None:
    steps, mean, low, high = _band([np.array([[0, 0, 1], [100, 10, 1]]), np.array([[50, 20.0, 1], [200, 20, 1]])])
    assert (steps[0], steps[-1]) == (50, 100)
    assert (low[0], mean[0], high[0]) == (5, 12.5, 20)
    assert (low[-1], mean[-1], high[-1]) == (10, 15, 20)


def test_seeds_without_common_timesteps_are_all_shown() -> None:
    steps, mean, low, high = _band([np.array([[0, 1.0, 0], [100, 1, 0]]), np.array([[200, 3.0, 0], [300, 3, 0]])])
    assert (steps[0], steps[-1]) == (0, 300)
    assert not np.isnan(mean).any()
    assert set(mean) == set(low) == set(high) == {1.0, 3.0}
    assert not ((steps > 100) & (steps < 200)).any()


def test_a_single_run_has_the_deviation_of_its_episodes_as_band() -> None:
    _, mean, low, high = _band([np.array([[0, 5.0, 2], [1, 6.0, 3]])])
    assert (mean.tolist(), low.tolist(), high.tolist()) == ([5, 6], [3, 3], [7, 9])


def test_curves_are_named_by_what_sets_them_apart(tmp_path: Path) -> None:
    other = dataclasses.replace(SETTINGS, max_kl=0.5)
    runs = [tmp_path / "a", tmp_path / "b"]
    assert _label(SETTINGS, [SETTINGS], runs=runs[:1]) == "ACKTR"
    assert _label(SETTINGS, [SETTINGS], runs=runs) == "ACKTR (2 runs)"
    assert _label(other, [SETTINGS, other], runs=runs[:1]) == "ACKTR, max_kl 0.5"
    elsewhere = dataclasses.replace(SETTINGS, env="Acrobot-v1")
    assert _label(elsewhere, [SETTINGS, elsewhere], runs=runs[:1]) == "ACKTR, Acrobot-v1"
    far = dataclasses.replace(SETTINGS, max_kl=0.5, lr=0.1, gamma=0.9, momentum=0.0)
    assert _label(far, [SETTINGS, far], runs=runs[:1]) == "ACKTR, a"


def test_runs_that_differ_in_what_decides_no_result_are_oneexperiment() -> None:
    """Runs of A2C fell apart into two curves by settings of ACKTR's."""
    a2c = dataclasses.replace(SETTINGS, algorithm="a2c")
    same = dataclasses.replace(a2c, seed=3, max_kl=0.5, vectorization="sync", log_interval=300, pixel_size=84)
    assert experiment(same) == experiment(a2c)
    assert experiment(dataclasses.replace(same, lr=0.1)) != experiment(a2c)
    assert experiment(dataclasses.replace(SETTINGS, max_kl=0.5)) != experiment(SETTINGS)


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_runs_become_a_picture(suffix: str, tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / f"seed{seed}", [(10, 1.0), (500, 50.0 + seed)], dataclasses.replace(SETTINGS, seed=seed))
        for seed in range(3)
    ]
    output = tmp_path / f"curve{suffix}"
    plot(runs, output)
    assert output.stat().st_size > 3000
    if suffix == ".png":
        assert colours(output) > 10


@pytest.mark.parametrize("points", [[], [(10, None)]])
def test_a_run_that_ends_before_its_first_episode_still_gets_its_picture(
    points: list[tuple[int, float | None]], tmp_path: Path
) -> None:
    """Training draws its curve at the end; that must not fail a short run of a long game."""
    run = make_run(tmp_path / "run", points)
    plot([run], run / "curve.png")
    assert colours(run / "curve.png") == 0


def test_a_single_point_and_a_torn_last_row_are_no_obstacle(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [(10, 3.0)])
    with (run / "metrics.csv").open("a") as handle:
        handle.write("20,1")
    plot([run, run], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").exists()


def test_what_cannot_be_plotted_or_written_is_a_user_error(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [(10, 3.0)])
    with pytest.raises(UserError, match="no such folder"):
        plot([tmp_path / "absent"], tmp_path / "curve.png")
    for output in (tmp_path / "curve.xyz", tmp_path / "absent" / "curve.png"):
        with pytest.raises(UserError, match="cannot be written"):
            plot([run], output)
    (run / "metrics.csv").unlink()
    with pytest.raises(UserError, match="has written no metrics"):
        plot([run], tmp_path / "curve.png")


def test_dollar_signs_in_a_folders_name_are_no_formula(tmp_path: Path) -> None:
    """An odd one out would be drawn, a pair would be parsed, and what does not parse ended the plot in a traceback."""
    apart = {"gamma": 0.5, "lr": 0.1, "max_kl": 0.1, "damping": 0.2}
    points = [(10, 1.0), (20, 2.0)]
    runs = [
        make_run(tmp_path / "a$\\frac{$", points),
        make_run(tmp_path / "b$^$", points, dataclasses.replace(SETTINGS, **apart)),
    ]
    plot(runs, tmp_path / "curves.svg")
    assert (tmp_path / "curves.svg").stat().st_size > 5_000
