"""`acktr curvature`: files, figures and error messages, and the guide beside it."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from curvature_networks import SETTINGS, SMALL
from gymnasium.spaces import Box, Discrete
from torch import Tensor

import acktr
from acktr.agents import checkpoint, curvature_pictures, curvature_report, curvature_states
from acktr.agents.curvature_dense import (
    dense_fisher,
    inverses,
)
from acktr.agents.curvature_report import check_size, curvature_file, report
from acktr.agents.policy import ActorCritic
from acktr.cli import main
from acktr.errors import UserError
from acktr.kfac.errors import APPROXIMATIONS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small policy that shares a trunk with its value."""
    file = tmp_path_factory.mktemp("policy") / "small.safetensors"
    acktr.ACKTR("CartPole-v1", seed=0, shared_trunk=True, **SMALL).save(file)
    return file


@pytest.fixture(autouse=True)
def short_games(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curvature_states, "SPREAD", 50)


def run(file: Path, *, drawn: Sequence[str] = (), **changes: Any) -> dict[str, Any]:
    """A small report, with those pictures alone that are named: they take most of the time."""
    settings: dict[str, Any] = {"out": None, "damping": None, "deterministic": None, "seed": 1}
    settings.update({"states": 16, "units": 3, **changes})
    with pytest.MonkeyPatch.context() as patched:
        for name in {"fisher_picture", "inverse_picture", "errors_picture", "autocorrelation_picture"} - {*drawn}:
            patched.setattr(curvature_report, name, lambda *_: None)
        return curvature_file(file, **settings)


def refuse_constants(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def colours(picture: Path) -> int:
    pixels = imageio.imread(picture)[..., :3].reshape(-1, 3)
    return len(np.unique(pixels, axis=0))


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("acktr: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_json_is_one_object_and_the_files_are_there(
    saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder"
    assert main(["curvature", str(saved), "--out", str(out), "--states", "20", "--units", "4", "--json"]) == 0
    result = json.loads(capfd.readouterr().out, parse_constant=refuse_constants)
    assert result == json.loads((out / "report.json").read_text(), parse_constant=refuse_constants)
    assert (result["env"], result["states"], result["fisher"]) == ("CartPole-v1", 20, "exact")
    assert result["policy"] == "deterministic"
    (network,) = result["networks"]
    assert network["matrices"]["parameters"] == {
        "torso.1": 20,
        "torso.3": 20,
        "policy_head.logits": 10,
        "value_head": 5,
    }
    names = {path.name for path in out.iterdir()}
    pictures = {"fisher.png", "inverse.png", "errors.png"}
    assert names == {*pictures, "errors.csv", "assumptions.csv", "report.json"}
    assert {Path(file).name for file in result["files"]} == names
    assert all(colours(out / name) > 100 for name in pictures)
    rows = list(csv.DictReader((out / "errors.csv").open()))
    assert len(rows) == 4 * len(APPROXIMATIONS)
    first = result["networks"][0]["layers"][0]["errors"][0]
    assert float(rows[0]["relative"]) == pytest.approx(first["relative"], rel=1e-5)
    assert (rows[0]["layer"], rows[0]["curvature"]) == ("torso.1", "kfac")


def test_equal_seeds_give_equal_figures_and_a_run_folder_keeps_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a folder [of a long name] that reaches beyond the width of any common terminal"
    agent = acktr.ACKTR("CartPole-v1", seed=0, total_timesteps=40, num_steps=10, run_dir=folder, **SMALL)
    agent.learn(40)
    results = [run(folder), run(folder), run(folder, seed=2)]
    assert results[0] == results[1]
    assert results[0]["networks"] != results[2]["networks"]
    files = [Path(file) for file in results[0]["files"]]
    assert {file.parent for file in files} == {folder / "curvature"}
    assert {file.name for file in files} >= {"fisher-policy.png", "fisher-critic.png", "inverse-critic.png"}
    assert run(folder, damping=3.0)["networks"][0]["damping"] == 3
    assert json.loads((folder / "curvature" / "report.json").read_text())["networks"][0]["damping"] == 3
    text = report(results[0], 80)
    assert "policy: |F\u0302 - F| / |F| by layer" in text
    assert "errors are from the exact Fisher" in " ".join(text.split())
    assert "\nIAD: " in text
    assert "SUD" not in text, "no layer has positions"
    assert "K-FAC  EKFAC  K-FOC  EKFOC  diagonal" in text
    assert f"\nwritten to {folder / 'curvature'}:\n" in text, "no line breaks within a path"
    assert text.startswith(f"{folder / 'checkpoints' / 'final.safetensors'}: CartPole-v1\n")
    assert all(len(line) <= 80 for line in text.splitlines() if str(folder) not in line)
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--episodes", "1"]) == 0, "the run is as it was"


def test_percentages_are_of_the_matrices_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are scaled before they are drawn, and are then no longer as far apart as before."""
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(curvature_pictures.Figure, "savefig", lambda self, path, **_: drawn.update({path.stem: self}))
    agent = acktr.ACKTR("CartPole-v1", seed=0, shared_trunk=True, damping=0.05, value_sigma=0.1, **SMALL)
    agent.save(tmp_path / "policy")
    looked: list[Any] = []
    monkeypatch.setattr(curvature_report, "dense_fisher", lambda *args: looked.append(dense_fisher(*args)) or looked[0])
    pictures = ["fisher_picture", "inverse_picture"]
    found = run(tmp_path / "policy", units=4, drawn=pictures)["networks"][0]["matrices"]
    (dense,) = looked
    inverted = inverses(dense, 0.05, [["torso.1"], ["torso.3"], ["policy_head.logits", "value_head"]])

    def drawing(matrix: Tensor, reference: Tensor) -> Tensor:
        means = [part.mean().expand(len(part)) for part in reference.diagonal().split(dense.sizes)]
        roots = torch.cat(means).sqrt()
        return matrix / torch.outer(roots, roots)

    def apart(one: Tensor, other: Tensor) -> float:
        return float((one - other).norm() / other.norm())

    def check(axis: Any, expected: Tensor, title: str) -> None:
        image = torch.from_numpy(np.asarray(axis.images[0].get_array()))
        torch.testing.assert_close(image, expected.abs().clamp(min=float(axis.images[0].norm.vmin)))
        assert title in axis.get_title()

    exact, factored = drawing(dense.exact, dense.exact), drawing(dense.factored(), dense.exact)
    share = apart(factored, exact)
    assert abs(share - apart(dense.factored(), dense.exact)) > 0.002, "the scaling matters here"
    assert found["error_of_factored"] == pytest.approx(share)
    panels = (exact, "exact Fisher F"), (factored, "F\u0303"), (factored - exact, f"difference, {share:.1%} of F")
    for axis, (matrix, title) in zip(drawn["fisher"].axes, panels, strict=False):
        check(axis, matrix, title)
    shown = {name: drawing(matrix, inverted["factored"]) for name, matrix in inverted.items()}
    for axis, (name, matrix) in zip(drawn["inverse"].axes, shown.items(), strict=False):
        share = apart(matrix, shown["factored"])
        check(axis, matrix, "inverse of F\u0303" if name == "factored" else f"{share:.1%} from that of F\u0303")
        distances = found["inverses"][name]
        assert distances["from_inverse_of_factored"] == pytest.approx(share)
        assert distances["from_inverse_of_exact"] == pytest.approx(apart(matrix, shown["exact"]))


def test_pictures_say_which_fisher_they_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: dict[str, str] = {}
    monkeypatch.setattr(
        curvature_pictures.Figure,
        "savefig",
        lambda self, path, **_: titles.update({path.stem: self.get_suptitle()}),
    )
    sizes = {"conv_channels": (2, 3, 2), "conv_features": 5, "num_envs": 1, "num_threads": 1}
    acktr.ACKTR("PongNoFrameskip-v4", seed=0, **sizes).save(tmp_path / "pong")
    acktr.ACKTR("CartPole-v1", seed=0, shared_trunk=True, **SMALL).save(tmp_path / "cartpole")
    every = ["errors_picture", "fisher_picture", "inverse_picture", "autocorrelation_picture"]
    run(tmp_path / "pong", states=1, units=2, drawn=every)
    assert "from the blocks of the Fisher of one drawn outcome for each state" in titles["errors"]
    assert all("exact over outcomes" in titles[name] for name in ("fisher", "autocorrelation"))
    assert "PongNoFrameskip-v4, 1 state\n" in titles["fisher"]
    run(tmp_path / "cartpole", units=2, damping=0.25, drawn=every)
    assert "from the blocks of the exact Fisher\n" in titles["errors"]
    assert "damping 0.25, added to F as it is" in titles["inverse"]


def test_beside_a_file_there_is_a_folder_of_its_name(saved: Path) -> None:
    result = run(saved, states=4, units=2)
    assert Path(result["files"][0]).parent == saved.parent / "small-curvature"


def test_frames_are_compared_under_draws_and_autocorrelated(tmp_path: Path) -> None:
    sizes = {"conv_channels": (2, 3, 2), "conv_features": 5, "num_envs": 1, "num_threads": 1}
    acktr.ACKTR("PongNoFrameskip-v4", seed=0, **sizes).save(tmp_path / "pong.safetensors")
    result = run(tmp_path / "pong.safetensors", states=6, units=4, drawn=["autocorrelation_picture"])
    assert (result["fisher"], result["policy"]) == ("sampled", "stochastic")
    (network,) = result["networks"]
    assert network["name"] == "joint"
    kinds = {layer["layer"]: {error["conv_factors"] for error in layer["errors"]} for layer in network["layers"]}
    assert kinds["torso.0"] == {"expand", "reduce"}
    assert kinds["torso.7"] == {"expand"}
    rows = list(csv.DictReader((tmp_path / "pong-curvature" / "errors.csv").open()))
    first = [(row["curvature"], row["conv_factors"]) for row in rows if row["layer"] == "torso.0"]
    assert len(first) == len(set(first)) == 2 * len(APPROXIMATIONS) - 1
    assert ("diagonal", "reduce") not in first, "it is that under expand"
    folder = tmp_path / "pong-curvature"
    names = {Path(file).name for file in result["files"]}
    assert names >= {"fisher.png", "inverse.png", "autocorrelation.png", "autocorrelation.csv"}
    assert colours(folder / "autocorrelation.png") > 50
    rows = list(csv.DictReader((folder / "autocorrelation.csv").open()))
    middles = [row for row in rows if (row["down"], row["across"]) == ("0", "0")]
    assert len(middles) >= 4
    assert {float(row["mean"]) for row in middles} == {1.0}
    text = report(result, 100)
    (line,) = [line.split() for line in text.splitlines() if line.startswith("torso.0, reduce")]
    assert (len(line), line[-1]) == (2 + len(APPROXIMATIONS), "-")
    assert "errors are from the Fisher of one drawn outcome for each state" in " ".join(text.split())
    assert all(f"\n{name}: " in text for name in ("IAD", "SH a", "SH g", "SUD"))


def test_units_that_would_make_too_large_a_matrix_are_refused_before_play(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    acktr.ACKTR("CartPole-v1", seed=0, num_envs=1).save(tmp_path / "policy")
    assert main(["curvature", str(tmp_path / "policy"), "--units", "64"]) == 2
    line = error_line(capsys)
    assert "--units 64 would make matrices of 4,610 parameters, above the 3,000" in line
    most = line.rstrip().rpartition(" ")[2]
    assert main(["curvature", str(tmp_path / "policy"), "--units", str(int(most) + 1)]) == 2
    assert not (tmp_path / "policy-curvature").exists()


def test_a_layer_too_wide_to_factor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = ActorCritic(Box(-1, 1, (7,)), Discrete(2), SETTINGS)
    monkeypatch.setattr(curvature_report, "LARGEST_FACTOR", 7)
    with pytest.raises(UserError, match=r"file: layer torso.1 has a curvature factor of 8 x 8, above the 7 x 7"):
        check_size(policy, Path("file"), None)
    monkeypatch.setattr(curvature_report, "LARGEST_FACTOR", 8)
    check_size(policy, Path("file"), None)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--states", "0"], "--states takes a whole number of at least 1, got 0"),
        (["--units", "0"], "--units takes a whole number of at least 1, got 0"),
        (["--seed", "-1"], "--seed takes a whole number of at least 0, got -1"),
        (["--damping", "0"], "--damping takes a number above 0, got 0.0"),
        (["--damping", "nan"], "--damping takes a number above 0, got nan"),
        (["--deterministic", "--no-deterministic"], "exclude each other"),
        (["--state", "3"], "nearest: --states"),
    ],
)
def test_bad_flags_are_one_line(args: list[str], message: str, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curvature", str(saved), *args]) == 2
    assert message in error_line(capsys)


def test_bad_files_are_one_line(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curvature", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such file" in error_line(capsys)
    assert main(["curvature", str(tmp_path)]) == 2
    assert "not a run folder" in error_line(capsys)
    (tmp_path / "foreign").write_text("something else")
    assert main(["curvature", str(tmp_path / "foreign")]) == 2
    assert "foreign" in error_line(capsys)
    state = checkpoint.load(saved).state
    checkpoint.save(tmp_path / "own", {**state, "protocol": {**state["protocol"], "own": True}}, kind="policy")
    assert main(["curvature", str(tmp_path / "own")]) == 2
    assert "environment of one's own" in error_line(capsys)


def test_a_folder_that_cannot_be_written_asks_for_another(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("")
    assert main(["curvature", str(saved), "--out", str(tmp_path / "taken")]) == 2
    assert "taken cannot be written: File exists; name another folder with --out" in error_line(capsys)
    monkeypatch.setattr("os.access", lambda *_: False)  # as on a read-only file system, for any user
    assert main(["curvature", str(saved), "--out", str(tmp_path / "read-only")]) == 2
    assert "read-only cannot be written: no permission; name another folder with --out" in error_line(capsys)


def test_the_verb_has_a_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["curvature", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "usage: acktr curvature" in text
    for flag in ("--out", "--states", "--units", "--damping", "--seed", "--json"):
        assert flag in text
    assert "without damping_control" in " ".join(text.replace("\u2502", " ").split())
    assert main(["--help"]) == 0
    assert "curvature compare K-FAC" in capsys.readouterr().out


# --- the guide -------------------------------------------------------------------------------------------------------


def test_the_guide_s_examples_run_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    text = (Path(__file__).parent.parent / "docs" / "curvature.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 6
    names: dict[str, Any] = {"__name__": "guide"}
    for number, code in enumerate(examples):
        exec(compile(code, f"curvature.md, example {number + 1}", "exec"), names)
        if number == 2:
            assert names["optimizer"].steps == 20, "the state that was saved is that which was loaded"
        if number == 4:
            steps, last = names["steps"], names["report"]
            assert (steps.steps, steps.optimizer.steps) == (20, 20)
            assert (steps.damping, steps.factor_damping) == (last.damping, last.factor_damping)
    assert len(capsys.readouterr().out.splitlines()) == 2 * len(APPROXIMATIONS)
    assert names["probabilities"].sum(-1) == pytest.approx(np.ones(64))
    assert names["bound"] < 0


def test_a_layer_without_gradients_has_no_errors_and_breaks_nothing(tmp_path: Path) -> None:
    agent = acktr.ACKTR("CartPole-v1", seed=0, **SMALL)
    with torch.no_grad():
        agent._trainer.policy.policy_head.get_submodule("logits").weight.zero_()
    agent.save(tmp_path / "policy")
    result = run(tmp_path / "policy", states=8, units=3)
    layers = result["networks"][0]["layers"]
    assert {error["relative"] for error in layers[0]["errors"]} == {None}
    assert all(error["relative"] is not None for error in layers[-1]["errors"])
    lines = [line.split() for line in report(result, 100).splitlines()]
    assert ["torso.1", "-", "-", "-", "-", "-"] in lines
