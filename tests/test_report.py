"""Reports: one page that holds everything, whatever state its runs are in and whatever their files say."""

import base64
import dataclasses
import datetime
import json
import re
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
from limits import full_disk

from acktr import cli
from acktr.agents import presets, report_games
from acktr.agents.evaluation import FORMAT
from acktr.agents.metrics_file import MetricsFile, read_metrics
from acktr.agents.report import write_report
from acktr.agents.report_games import Film, Games, games_of
from acktr.agents.report_markup import Markup, element, joined
from acktr.agents.report_numbers import duration, in_words, number, shown
from acktr.agents.report_page import page
from acktr.agents.report_pictures import PANELS, colours, learning_curve, panel_picture
from acktr.agents.report_play import play_section
from acktr.agents.report_runs import RunFiles, read_evaluation, read_runs
from acktr.agents.report_settings import compare, settings_section
from acktr.agents.run_folder import RunFolder
from acktr.agents.settings import Settings
from acktr.errors import UserError

VOID = ("img", "meta")
SETTINGS = Settings(env="CartPole-v1", total_timesteps=1000)
NOT_PLAYED = Games(evaluation=None, origin="No games were played for this page.")
EVALUATION: dict[str, Any] = {
    "format": FORMAT,
    "env": "CartPole-v1",
    "episodes": 3,
    "return_mean": 71.25,
    "return_std": 4.5,
    "return_median": 70.0,
    "return_ci95": [66.5, 77.75],
    "length_mean": 71.25,
    "human_normalised": None,
    "truncated": 0,
    "stalled": 0,
    "returns": [66.5, 70.0, 77.25],
    "protocol": {"policy": "deterministic", "seed": 1_000_000, "versions": {"acktr": "0.1.0"}},
    "checkpoint": "elsewhere/checkpoints/final.safetensors",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run, finished. Tests that write into it take a copy."""
    folder = tmp_path_factory.mktemp("runs") / "cart"
    words = "--env CartPole-v1 --total-timesteps 1200 --num-envs 4 --num-steps 15 --log-interval 4 --num-threads 1"
    assert cli.main(["train", *words.split(), "--max-kl", "0.007", "--run-dir", str(folder)]) == 0
    return folder


@pytest.fixture
def no_games(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test where a game is played or filmed."""

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a game was played")

    monkeypatch.setattr(report_games, "evaluate_file", refuse)
    monkeypatch.setattr(report_games, "record_file", refuse)


def make_run(path: Path, rows: Sequence[dict[str, float]] = (), settings: Settings = SETTINGS) -> RunFiles:
    folder = RunFolder.create(settings, path)
    with MetricsFile(folder.path / "metrics.csv") as file:
        for row in rows:
            file.write(row)
    return read_runs([folder.path])[0]


def evaluated(folder: Path, **changes: Any) -> dict[str, Any]:
    """An evaluation.json in the folder, as of its last checkpoint."""
    steps = int(read_metrics(folder / "metrics.csv")[-1]["timesteps"] or 0)
    found = {**EVALUATION, "timesteps": steps, **changes}
    (folder / "evaluation.json").write_text(json.dumps(found))
    return found


def games(folder: Path, **options: Any) -> Games:
    arguments: dict[str, Any] = {"episodes": None, "play": True, "video": False, "seed": 0, "device": "cpu"}
    return games_of(read_runs([folder])[0], **{**arguments, **options}, say=lambda line: None)


class Page(HTMLParser):
    """What a browser would make of a page; every element must be closed where it was opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data + "\n"

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def one_line(self) -> str:
        return " ".join(self.text.split())


def page_of(runs: Sequence[RunFiles], found: Sequence[Games] | None = None) -> Page:
    versions = {"acktr": "0.1.0", "Box2D": None}
    return Page(page(runs, found or [NOT_PLAYED] * len(runs), written=datetime.date(2026, 3, 9), versions=versions))


# --- the page as a whole ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, str]:
    """The page that the command line writes of the run, with a film where there is something to film with."""
    output = tmp_path_factory.mktemp("report") / "report.html"
    before = {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in trained.rglob("*")}
    assert cli.main(["report", str(trained), "-o", str(output), "--episodes", "4", "--device", "cpu"]) == 0
    assert {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in trained.rglob("*")} == before
    text = output.read_text(encoding="utf-8")
    return Page(text), text


def test_the_page_asks_nothing_of_the_network_and_runs_nothing(written: tuple[Page, str]) -> None:
    made, text = written
    tags = {name for name, _ in made.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "base"}
    for _, attributes in made.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "poster", "srcset"):
                assert (value or "").startswith(("data:", "#"))
    css = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in css
    assert "@import" not in css
    (policy,) = [tag["content"] for tag in made.named("meta") if tag.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy).startswith("default-src 'none'")


def test_the_page_can_be_read_by_those_who_do_not_see_it(written: tuple[Page, str]) -> None:
    made, _ = written
    assert made.named("html") == [{"lang": "en"}]
    assert len(made.named("h1")) == len(made.named("main")) == 1
    ids = [attributes["id"] for _, attributes in made.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {tag["href"] for tag in made.named("a")} <= {f"#{name}" for name in ids}
    assert all(tag.get("alt") for tag in made.named("img"))
    assert all(tag.get("aria-label") for tag in made.named("video"))
    assert {tag.get("scope") for tag in made.named("th")} == {"col", "row"}


def test_the_pictures_are_svg_that_parses(written: tuple[Page, str]) -> None:
    from xml.etree import ElementTree

    made, _ = written
    assert len(made.named("img")) > 8
    for tag in made.named("img"):
        kind, _, content = str(tag["src"]).partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert ElementTree.fromstring(base64.b64decode(content)).tag.endswith("svg")


def test_the_headline_is_that_of_the_metrics(written: tuple[Page, str], trained: Path) -> None:
    made, _ = written
    last = read_metrics(trained / "metrics.csv")[-1]
    text = made.one_line()
    assert text.startswith("ACKTR on CartPole-v1, cart, seed 0 ACKTR on CartPole-v1 cart, seed 0")
    assert f"Return in training {number(last['return_mean'])}" in text
    assert f"± {number(last['return_std'])} over the last" in text
    assert f"Timesteps {number(last['timesteps'])} finished" in text
    assert re.search(r"Evaluation [\d.]+ mean of 4 games, 95 % interval [\d.]+ to [\d.]+", text)
    assert "No guard had to step in" in text
    assert " ".join((trained / "command.txt").read_text().split()) in text
    assert "0.007" in text


def test_the_film_plays(written: tuple[Page, str], tmp_path: Path) -> None:
    pytest.importorskip("pygame")
    made, _ = written
    (video,) = made.named("video")
    assert "controls" in video
    (tmp_path / "game.mp4").write_bytes(base64.b64decode(str(video["src"]).removeprefix("data:video/mp4;base64,")))
    frames = imageio.imread(tmp_path / "game.mp4")
    assert len(frames) > 5
    assert "A whole game of" in made.text


# --- what the runs' files say -----------------------------------------------------------------------------------------


HOSTILE = "\" onfocus=\"alert('0')\" '</pre></title><script>alert('1')</script><img src=x onerror=alert(2)>&amp;"


def test_no_file_can_put_markup_into_the_page(tmp_path: Path) -> None:
    rows = [{"timesteps": 10, "return_mean": 3.0, "episodes": 2.0, "entropy": 0.5}]
    folder = tmp_path / "<b onclick='x'>run"
    run = make_run(folder, rows, dataclasses.replace(SETTINGS, env=HOSTILE, device=HOSTILE))
    (folder / "command.txt").write_text(f"acktr train --env '{HOSTILE}\n{HOSTILE}\n")
    start = {"cpu": HOSTILE, "packages": {HOSTILE: HOSTILE}, "gpus": [HOSTILE]}
    (folder / "versions.json").write_text(json.dumps({"starts": [start, start]}))
    evaluated(folder, env=HOSTILE, checkpoint=HOSTILE, protocol={HOSTILE: HOSTILE, "versions": {HOSTILE: HOSTILE}})
    other = make_run(tmp_path / "other", rows)
    found = games(folder, play=False)
    assert found.evaluation is not None
    runs = [*read_runs([folder]), other]
    film = Film(data=b"x", seconds=1.0, score=1.0)
    made = page_of(runs, [dataclasses.replace(found, film=film), Games(evaluation=None, origin=HOSTILE)])
    assert run.settings.env == HOSTILE
    assert not [name for name, _ in made.tags if name in ("script", "b")]
    assert all(str(tag["src"]).startswith("data:") for tag in made.named("img"))
    assert not [name for _, attributes in made.tags for name in attributes if name.startswith("on")]
    assert made.text.count(HOSTILE) > 12, "shown as it stands"


def test_markup_is_made_by_elements_alone() -> None:
    assert element("p", "<i>", element("b", "&"), title='"<') == '<p title="&quot;&lt;">&lt;i&gt;<b>&amp;</b></p>'
    assert element("img", alt="", hidden=True, class_=False) == '<img alt="" hidden>'
    assert joined("<", Markup("<br>")) == "&lt;<br>"
    assert isinstance(joined("a"), Markup)


def test_a_run_without_a_row_or_an_ended_game_has_a_page(tmp_path: Path) -> None:
    bare = page_of([make_run(tmp_path / "bare")]).one_line()
    assert "The run has written no metrics yet." in bare
    assert "Nothing has been counted yet." in bare
    run = make_run(tmp_path / "young", [{"timesteps": 250, "wall_time": 2.0, "entropy": 0.6}])
    young = page_of([run]).one_line()
    assert "The run is unfinished: 250 of 1,000 timesteps, 25%." in young
    assert "No game has ended yet." in young
    assert "Steps per second 125 " in young


def test_damaged_files_beside_the_metrics_are_no_obstacle(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    endings = ("", "[]", "{", "{}", '{"starts": 3}', '{"returns": 1' + "0" * 400 + "}", "[" * 5000, "\x00")
    for content in endings:
        for name in ("versions.json", "evaluation.json", "command.txt"):
            (run.path / name).write_text(content)
        assert read_evaluation(run.path) is None
        assert read_runs([run.path])[0].starts == ()
    for name in ("versions.json", "evaluation.json", "command.txt"):
        (run.path / name).unlink()
    assert read_runs([run.path])[0].commands == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"return_mean": float("nan")},
        {"returns": [1.0, "2", 3.0]},
        {"returns": [1.0]},
        {"return_ci95": [1.0]},
        {"protocol": []},
        {"human_normalised": "<b>"},
        {"return_mean": 10**400},
        {"timesteps": "1"},
    ],
    ids=str,
)
def test_an_evaluation_that_acktr_would_not_write_is_none(changes: dict[str, Any], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [{"timesteps": 10}])
    evaluated(run.path)
    assert read_evaluation(run.path) is not None
    evaluated(run.path, **{name: value if value != 10**400 else 0 for name, value in changes.items()})
    if changes.get("return_mean") == 10**400:  # json refuses to write what it reads
        text = (run.path / "evaluation.json").read_text()
        (run.path / "evaluation.json").write_text(text.replace('"return_mean": 0', '"return_mean": 1' + "0" * 400))
    assert read_evaluation(run.path) is None


# --- games ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_games")
def test_an_evaluation_of_the_present_checkpoint_is_taken_as_it_stands(trained: Path, tmp_path: Path) -> None:
    """Also in a copy of the folder, where the checkpoint has another path."""
    copy = shutil.copytree(trained, tmp_path / "copy")
    kept = evaluated(copy)
    for options in ({}, {"episodes": 3}, {"play": False}):
        found = games(copy, **options)
        assert found.evaluation == kept
        assert "evaluation.json" in found.origin


def test_games_are_played_where_the_evaluation_is_of_another_checkpoint_or_too_small(
    trained: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(trained, tmp_path / "copy")
    for steps, episodes in ((-1, 2), (0, 4)):
        kept = evaluated(copy)
        kept = evaluated(copy, timesteps=kept["timesteps"] + steps)
        found = games(copy, episodes=episodes).evaluation
        assert found is not None
        assert found["episodes"] == episodes
        assert read_evaluation(copy) == kept, "the run folder stays as it is"
    silent = games(copy, episodes=4, play=False)
    assert silent.evaluation is None
    assert "fewer games than were asked for" in silent.origin
    evaluated(copy, timesteps=1)
    assert "of another checkpoint" in games(copy, play=False).origin


@pytest.mark.usefixtures("no_games")
def test_a_record_without_checkpoints_keeps_what_it_has(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [{"timesteps": 10}])
    assert "has no checkpoint yet" in games(run.path).origin
    assert games(run.path, play=False) == NOT_PLAYED
    kept = evaluated(run.path)
    for play in (True, False):
        assert games(run.path, play=play, video=True).evaluation == kept


def test_what_fails_costs_its_own_part_of_the_page_alone(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("an OpenGL platform library\nhas not been loaded")

    monkeypatch.setattr(report_games, "record_file", fail)
    found = games(trained, episodes=1, video=True)
    assert found.evaluation is not None
    assert found.film is None
    text = Page(play_section(read_runs([trained]), [found], ["#000000"])).one_line()
    assert "No game could be filmed: an OpenGL platform library has not been loaded." in text
    assert "95 %" not in text, "one game has no interval"
    monkeypatch.setattr(report_games, "evaluate_file", fail)
    assert games(trained).origin == "No game could be played: an OpenGL platform library has not been loaded."


def test_a_long_film_is_cut_and_the_page_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3), dtype=np.uint8)
    imageio.imwrite(tmp_path / "whole.mp4", frames, fps=20)
    monkeypatch.setattr(report_games, "LONGEST_FILM", 0.5)
    report_games._shorten(tmp_path / "whole.mp4", tmp_path / "short.mp4")
    assert len(imageio.imread(tmp_path / "short.mp4")) == 10
    assert (tmp_path / "short.mp4").stat().st_size < (tmp_path / "whole.mp4").stat().st_size / 3
    run = make_run(tmp_path / "run")
    found = dataclasses.replace(NOT_PLAYED, film=Film(data=b"x", seconds=200.0, score=-3.0))
    text = Page(play_section([run], [found], ["#000000"])).text
    assert "The first 60 seconds of a game of 3 min 20 s, raw return \N{MINUS SIGN}3 for the whole game." in text


# --- settings, counters and curves ------------------------------------------------------------------------------------


def test_what_was_changed_stands_first_and_all_else_is_folded(tmp_path: Path) -> None:
    preset = presets.resolve({"env": "CartPole-v1"}).settings()
    # vectorization is what `auto` came to, and A2C's optimizer does nothing here
    changed = dataclasses.replace(preset, seed=4, max_kl=0.5, vectorization="sync", a2c_optimizer="adam")
    runs = [make_run(tmp_path / "a", settings=changed), make_run(tmp_path / "b", settings=preset)]
    assert [setting.name for setting in compare(runs[1:])[1] if setting.stands_out] == []
    assert [setting.name for setting in compare(runs[:1])[1] if setting.stands_out] == ["max_kl"]
    named, compared = compare(runs)
    assert named == ["preset classic-control (family of CartPole-v1)"]
    apart = {setting.name: setting for setting in compared if setting.stands_out}
    assert list(apart) == ["seed", "vectorization", "max_kl"]
    assert apart["max_kl"].changed == (True, False)
    made = settings_section(runs)
    first, _, folded = made.partition("<details>")
    assert "Trust region delta on the KL" in first
    assert '<td class="changed">0.5</td>' in first
    assert "a2c_optimizer" in folded
    assert "without effect" in folded
    assert first.count('scope="row"') + folded.count('scope="row"') == len(compared)


def test_a_setting_without_effect_in_one_run_counts_in_the_other_alone(tmp_path: Path) -> None:
    acktr = make_run(tmp_path / "a", settings=dataclasses.replace(SETTINGS, max_kl=0.5))
    a2c = make_run(tmp_path / "b", settings=dataclasses.replace(SETTINGS, algorithm="a2c", max_kl=0.375))
    (setting,) = [setting for setting in compare([acktr, a2c])[1] if setting.name == "max_kl"]
    assert setting.idle == (False, True)
    assert setting.changed == (True, False)
    first, _, _ = settings_section([acktr, a2c]).partition("<details>")
    assert "0.375" not in first


@pytest.mark.parametrize("form", ["--preset atari-baselines", "--preset=atari-baselines"])
def test_the_preset_of_the_command_is_what_a_run_is_compared_with(form: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", settings=dataclasses.replace(SETTINGS, env="PongNoFrameskip-v4"))
    assert compare([run])[0] == ["preset atari (family of PongNoFrameskip-v4)"]
    (run.path / "command.txt").write_text(f"acktr train --env PongNoFrameskip-v4 {form}\n")
    assert compare(read_runs([run.path]))[0] == ["preset atari-baselines"]
    (run.path / "command.txt").write_text("acktr train --preset mine.yaml 'one quote\n")
    assert compare(read_runs([run.path]))[0] == ["preset atari (family of PongNoFrameskip-v4)"]


def test_an_environment_that_is_not_installed_is_compared_with_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_module_of_a_report.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = [
        dataclasses.replace(SETTINGS, env=env, max_kl=0.5) for env in ("Absent-v0", "broken_module_of_a_report:Own-v0")
    ]
    assert "Own-v0 is not installed here" in compare([make_run(tmp_path / "broken", settings=settings[1])])[0][0]
    named, compared = compare([make_run(tmp_path / "absent", settings=settings[0])])
    assert "Absent-v0 is not installed here" in named[0]
    assert [setting.name for setting in compared if setting.stands_out] == ["total_timesteps", "max_kl"]


def test_guards_that_stepped_in_are_counted(tmp_path: Path) -> None:
    quiet = dict.fromkeys(("decomposition_retries", "stale_inverses", "skipped_batches", "rejected_steps"), 0.0)
    runs = [
        make_run(tmp_path / "calm", [{"timesteps": 10, **quiet}]),
        make_run(tmp_path / "rough", [{"timesteps": 10, **quiet, "skipped_batches": 7.0}]),
    ]
    text = page_of(runs).one_line()
    assert "No guard had to step in" not in text
    assert "rough 0 0 7 0" in text
    assert "calm 0 0 0 0" in text


def test_runs_have_the_colours_of_their_curves(tmp_path: Path) -> None:
    rows = [{"timesteps": 10, "return_mean": 3.0}, {"timesteps": 20, "return_mean": 4.0}]
    other = dataclasses.replace(SETTINGS, max_kl=0.5)
    seeds = [dataclasses.replace(SETTINGS, seed=seed) for seed in range(2)]
    a, b = (make_run(tmp_path / f"seed{index}", rows, settings) for index, settings in enumerate(seeds))
    c = make_run(tmp_path / "other", rows, other)
    young = make_run(tmp_path / "young", [], dataclasses.replace(SETTINGS, max_kl=0.25))
    assert len(set(colours([a, b]))) == 2, "of one curve alone, each run has its own"
    grouped = colours([young, a, b, c])
    assert grouped[1] == grouped[2] != grouped[3] != grouped[0]
    curve = learning_curve([young, a, b, c]).decode()
    assert [re.search(colour, curve) is not None for colour in grouped] == [False, True, True, True]
    assert curve.index(grouped[1]) < curve.index(grouped[3])


def test_names_that_would_be_formulas_are_drawn_as_they_stand(tmp_path: Path) -> None:
    rows = [{"timesteps": 10, "return_mean": 3.0}]
    run = make_run(tmp_path / "run", rows, dataclasses.replace(SETTINGS, env="$\\frac{$"))
    assert b"<svg" in learning_curve([run])


def test_values_that_no_picture_can_show_are_left_out(tmp_path: Path) -> None:
    infinite = float("inf")
    rows = [
        {"timesteps": 10, "kl_measured": 0.0, "explained_variance": -5000.0, "value_loss": infinite},
        {"timesteps": 20, "kl_measured": 0.1, "explained_variance": 0.5, "value_loss": infinite},
    ]
    run = make_run(tmp_path / "run", rows)
    assert run.series("value_loss") == ([], [])
    assert run.newest("value_loss") == infinite
    panels = {panel.columns[0]: panel_picture(panel, [run], ["#000000"]) for panel in PANELS}
    assert panels["kl_measured"] is not None
    assert panels["explained_variance"] is not None
    assert panels["value_loss"] is None
    assert panels["damping"] is None


def test_runs_of_one_name_are_told_apart_and_each_is_read_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        make_run(tmp_path / name / "seed0")
    twice = [tmp_path / "a" / "seed0", tmp_path / "b" / "seed0", tmp_path / "a" / ".." / "a" / "seed0"]
    assert [run.name for run in read_runs(twice)] == ["a/seed0", "b/seed0"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\u2013"),
        (1_000_480.0, "1,000,480"),
        (5213.98, "5,214"),
        (489.312, "489.3"),
        (0.012345, "0.0123"),
        (-20.375, "\u221220.4"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_have_the_digits_that_say_something(value: float | None, text: str) -> None:
    assert number(value) == text


def test_durations_values_and_lists_are_as_people_say_them() -> None:
    assert [duration(seconds) for seconds in (7.24, 59.7, 114, 7500, None)] == [
        "7.2 s",
        "1 min 0 s",
        "1 min 54 s",
        "2 h 5 min",
        "\u2013",
    ]
    assert [shown(value) for value in (True, 1_000_000, 1e-5, (64, 64))] == ["yes", "1,000,000", "1e-05", "64, 64"]
    assert [in_words(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


# --- callers' errors --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_games")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "takes one run folder or more"),
        (["absent"], "no such folder"),
        (["RUN", "-o", "page.txt"], "reports are HTML"),
        (["RUN", "-o", "absent/page.html"], "there is no folder absent"),
        (["RUN", "-o", "folder.html"], "it is a folder"),
        (["RUN", "--device", "tpu"], "takes auto, cpu, cuda or cuda:N"),
        (["RUN", "--episodes", "0"], "--episodes takes a whole number of at least 1"),
        (["RUN", "--sead", "3"], "has no flag --sead; nearest: --seed"),
    ],
    ids=str,
)
def test_a_callers_error_is_one_line_and_nothing_is_written(
    words: list[str],
    message: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    assert cli.main(["report", *(str(trained) if word == "RUN" else word for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["folder.html"]


def test_a_full_disk_leaves_the_page_before(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    output = tmp_path / "report.html"
    output.write_text("before")
    with full_disk(2000), pytest.raises(UserError, match="cannot be written"):
        write_report([run.path], output, episodes=None, play=False, video=False, seed=0, device="auto")
    assert output.read_text() == "before"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.html", "run"]
