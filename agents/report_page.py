"""The page of a report: one HTML file with its pictures and films inside, which asks nothing of the network."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from acktr.agents.report_games import Games
from acktr.agents.report_markup import Markup, definitions, element, joined, picture, swatch, table, with_versions
from acktr.agents.report_numbers import NONE, duration, in_words, number, shown
from acktr.agents.report_pictures import PANELS, colours, learning_curve, panel_picture
from acktr.agents.report_play import mean_of, play_section
from acktr.agents.report_runs import RunFiles
from acktr.agents.report_settings import settings_section
from acktr.agents.report_style import CSS

_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
"""Nothing is fetched and no script runs, whatever stood in the files that the page is made of."""

_GUARDS = {
    "decomposition_retries": "decompositions tried again",
    "stale_inverses": "inverses kept because a refresh failed",
    "skipped_batches": "batches skipped as not finite",
    "rejected_steps": "steps that the line search took back",
}

_ALIKE = ("Wall time", "Steps per second")
"""Facts of which there is the same to know in every run."""

_PROVENANCE = {
    "started": "started",
    "python": "Python",
    "platform": "platform",
    "cpu": "processor",
    "cpus_usable": "cores",
    "processes": "processes",
    "torch_threads": "torch threads",
    "cuda": "CUDA",
    "gpus": "GPUs",
    "packages": "packages",
}


def page(
    runs: Sequence[RunFiles], games: Sequence[Games], *, written: datetime.date, versions: Mapping[str, str | None]
) -> str:
    """The whole page.

    Args:
        runs: one or more.
        games: of each run.
        written: the day.
        versions: of the packages that write it.
    """
    palette = colours(runs)
    sections = (
        ("summary", "Summary", _summary(runs, games, palette)),
        ("learning", "Learning curve", _learning(runs)),
        ("training", "Training", _training(runs, palette)),
        ("guards", "Guards", _guards(runs)),
        ("play", "At play", play_section(runs, games, palette)),
        ("settings", "Settings", settings_section(runs)),
        ("provenance", "Commands and versions", _provenance(runs)),
    )
    seeds = sorted({run.settings.seed for run in runs})
    named = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    subtitle = f"{named}, {'seeds' if len(seeds) > 1 else 'seed'} {in_words([str(seed) for seed in seeds])}"
    body = element(
        "body",
        element(
            "header",
            element("h1", _title(runs)),
            element("p", subtitle, class_="quiet"),
            element(
                "nav",
                element(
                    "ul", *(element("li", element("a", title, href=f"#{anchor}")) for anchor, title, _ in sections)
                ),
                aria_label="Sections",
            ),
        ),
        element(
            "main",
            *(
                element("section", element("h2", title, id=f"{anchor}-title"), content, id=anchor, **_labelled(anchor))
                for anchor, title, content in sections
            ),
        ),
        element(
            "footer",
            "Written on ",
            element("time", f"{written.day} {written:%B %Y}", datetime=written.isoformat()),
            f" by acktr report; {with_versions(versions)}.",
        ),
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("title", f"{_title(runs)}, {subtitle}"),
        element("style", Markup(CSS)),
    )
    return "<!DOCTYPE html>\n" + element("html", head, body, lang="en") + "\n"


def _title(runs: Sequence[RunFiles]) -> str:
    algorithms = in_words(list(dict.fromkeys(run.settings.algorithm.upper() for run in runs)))
    environments = list(dict.fromkeys(run.settings.env for run in runs))
    return f"{algorithms} on {in_words(environments) if len(environments) < 4 else f'{len(environments)} environments'}"


def _labelled(anchor: str) -> dict[str, str]:
    return {"aria_labelledby": f"{anchor}-title"}


# --- the numbers --------------------------------------------------------------------------------------------------


def _summary(runs: Sequence[RunFiles], games: Sequence[Games], palette: Sequence[str]) -> Markup:
    notices = [element("p", text, class_="notice") for run in runs if (text := _unfinished(run, len(runs)))]
    facts = [_facts(run, found) for run, found in zip(runs, games, strict=True)]
    if len(runs) == 1:
        tiles = [
            element("div", element("dt", title), element("dd", element("strong", value), element("small", detail)))
            for title, (value, detail) in facts[0].items()
        ]
        return joined(*notices, element("dl", *tiles, class_="tiles"))
    rows = [
        element(
            "tr",
            element("th", swatch(colour), run.name, element("small", _what(run)), scope="row", class_="setting"),
            *(
                element("td", value, Markup() if title in _ALIKE else element("small", detail))
                for title, (value, detail) in own.items()
            ),
        )
        for run, own, colour in zip(runs, facts, palette, strict=True)
    ]
    return joined(*notices, table(["Run", *facts[0]], rows, caption="Summary of the runs"))


def _facts(run: RunFiles, games: Games) -> dict[str, tuple[str, str]]:
    """By title: a value, and what to know about it."""
    mean, deviation, episodes = (run.newest(name) for name in ("return_mean", "return_std", "episodes"))
    steps, seconds = run.newest("timesteps"), run.newest("wall_time")
    facts = {"Return in training": (NONE, "no game has ended yet")}
    if mean is not None:
        last = f"last {number(min(100.0, episodes))} games" if episodes and episodes > 1 else "only game"
        spread = "the" if deviation is None else f"\u00b1 {number(deviation)} over the"
        facts = {"Return in training": (number(mean), f"{spread} {last}")}
    found = games.evaluation
    facts["Evaluation"] = (NONE, "none")
    if found is not None:
        facts["Evaluation"] = (number(found["return_mean"]), f"mean of {mean_of(found)}")
    total = run.settings.total_timesteps
    done = steps is not None and steps >= total
    facts["Timesteps"] = (number(steps), "finished" if done else f"of {total:,}")
    facts["Wall time"] = (duration(seconds), "in the training loop")
    speed = steps / seconds if steps and seconds else None
    facts["Steps per second"] = (number(speed), "over the whole run")
    return facts


def _what(run: RunFiles) -> str:
    return f"{run.settings.algorithm.upper()} on {run.settings.env}, seed {run.settings.seed}"


def _unfinished(run: RunFiles, count: int) -> str:
    name = f"{run.name}: " if count > 1 else ""
    steps, total = run.newest("timesteps"), run.settings.total_timesteps
    if steps is None:
        return f"{name}The run has written no metrics yet."
    if steps >= total:
        return ""
    return f"{name}The run is unfinished: {number(steps)} of {total:,} timesteps, {steps / total:.0%}."


def _guards(runs: Sequence[RunFiles]) -> Markup:
    counts = [[run.newest(name) for name in _GUARDS] for run in runs]
    if all(value is None for row in counts for value in row):
        return element("p", "Nothing has been counted yet.")
    if not any(value for row in counts for value in row):
        return element(
            "p",
            "No guard had to step in: every decomposition succeeded at once, no inverse went stale, no batch was "
            "skipped and no step was taken back.",
        )
    rows = [
        element("tr", element("th", run.name, scope="row"), *(element("td", number(value)) for value in row))
        for run, row in zip(runs, counts, strict=True)
    ]
    words = [f"{name.replace('_', ' ')}: {meaning}" for name, meaning in _GUARDS.items()]
    return joined(
        element("p", f"Counts since the start of each run. {'; '.join(words).capitalize()}."),
        table(["Run", *(name.replace("_", " ").capitalize() for name in _GUARDS)], rows, caption="Guards"),
    )


# --- pictures -----------------------------------------------------------------------------------------------------


def _learning(runs: Sequence[RunFiles]) -> Markup:
    ends = [
        f"{run.name} from {number(values[0])} to {number(values[-1])}"
        for run in runs
        if (values := run.series("return_mean")[1])
    ]
    if not ends:
        return element("p", "No game has ended yet.")
    alternative = f"Mean raw return of the last 100 games over timesteps: {'; '.join(ends)}."
    caption = "Raw, unclipped returns of full games in training."
    return element("figure", picture(learning_curve(runs), alternative), element("figcaption", caption), class_="card")


def _training(runs: Sequence[RunFiles], palette: Sequence[str]) -> Markup:
    figures = []
    for panel in PANELS:
        drawn = panel_picture(panel, runs, palette)
        if drawn is not None:
            ends = [
                f"{run.name} ends at {number(values[-1])}"
                for run in runs
                if (values := run.series(panel.columns[0])[1])
            ]
            figures.append(
                element(
                    "figure",
                    element("h3", panel.title),
                    picture(drawn, f"{panel.title} over timesteps: {'; '.join(ends) or 'predicted values only'}."),
                    element("figcaption", panel.meaning),
                    class_="card",
                )
            )
    if not figures:
        return element("p", "Nothing has been measured yet.")
    text = (
        "Every picture runs over timesteps." if len(runs) == 1 else "Every picture runs over timesteps, a line a run."
    )
    return joined(element("p", text, class_="quiet"), _legend(runs, palette), element("div", *figures, class_="panels"))


def _legend(runs: Sequence[RunFiles], palette: Sequence[str]) -> Markup:
    if len(runs) == 1:
        return Markup()
    items = [
        element(
            "li", swatch(colour), in_words([run.name for run, own in zip(runs, palette, strict=True) if own == colour])
        )
        for colour in dict.fromkeys(palette)
    ]
    return element("ul", *items, class_="legend", aria_label="Colours of the runs")


# --- provenance -----------------------------------------------------------------------------------------------------


def _provenance(runs: Sequence[RunFiles]) -> Markup:
    articles = []
    for run in runs:
        parts = [element("h3", run.name)]
        parts += [element("pre", element("code", command)) for command in run.commands]
        if not run.commands:
            parts.append(element("p", "The folder has no command.txt."))
        if run.starts:
            parts.append(definitions(_origin(run.starts[-1])))
        else:
            parts.append(element("p", "The folder has no versions.json."))
        if len(run.starts) > 1:
            earlier = [element("li", definitions(_origin(start))) for start in run.starts[:-1]]
            parts.append(element("details", element("summary", "Earlier starts"), element("ol", *earlier)))
        articles.append(element("article", *parts, class_="card run"))
    return joined(*articles)


def _origin(start: Mapping[str, Any]) -> dict[str, str]:
    facts = {title: shown(start[name]) for name, title in _PROVENANCE.items() if start.get(name)}
    packages = start.get("packages")
    if isinstance(packages, Mapping):
        facts["packages"] = with_versions(packages)
    return facts
