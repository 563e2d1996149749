"""How an update's time grows with processes and environments: a model fitted to some runs, and asked about others.

All runs take turns for several rounds, and medians over the rounds count. The model (scaling_model.py) is fitted to one
part of the runs; the rest is what it must predict. What it says of more processes than were ever measured, and of GPUs,
is an extrapolation under the assumptions in `GPU`, and is labelled as one.

    python benchmarks/scaling.py --json scaling.json --plot scaling.png
    python benchmarks/scaling.py --from scaling.json other.json --plot scaling.png    # rounds of both together
"""

import argparse
import dataclasses
import json
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from acktr.process import tune

    tune()  # as `acktr train` does; before torch is imported

import torch
from arguments import count, in_one_line, output, picture
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from origin import commit, in_words, machine
from phase_clock import PhaseClock, clocked
from processes import in_processes, settings_of, trainer_of
from scaling_model import PARTS, Load, Model, fit

from acktr.agents.acktr import ACKTRUpdater
from acktr.agents.settings import Settings
from acktr.agents.world import World, joined
from acktr.errors import UserError
from acktr.kfac.distributed import owners
from acktr.kfac.placement import refresh_cost

TOLERANCE = 0.15
"""By how much a prediction may be off."""

WARM_UP = 3
UPDATES = {"BreakoutNoFrameskip-v4": 20, "HalfCheetah-v5": 100}
"""That are clocked: as many as lie between two refreshes of an inverse, or a multiple of it. The speed of a shared
machine changes by the seconds, so that short updates are clocked more often: 20 of them differ by a half."""

SETTLED_STEPS = 10_000
"""Steps after which K-FAC's intervals have their full length; a multiple of all of them."""

BREAKOUT = {"env": "BreakoutNoFrameskip-v4", "num_steps": 20}
CHEETAH = {"env": "HalfCheetah-v5", "num_steps": 32}

FITTED: tuple[tuple[int, dict[str, Any]], ...] = (
    (1, {**BREAKOUT, "num_envs": 16}),
    (1, {**BREAKOUT, "num_envs": 64}),
    (2, {**BREAKOUT, "num_envs": 16}),
    (2, {**BREAKOUT, "num_envs": 64, "inverse_interval": 5}),
    (1, {**CHEETAH, "num_envs": 16}),
    (1, {**CHEETAH, "num_envs": 32}),
    (1, {**CHEETAH, "num_envs": 64}),
    (2, {**CHEETAH, "num_envs": 32}),
)
PREDICTED: tuple[tuple[int, dict[str, Any]], ...] = (
    (1, {**BREAKOUT, "num_envs": 32}),
    (1, {**BREAKOUT, "num_envs": 32, "inverse_interval": 5}),
    (2, {**BREAKOUT, "num_envs": 32}),
    (2, {**BREAKOUT, "num_envs": 32, "inverse_placement": "owner"}),
    (2, {**BREAKOUT, "num_envs": 64}),
    (2, {**BREAKOUT, "num_envs": 128}),
    (4, {**BREAKOUT, "num_envs": 64}),
    (4, {**BREAKOUT, "num_envs": 128}),
    (2, {**CHEETAH, "num_envs": 16}),
    (2, {**CHEETAH, "num_envs": 64}),
    (2, {**CHEETAH, "num_envs": 64, "inverse_placement": "owner"}),
    (4, {**CHEETAH, "num_envs": 64}),
)
"""Processes and settings; with more processes than cores they share these."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What stands in for measurements that were not made: factors by which a GPU with its CPU cores is faster.

    Attributes:
        environments: at environments' steps: cores of a host to each of its GPUs.
        step: at what a step of the rollout costs whatever the number of environments: launches in place of calls.
        rows: at the passes through the network.
        update: at what an update costs whatever the rows.
        decomposition: at the n^3 of a decomposition.
        hop: seconds of a message between GPUs.
        bandwidth: bytes per second out of each GPU.
    """

    environments: float = 8.0
    step: float = 1.0
    rows: float = 50.0
    update: float = 2.0
    decomposition: float = 10.0
    hop: float = 2e-5
    bandwidth: float = 5e10

    def applied(self, model: Model) -> Model:
        """The model of a CPU's processes made one of GPUs."""
        return dataclasses.replace(
            model,
            rollout={task: (a / self.step, b / self.environments) for task, (a, b) in model.rollout.items()},
            rows={task: (u / self.update, v / self.rows) for task, (u, v) in model.rows.items()},
            inverses=(model.inverses[0], model.inverses[1] / self.decomposition),
            messages=(self.hop, 1 / self.bandwidth),
        )


GPU = Assumptions()
PROCESSES = (1, 2, 4, 8, 16, 32, 64)


# --- measuring ---------------------------------------------------------------------------------------------------


def measured(case: Mapping[str, Any]) -> dict[str, Any] | None:
    """Seconds of an update by part and what it asks of a process; None on all ranks but the first."""
    settings = settings_of(case)
    updates = UPDATES[settings.env]
    with joined(timeout=300.0) as world:
        trainer = trainer_of(settings, world)
        updater, part = trainer.updater, world.part(settings.num_envs)
        assert isinstance(updater, ACKTRUpdater)
        for _ in range(WARM_UP):
            updater.update(trainer._collect(), progress=0.1)
        learners = updater._learners().values()
        for learner in learners:
            learner.optimizer.estimate.steps = SETTLED_STEPS
        groups = [ranks for ranks in (part.ranks, part.hosts) if ranks is not None]
        for ranks in groups:
            ranks.bytes_sent.clear()
            ranks.messages_sent.clear()
        clock = PhaseClock()
        with clocked(clock):
            world.gather(None)  # so that all begin together
            clock.start()
            for _ in range(updates):
                with clock("rollout"):
                    batch = trainer._collect()
                with clock("update"):
                    updater.update(batch, progress=0.1)
                clock.lap()
        trainer.collector.environment.close()
        everyone = world.gather([_by_part(lap) for lap in clock.laps])
        if not world.leads:
            return None
        number, size = Counter[str](), Counter[str]()
        for ranks in groups:
            number += ranks.messages_sent
            size += ranks.bytes_sent
        load = _load(settings, world, updater, number, size)
        return {"seconds": _together(everyone), "load": dataclasses.asdict(load)}


def _by_part(lap: dict[str, float]) -> dict[str, float]:
    """Seconds of one process's update by part; "messages" are what it waited for."""
    found = dict.fromkeys(PARTS, 0.0)
    for path, seconds in lap.items():
        if path.endswith("::communication"):
            found["messages"] += seconds
        elif "kfac::inverses" in path:
            found["inverses"] += seconds
        else:
            found["rollout" if path.startswith("rollout") else "rows"] += seconds
    return found


def _together(everyone: list[list[dict[str, float]]]) -> dict[str, float]:
    """Of all processes, means over the updates: work, inverses of whoever has most in an update, and what is left."""
    whole = max(statistics.mean(sum(lap.values()) for lap in laps) for laps in everyone)
    rollout, rows = (statistics.mean(lap[part] for laps in everyone for lap in laps) for part in ("rollout", "rows"))
    inverses = statistics.mean(max(lap["inverses"] for lap in laps) for laps in zip(*everyone, strict=True))
    rest = whole - rollout - rows - inverses if len(everyone) > 1 else 0.0
    return {"rollout": rollout, "rows": rows, "inverses": inverses, "messages": max(0.0, rest), "whole": whole}


def _load(settings: Settings, world: World, updater: ACKTRUpdater, number: Counter[str], size: Counter[str]) -> Load:
    updates = UPDATES[settings.env]
    refreshes = cubes = 0.0
    for learner in updater._learners().values():
        units, pace = learner.optimizer.units, learner.optimizer.estimate.pace
        costs = [refresh_cost(unit) for unit in units]
        owner = owners(costs, world.size)
        iterations = settings.critic_iterations if learner is updater.critic else 1
        for step in range(SETTLED_STEPS, SETTLED_STEPS + updates * iterations):
            work: dict[int, list[float]] = {rank: [] for rank in range(world.size)}
            for index, cost in enumerate(costs):
                if cost and pace.is_due(index, len(units), steps=step):
                    work[owner[index]].append(cost)
            longest = max(work.values(), key=sum)
            refreshes += len(longest) / updates
            cubes += sum(longest) / updates
    spread = ("inverses", "directions")
    added = [kind for kind in number if kind not in spread]
    # ended episodes travel as objects, with their sizes before them: a gather has half the hops of a sum
    return Load(
        task=settings.env,
        processes=world.size,
        cores=machine()["cores"],
        steps=settings.num_steps,
        environments=-(-settings.num_envs // world.size),
        refreshes=refreshes,
        cubes=cubes,
        sums=sum(number[kind] for kind in added) / updates + (not world.is_alone),
        sum_bytes=sum(size[kind] for kind in added) / updates,
        broadcasts=sum(number[kind] for kind in spread) / updates,
        broadcast_bytes=sum(size[kind] for kind in spread) / updates,
    )


def measure(rounds: int) -> list[dict[str, Any]]:
    """All runs, in turn."""
    cases = [*FITTED, *PREDICTED]
    found: list[list[dict[str, Any]]] = [[] for _ in cases]
    for turn in range(rounds):
        for results, (processes, case) in zip(found, cases, strict=True):
            results.append(in_processes(__file__, ["--case", json.dumps(case)], processes))
            seconds = results[-1]["seconds"]["whole"]
            print(f"round {turn + 1}: {name(processes, case):<66}{1e3 * seconds:9.1f} ms", file=sys.stderr, flush=True)
    return [
        {"case": case, "load": results[0]["load"], "rounds": [result["seconds"] for result in results]}
        for results, (_, case) in zip(found, cases, strict=True)
    ]


def together(sittings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Records of one machine as one: each run with all of its rounds, their medians, and what it is there for."""
    runs = []
    for kind, group in (("fitted", FITTED), ("predicted", PREDICTED)):
        for processes, case in group:
            same = [
                run
                for content in sittings
                for run in content["runs"]
                if (run["load"]["processes"], run["case"]) == (processes, case)
            ]
            if not same:
                raise UserError(f"--from: no run of {name(processes, case)}; measure anew")
            rounds = [seconds for run in same for seconds in run["rounds"]]
            medians = {part: statistics.median(seconds[part] for seconds in rounds) for part in (*PARTS, "whole")}
            load = same[0]["load"]
            runs.append({"kind": kind, "case": case, "load": load, "seconds": medians, "rounds": rounds})
    whole = {**sittings[0], "rounds": sum(content["rounds"] for content in sittings), "runs": runs}
    return whole | {"commits": [content["commit"] for content in sittings]}


def name(processes: int, case: Mapping[str, Any]) -> str:
    """A run in words."""
    more = [f"{key} {value}" for key, value in case.items() if key not in ("env", "num_envs", "num_steps")]
    return ", ".join([f"{case['env']} {case['num_envs']} x {case['num_steps']}", f"processes {processes}", *more])


# --- figures -----------------------------------------------------------------------------------------------------


def fitted(runs: list[dict[str, Any]]) -> Model:
    """The model that the runs for it give."""
    return fit([(Load(**run["load"]), run["seconds"]) for run in runs if run["kind"] == "fitted"])


def errors(runs: list[dict[str, Any]], model: Model, kind: str) -> list[float]:
    """Relative, of an update's time, of all runs of that kind."""
    chosen = [run for run in runs if run["kind"] == kind]
    return [model.seconds(Load(**run["load"])) / run["seconds"]["whole"] - 1 for run in chosen]


def grown(run: Mapping[str, Any], processes: int, *, total: int | None) -> Load:
    """What a run asks with so many processes, each of its own core.

    Args:
        run: of two processes.
        processes: R.
        total: environments of all processes together; None lets each have 16.
    """
    load = Load(**run["load"])
    environments = 16 if total is None else -(-total // processes)
    return dataclasses.replace(load, processes=processes, cores=max(processes, 2), environments=environments)


def extrapolated(runs: list[dict[str, Any]], model: Model) -> dict[str, list[float]]:
    """Steps per second of 1 to 64 processes, by what they are."""
    (run,) = (run for run in runs if run["load"]["processes"] == 2 and run["case"] == {**BREAKOUT, "num_envs": 32})
    found = {}
    for kind, chosen in (("CPU cores", model), ("GPUs, assumed", GPU.applied(model))):
        for growth, total in (("16 environments each", None), ("1,024 environments in all", 1024)):
            loads = [grown(run, processes, total=total) for processes in PROCESSES]
            rates = [load.processes * load.rows / chosen.seconds(load) for load in loads]
            found[f"{kind}, {growth}"] = rates
    return found


def report(content: Mapping[str, Any], model: Model) -> None:
    """Print the model, what it says of each run, and the extrapolation."""
    print(f"commit {in_words(content)}; torch {content['torch']}; {content['machine']['cpu']}, ", end="")
    print(f"{content['machine']['cores']} cores; milliseconds of an update, medians of {content['rounds']} rounds")
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        for task, terms in value.items() if isinstance(value, Mapping) else [("", value)]:
            print(f"  {field.name:<10}{task:<26}" + "".join(f"{term:12.3g}" for term in terms))
    print(f"\n{'':<72}{'measured':>9}{'model':>9}{'error':>8}   " + "".join(f"{part:>18}" for part in PARTS))
    for run in content["runs"]:
        load, seconds = Load(**run["load"]), run["seconds"]
        said, whole = model.predict(load), model.seconds(load)
        title = name(load.processes, run["case"]) + (" *" if run["kind"] == "fitted" else "")
        parts = "".join(f"{1e3 * seconds[part]:10.1f}{f'({1e3 * said[part]:.1f})':>8}" for part in PARTS)
        error = 100 * (whole / seconds["whole"] - 1)
        print(f"{title:<72}{1e3 * seconds['whole']:9.1f}{1e3 * whole:9.1f}{error:+7.1f}%   {parts}")
    for kind in ("fitted", "predicted"):
        found = errors(content["runs"], model, kind)
        print(f"{kind}{' (*)' if kind == 'fitted' else ''}: largest error {100 * max(map(abs, found)):.1f} %, ", end="")
        print(f"{sum(abs(error) <= TOLERANCE for error in found)} of {len(found)} within {100 * TOLERANCE:.0f} %")
    print("\nextrapolation, no measurement: BreakoutNoFrameskip-v4, steps per second (per process, of one alone)")
    print(f"{'processes':<44}" + "".join(f"{number:>16}" for number in PROCESSES))
    for kind, rates in extrapolated(content["runs"], model).items():
        cells = (f"{rate:,.0f} ({rate / rates[0] / number:.2f})" for rate, number in zip(rates, PROCESSES, strict=True))
        print(f"{kind:<44}" + "".join(f"{cell:>16}" for cell in cells))
    print(f"GPUs are assumed, nothing of them was measured: {GPU}")


def draw(path: Path, content: Mapping[str, Any], model: Model) -> None:
    """Predicted against measured times, and the extrapolation."""
    figure = Figure(figsize=(11.5, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    whole = [1e3 * run["seconds"]["whole"] for run in content["runs"]]
    ends = [0.8 * min(whole), 1.25 * max(whole)]
    left.fill_between(
        ends,
        [(1 - TOLERANCE) * end for end in ends],
        [(1 + TOLERANCE) * end for end in ends],
        color="0.9",
        label=f"within {100 * TOLERANCE:.0f} %",
    )
    for kind, face in (("fitted", "none"), ("predicted", None)):
        for processes, colour in ((1, "#0072b2"), (2, "#d55e00"), (4, "#009e73")):
            chosen = [run for run in content["runs"] if (run["kind"], run["load"]["processes"]) == (kind, processes)]
            if chosen:
                x = [1e3 * run["seconds"]["whole"] for run in chosen]
                y = [1e3 * model.seconds(Load(**run["load"])) for run in chosen]
                left.scatter(x, y, edgecolors=colour, facecolors=face or colour, label=f"{processes}, {kind}", zorder=3)
    left.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    left.set_xlabel("measured, milliseconds of an update")
    left.set_ylabel("model")
    left.set_title("processes of one machine: model and measurement", fontsize=10)
    left.legend(frameon=False, fontsize=8)
    for kind, rates in extrapolated(content["runs"], model).items():
        style = {"color": "#d55e00" if "GPU" in kind else "#0072b2", "linestyle": "--" if "in all" in kind else "-"}
        right.plot(PROCESSES, rates, marker="o", markersize=4, label=kind, **style)
    right.set(xscale="log", yscale="log")
    right.set_xticks(PROCESSES, [str(number) for number in PROCESSES])
    right.minorticks_off()
    right.set_xlabel("processes")
    right.set_ylabel("environment steps per second")
    right.set_title("EXTRAPOLATION by the model: Breakout, 20 steps an update", fontsize=10)
    right.grid(alpha=0.3, which="both", linewidth=0.5)
    right.legend(frameon=False, fontsize=8)
    figure.suptitle(
        f"{content['machine']['cpu']}, {content['machine']['cores']} cores, commit {content['commit']}", fontsize=9
    )
    figure.savefig(path, dpi=120)


def read(source: Path) -> dict[str, Any]:
    """Figures of `--json`.

    Raises:
        UserError: the file holds something else.
    """
    try:
        content: dict[str, Any] = json.loads(source.read_text())
        content["runs"], content["rounds"], content["commit"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"--from {source} is no record of this program: {error!r}") from error
    return content


@in_one_line
def main() -> None:
    """Measure, or read what was measured; fit, print, and draw with `--plot`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--json", type=output, help="keep the figures there")
    parser.add_argument("--from", dest="sources", type=Path, nargs="+", help="figures of `--json` in place of new ones")
    parser.add_argument("--plot", type=picture)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        found = measured(json.loads(args.case))
        if found is not None:
            print(json.dumps(found))
        return
    if args.sources is None:
        measurement = {**commit(), "machine": machine(), "torch": torch.__version__, "rounds": args.rounds}
        sittings = [measurement | {"runs": measure(args.rounds)}]
    else:
        sittings = [read(source) for source in args.sources]
    content = together(sittings)
    model = fitted(content["runs"])
    content |= {"model": dataclasses.asdict(model), "assumed": dataclasses.asdict(GPU)}
    content["extrapolated"] = extrapolated(content["runs"], model)
    report(content, model)
    if args.json:
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    if args.plot:
        draw(args.plot, content, model)


if __name__ == "__main__":
    main()
