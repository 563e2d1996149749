"""What a report shows of the games: an evaluation's returns and protocol, and a film."""

from collections.abc import Mapping, Sequence
from typing import Any

from acktr.agents.report_games import LONGEST_FILM, Film, Games
from acktr.agents.report_markup import Markup, data, definitions, element, joined, picture, with_versions
from acktr.agents.report_numbers import duration, number, shown
from acktr.agents.report_pictures import returns_picture
from acktr.agents.report_runs import RunFiles


def play_section(runs: Sequence[RunFiles], games: Sequence[Games], palette: Sequence[str]) -> Markup:
    """A card for each run; where nothing was played for any of them, only why.

    Args:
        runs: one or more.
        games: of each run.
        palette: a colour for each run.
    """
    told_alike = {(found.origin, found.no_film) for found in games}
    if len(told_alike) == 1 and not any(found.evaluation or found.film for found in games):
        return joined(*(element("p", text) for text in dict.fromkeys((games[0].origin, games[0].no_film)) if text))
    articles = []
    for run, found, colour in zip(runs, games, palette, strict=True):
        told = [_evaluated(found, colour)]
        if found.film is not None:
            told.append(_film(found.film, run))
        elif found.no_film and found.no_film != found.origin:
            told.append(element("p", found.no_film))
        title = element("h3", run.name) if len(runs) > 1 else Markup()
        articles.append(element("article", title, element("div", *told, class_="game"), class_="card run"))
    return joined(*articles)


def mean_of(evaluation: Mapping[str, Any]) -> str:
    """How many games an evaluation's mean is of, and how certain it is."""
    games = _games(evaluation["episodes"])
    if evaluation["return_ci95"] is None:
        return games
    low, high = evaluation["return_ci95"]
    return f"{games}, 95 % interval {number(low)} to {number(high)}"


def _evaluated(games: Games, colour: str) -> Markup:
    found = games.evaluation
    if found is None:
        return element("div", element("p", games.origin))
    mean = f"Mean return {number(found['return_mean'])} of {mean_of(found)}, median {number(found['return_median'])}"
    deviation = "" if found["return_std"] is None else f", standard deviation {number(found['return_std'])}"
    sentences = [f"{mean}{deviation}.", f"A game takes {number(found['length_mean'])} decisions on average."]
    if found["human_normalised"] is not None:
        sentences.append(
            f"Human-normalised {number(found['human_normalised'])}, where 0 is random play and 1 a human tester."
        )
    if found["truncated"]:
        sentences.append(f"A limit of time ended {_games(found['truncated'])}.")
    if found["stalled"]:
        sentences.append(f"{_games(found['stalled']).capitalize()} stalled: the policy waits for ever.")
    returns = found["returns"]
    alternative = f"Returns of {_games(len(returns))}, from {number(min(returns))} to {number(max(returns))}."
    caption = "Each dot is a game; the line is their mean" + (
        ", the band its 95 % interval." if found["return_ci95"] is not None else "."
    )
    source = f"At {number(found['timesteps'])} timesteps. {games.origin}"
    return element(
        "div",
        element("p", " ".join(sentences)),
        element(
            "figure",
            picture(returns_picture(returns, found["return_ci95"], colour), alternative),
            element("figcaption", caption),
        ),
        element("p", element("small", source)),
        element("details", element("summary", "Protocol"), definitions(_flat(found["protocol"]))),
    )


def _film(film: Film, run: RunFiles) -> Markup:
    score = "" if film.score is None else f", raw return {number(film.score)}"
    text = f"A whole game of {duration(film.seconds)}{score}."
    if film.seconds > LONGEST_FILM:
        start = f"The first {LONGEST_FILM:.0f} seconds of a game of {duration(film.seconds)}"
        text = f"{start}{score} for the whole game."
    return element(
        "figure",
        element(
            "video",
            element("p", "This browser does not play mp4 films."),
            src=data("video/mp4", film.data),
            controls=True,
            playsinline=True,
            preload="metadata",
            aria_label=f"The policy of {run.name} plays {run.settings.env}",
        ),
        element("figcaption", text),
        class_="film",
    )


def _games(count: int) -> str:
    return "1 game" if count == 1 else f"{count:,} games"


def _flat(protocol: Mapping[str, Any]) -> dict[str, str]:
    facts = {str(name).replace("_", " "): shown(value) for name, value in protocol.items() if value is not None}
    versions = protocol.get("versions")
    if isinstance(versions, Mapping):
        facts["versions"] = with_versions(versions)
    return facts
