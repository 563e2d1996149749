"""Training steps per second of ACKTR, A2C and stable-baselines3's A2C and PPO, what an update costs, and the memory.

All contestants train in processes of their own, one at a time and in turn, for several rounds. A ratio is taken within
each round, since a machine's speed drifts; medians over the rounds are shown, with the lowest and the highest. Without
`--env` BreakoutNoFrameskip-v4 at 16x20, 32x20 and 128x20 and HalfCheetah-v5 follow one another. Needs
`pip install -e ".[bench]"` for stable-baselines3.

    python benchmarks/throughput.py --json throughput.json
    python benchmarks/throughput.py --env BreakoutNoFrameskip-v4 --num-envs 16 --num-steps 20
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from typing import Any

from arguments import amount, change, count, in_one_line, output
from origin import commit, in_words, machine

CONTESTANTS = ("emulator", "a2c", "acktr", "sb3-a2c", "sb3-ppo", "a2c-float32", "acktr-float32")
ON_REQUEST = ("acktr-overlap", "sb3-a2c-subproc")
CONFIGURATIONS: tuple[tuple[str, int | None, int | None], ...] = (
    ("BreakoutNoFrameskip-v4", 16, 20),
    ("BreakoutNoFrameskip-v4", 32, 20),
    ("BreakoutNoFrameskip-v4", 128, 20),
    ("HalfCheetah-v5", None, None),
)
RATIOS = (
    ("acktr", "sb3-a2c"),
    ("acktr-float32", "sb3-a2c"),
    ("a2c-float32", "sb3-a2c"),
    ("acktr", "a2c"),
    ("acktr-float32", "a2c-float32"),
    ("acktr", "emulator"),
    ("acktr-overlap", "emulator"),
)
AT_EQUAL_PRECISION = (("acktr", "a2c"), ("acktr-float32", "a2c-float32"))
EVERYTHING_ELSE = "everything else"

Results = dict[str, list[dict[str, Any]]]
"""Of each contestant what `contestants.measure` gave, by round."""


@in_one_line
def main() -> None:
    """Measure and print; `--json FILE` keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", help="one environment in place of the four configurations")
    parser.add_argument("--num-envs", type=count, help="the preset's if not given")
    parser.add_argument("--num-steps", type=count, help="the preset's if not given")
    parser.add_argument("--contestants", nargs="+", choices=(*CONTESTANTS, *ON_REQUEST), default=CONTESTANTS)
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--seconds", type=amount, default=12.0, help="measured per contestant and round")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=output)
    parser.add_argument(
        "--set",
        nargs="*",
        type=change,
        default=[],
        metavar="KEY=VALUE",
        help="settings of ours other than the preset's; those of K-FAC for ACKTR alone",
    )
    parser.add_argument("--contestant", choices=(*CONTESTANTS, *ON_REQUEST), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.env is None and (args.num_envs is not None or args.num_steps is not None or args.contestant):
        parser.error("--num-envs and --num-steps go with --env")
    if args.contestant:
        print(json.dumps(measure_here(args)))
        return
    chosen = present(tuple(dict.fromkeys(args.contestants)))
    content: dict[str, Any] = {
        **commit(),
        "machine": machine(),
        "arguments": {name: value for name, value in vars(args).items() if name not in ("json", "contestant")},
        "configurations": [],
    }
    given = ((args.env, args.num_envs, args.num_steps),)
    for env, num_envs, num_steps in CONFIGURATIONS if args.env is None else given:
        results = compare(args, chosen, env, num_envs, num_steps)
        report(env, results, content)
        content["configurations"].append(
            {"env": env, "results": results, "ratios": ratios(results), "wall_time_ratios": wall_time_ratios(results)}
        )
        if args.json:
            args.json.write_text(json.dumps(content, indent=2) + "\n")


def measure_here(args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one contestant, in this process."""
    if not args.contestant.startswith("sb3-"):  # which trains as it comes
        from acktr.process import tune

        tune()  # as `acktr train` does; before torch is imported
    from contestants import Task, measure

    task = Task(
        env=args.env,
        num_envs=args.num_envs,
        num_steps=args.num_steps,
        seconds=args.seconds,
        device=args.device,
        changes=tuple(args.set),
    )
    return measure(args.contestant, task)


def present(contestants: tuple[str, ...]) -> tuple[str, ...]:
    """Those whose package is installed; says which are left out."""
    if importlib.util.find_spec("stable_baselines3") is not None:
        return contestants
    missing = [name for name in contestants if name.startswith("sb3-")]
    if missing:
        print(f"left out, as stable-baselines3 is not installed: {', '.join(missing)}", file=sys.stderr)
    return tuple(name for name in contestants if name not in missing)


def compare(
    args: argparse.Namespace, contestants: tuple[str, ...], env: str, num_envs: int | None, num_steps: int | None
) -> Results:
    """Let all contestants of one configuration take turns."""
    results: Results = {name: [] for name in contestants}
    for number in range(args.rounds):
        for name in contestants:
            plain = results.get(name.removesuffix("-float32"), [])
            if name.endswith("-float32") and plain and plain[0]["precision"] == "float32":
                results[name] = plain  # nothing else to measure
                continue
            result = in_process(args, name, env, num_envs, num_steps)
            results[name].append(result)
            print(f"round {number + 1}: {name:<16}{result['steps_per_second']:8.0f} steps/s", file=sys.stderr)
    return results


def in_process(
    args: argparse.Namespace, name: str, env: str, num_envs: int | None, num_steps: int | None
) -> dict[str, Any]:
    """Run one contestant in a fresh process and return what it printed."""
    words = [sys.executable, __file__, "--contestant", name, "--env", env, "--device", args.device]
    words += ["--seconds", str(args.seconds)]
    words += [] if num_envs is None else ["--num-envs", str(num_envs)]
    words += [] if num_steps is None else ["--num-steps", str(num_steps)]
    words += ["--set", *args.set]
    load = os.getloadavg()[0]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode == 2:  # one line, for the caller
        sys.stderr.write(done.stderr)
        sys.exit(2)
    if done.returncode:
        sys.exit(f"{name} on {env} failed:\n{done.stderr}")
    result: dict[str, Any] = {"load_before": load, **json.loads(done.stdout.splitlines()[-1])}
    laps = result.pop("laps", None)
    return result if laps is None else {**result, **by_phase(laps)}


# --- figures -----------------------------------------------------------------------------------------------------


def by_phase(laps: list[dict[str, float]]) -> dict[str, Any]:
    """Milliseconds of the rollout and the update, and means by phase, which add up to the mean of their part.

    Args:
        laps: as `phase_clock.Laps`, all of the update under the label "update".
    """
    phases: dict[str, dict[str, float]] = {"rollout": {}, "update": {}}
    for lap in laps:
        for path, seconds in lap.items():
            part = phases["update" if _in_update(path) else "rollout"]
            phase = path.rpartition("::")[2].replace("_", " ") if "::" in path else EVERYTHING_ELSE
            phase = "apply" if phase == "step" else phase
            part[phase] = part.get(phase, 0.0) + 1e3 * seconds / len(laps)
    updates = [sum(seconds for path, seconds in lap.items() if _in_update(path)) for lap in laps]
    rollouts = [sum(lap.values()) - update for lap, update in zip(laps, updates, strict=True)]
    return {
        **{f"{part}_ms": _summary(times) for part, times in (("rollout", rollouts), ("update", updates))},
        "phases_ms": phases,
        "updates_clocked": len(laps),
    }


def _in_update(path: str) -> bool:
    return path.partition("/")[0] == "update"


def _summary(seconds: list[float]) -> dict[str, float]:
    return {"median": 1e3 * statistics.median(seconds), "mean": 1e3 * statistics.fmean(seconds)}


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def ratios(results: Results) -> dict[str, dict[str, float]]:
    """Spread over the rounds of the ratios of speed; to the emulator in rows, which are all that it knows."""
    found = {}
    for one, other in RATIOS:
        if one in results and other in results:
            unit = "rows_per_second" if other == "emulator" else "steps_per_second"
            pairs = zip(results[one], results[other], strict=True)
            found[f"{one} / {other}"] = spread([left[unit] / right[unit] for left, right in pairs])
    return found


def wall_time_ratios(results: Results) -> dict[str, dict[str, float]]:
    """Spread over the rounds of ACKTR's times relative to A2C's: of a step, and of an update."""
    found = {}
    for one, other in AT_EQUAL_PRECISION:
        if one in results and other in results:
            pairs = list(zip(results[one], results[other], strict=True))
            name = f"{one} / {other}"
            found[f"step, {name}"] = spread(
                [right["steps_per_second"] / left["steps_per_second"] for left, right in pairs]
            )
            for kind in ("median", "mean"):
                times = [left["update_ms"][kind] / right["update_ms"][kind] for left, right in pairs]
                found[f"{kind} update, {name}"] = spread(times)
    return found


def report(env: str, results: Results, content: dict[str, Any]) -> None:
    """Print the tables of one configuration."""
    any_result = next(rounds[0] for rounds in results.values())
    state = f"commit {in_words(content)}"
    hardware = f"{content['machine']['cpu']}, {content['machine']['cores']} cores"
    count = len(next(iter(results.values())))
    print(f"\n{env}: rounds: {count}, median [lowest, highest]; {state}; torch {any_result['torch']}; {hardware}")
    titles = f"{'steps/s':>8}  {'':16}{'update ms':>10}  {'(mean)':>8}  peak MB"
    print(f"  {'':<17}{'batch':<11}{'precision':<10}{'threads':>7}  {'device':<8}{titles}")
    for name, rounds in results.items():
        plain = rounds[0]["contestant"]
        print(f"  {name:<17}{_line(rounds) if plain == name else f'as {plain}, which runs in float32 here'}")
    _print_ratios("speed", ratios(results))
    _print_ratios("wall time", wall_time_ratios(results))
    _print_phases({rounds[0]["contestant"]: rounds for rounds in results.values() if "phases_ms" in rounds[0]})


def _line(rounds: list[dict[str, Any]]) -> str:
    first = rounds[0]
    rate = spread([result["steps_per_second"] for result in rounds])
    between = f"[{rate['lowest']:.0f}, {rate['highest']:.0f}]"
    update = ""
    if "update_ms" in first:
        median, mean = (
            statistics.median(result["update_ms"][kind] for result in rounds) for kind in ("median", "mean")
        )
        update = f"{median:.1f}  {f'({mean:.1f})':>8}"
    memory = f"{max(result['peak_memory_mb'] for result in rounds):.0f}"
    for kind, title in (("workers_peak_memory_mb", "workers"), ("cuda_peak_memory_mb", "GPU")):
        if value := max(result.get(kind, 0.0) for result in rounds):
            memory += f" + {value:.0f} {title}"
    batch = f"{first['num_envs']} x {first['num_steps']}"
    told = f"{batch:<11}{first.get('precision', '-'):<10}{first['threads']:>7}  {first.get('device', '-'):<8}"
    return f"{told}{rate['median']:8.0f}  {between:<16}{update:>20}  {memory}"


def _print_ratios(kind: str, found: dict[str, dict[str, float]]) -> None:
    for name, values in found.items():
        between = f"[{values['lowest']:.2f}, {values['highest']:.2f}]"
        print(f"  {f'{kind}: {name}':<50}{values['median']:6.2f}  {between}")


def _print_phases(results: Results) -> None:
    """Milliseconds of a training iteration, medians over the rounds of the means over its updates."""
    if not results:
        return
    print(f"  {'milliseconds':<28}" + "".join(f"{name:>17}" for name in results))
    for part in ("rollout", "update"):
        names = dict.fromkeys(
            phase for rounds in results.values() for result in rounds for phase in result["phases_ms"][part]
        )
        names[EVERYTHING_ELSE] = names.pop(EVERYTHING_ELSE)  # last; of stable-baselines3 there is nothing else
        for phase in names:
            times = [[result["phases_ms"][part].get(phase) for result in rounds] for rounds in results.values()]
            cells = ["-" if None in row else f"{statistics.median(row):.2f}" for row in times]
            print(f"    {part + ': ' + phase:<26}" + "".join(f"{cell:>17}" for cell in cells))
        sums = [statistics.median(result[f"{part}_ms"]["mean"] for result in rounds) for rounds in results.values()]
        print(f"    {part + ', whole':<26}" + "".join(f"{value:17.2f}" for value in sums))


if __name__ == "__main__":
    main()
