"""How the cost of an update grows with the batch, the network's width and the number of environments.

The network and settings of the Atari preset on random frames, without an emulator. A plain pass forward and backward in
float32, A2C and ACKTR take turns in one process; ACKTR's times are means over as many updates as lie between two
refreshes of an inverse. Every round goes through all sizes, since a machine's speed drifts, and medians over the rounds
are shown. Beside each time stands the number of multiplications that was counted, and beside the exponent that the time
grows by the one that they grow by.

    python benchmarks/cost.py --json cost.json --plot cost.png
    python benchmarks/cost.py --device cuda --precision float32
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from acktr.process import tune

    tune()  # as `acktr train` does; before torch is imported

import torch
from arguments import count, in_one_line, output, picture
from cost_measures import A2C, ACKTR, PLAIN, Sweep, settings_of, sweep_points
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator, StrMethodFormatter
from origin import commit, in_words, machine

from acktr.agents import threads
from acktr.agents.precision import choose_precision

TOLERANCE = 0.15
"""By how much a time's exponent may exceed that of the multiplications before it counts as growing faster."""

COLOURS = {A2C: "#0072b2", ACKTR: "#d55e00"}

SWEEPS = (
    Sweep(
        name="batch",
        label="batch, rows",
        title="update, 16 environments",
        setting="num_steps",
        sizes=(160, 320, 640, 1280, 2560, 5120, 10_240),
        rows=16,
        fixed={"num_envs": 16},
    ),
    Sweep(
        name="width",
        label="width of the fully connected layer",
        title="update, batch 16 x 20",
        setting="conv_features",
        sizes=(256, 512, 1024, 2048),
        fixed={"num_envs": 16, "num_steps": 20},
    ),
    Sweep(
        name="environments",
        label="environments",
        title="acting and update, 20 steps each",
        setting="num_envs",
        sizes=(8, 16, 32, 64, 128, 256),
        fixed={"num_steps": 20},
        acts=True,
    ),
)


@in_one_line
def main() -> None:
    """Measure and print; `--json FILE` keeps the figures and `--plot FILE.png` draws them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--sweeps", nargs="+", choices=[sweep.name for sweep in SWEEPS], help="all if not given")
    parser.add_argument("--points", type=count, help="only the so many smallest of each sweep, two at least")
    parser.add_argument("--json", type=output)
    parser.add_argument("--plot", type=picture)
    args = parser.parse_args()
    if args.points == 1:
        parser.error("--points takes 2 or more: growth is between points")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device; use --device cpu")
    threads.set_threads(0)
    device = torch.device(args.device)
    dtype, reason = choose_precision(settings_of(SWEEPS[0], A2C, args, SWEEPS[0].sizes[0]), device, convolutional=True)
    content: dict[str, Any] = {
        **commit(),
        "machine": machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": str(dtype).removeprefix("torch."),
        "rounds": args.rounds,
        "sweeps": [],
    }
    state = f"commit {in_words(content)}"
    number = content["threads"]
    used = f"{number} thread{'s' if number > 1 else ''}"
    print(f"{state}; torch {content['torch']}; {content['machine']['cpu']}, {used}")
    print(f"device: {content['device']}; {reason}; rounds: {args.rounds}, medians")
    for sweep in SWEEPS:
        if args.sweeps and sweep.name not in args.sweeps:
            continue
        points = sweep_points(sweep, args)
        found = {"name": sweep.name, "label": sweep.label, "title": sweep.title, "points": points}
        content["sweeps"].append({**found, "growth": growth(points)})
        report(content["sweeps"][-1])
        if args.json:
            args.json.write_text(json.dumps(content, indent=2) + "\n")
    if args.plot:
        draw(args.plot, content)


# --- figures -----------------------------------------------------------------------------------------------------


def exponents(sizes: Sequence[float], values: Sequence[float]) -> list[float]:
    """D log(value) / d log(size) between neighbours; one fewer than there are points."""
    return [math.log(values[i] / values[i - 1]) / math.log(sizes[i] / sizes[i - 1]) for i in range(1, len(sizes))]


def growth(points: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By contestant the exponents of its time and of its multiplications, between neighbours and between the ends.

    Args:
        points: as `measure` gives them, of one sweep.
    """
    sizes = [point["size"] for point in points]
    ends = (sizes[0], sizes[-1])
    found = {}
    for name in points[0]["ms"]:
        times = [point["ms"][name]["median"] for point in points]
        counts = [point["multiplications"][name] for point in points]
        measured, counted = (exponents(ends, (values[0], values[-1]))[0] for values in (times, counts))
        found[name] = {
            "measured": exponents(sizes, times),
            "of_multiplications": exponents(sizes, counts),
            "measured_between_ends": measured,
            "of_multiplications_between_ends": counted,
            "grows_faster": measured > counted + TOLERANCE,
        }
    return found


def report(sweep: Mapping[str, Any]) -> None:
    """Print the tables of one sweep."""
    points, found = sweep["points"], sweep["growth"]
    names = list(found)
    print(f"\n{sweep['name']}: {sweep['title']}")
    print(f"  {'':>8}{'milliseconds':^44}{'':2}{'ratios':^29}{'':2}{'microseconds a row':^20}")
    titles = "".join(f"{name:>20}" if name == PLAIN else f"{name:>12}" for name in names)
    print(f"  {'size':>8}{titles}  {'ACKTR / A2C':>12}{'ACKTR / pass':>17}  {A2C:>10}{ACKTR:>10}")
    for point in points:
        rows = point["num_envs"] * point["num_steps"]
        times = {name: point["ms"][name]["median"] for name in names}
        cells = "".join(f"{times[name]:20.2f}" if name == PLAIN else f"{times[name]:12.2f}" for name in names)
        ratios = [ratio["median"] for ratio in point["ratios"].values()]
        each = "".join(f"{1e3 * times[name] / rows:10.1f}" for name in (A2C, ACKTR))
        print(f"  {point['size']:>8}{cells}  {ratios[0]:12.2f}{ratios[1]:17.2f}  {each}")
    print("  multiplications, 10^9; exponent of the time to the last size (of the multiplications)")
    print(f"  {'size':>8}" + "".join(f"{name:>26}" for name in names))
    for index, point in enumerate(points):
        cells = ""
        for name in names:
            pair = ""
            if index:
                both = (found[name][kind][index - 1] for kind in ("measured", "of_multiplications"))
                pair = "{:.2f} ({:.2f})".format(*both)
            cells += f"{point['multiplications'][name] / 1e9:12.3f}{pair:>14}"
        print(f"  {point['size']:>8}{cells}")
    between = f"{points[0]['size']} to {points[-1]['size']}"
    print(f"  {f'exponent, {between}':<28}{'time':>8}{'multiplications':>18}{f'more than {TOLERANCE} above':>24}")
    for name in names:
        ends = found[name]
        time_grows, counts_grow = ends["measured_between_ends"], ends["of_multiplications_between_ends"]
        print(f"  {name:<28}{time_grows:8.2f}{counts_grow:18.2f}{'yes' if ends['grows_faster'] else 'no':>24}")


def draw(path: Path, content: Mapping[str, Any]) -> None:
    """Milliseconds against the sizes, one panel for each sweep; the multiplications start at the first time."""
    figure = Figure(figsize=(11.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    medians = [
        point["ms"][name]["median"] for sweep in content["sweeps"] for point in sweep["points"] for name in COLOURS
    ]
    lowest, highest = min(medians), max(medians)
    panels = figure.subplots(1, len(content["sweeps"]), sharey=True, squeeze=False)[0]
    for axes, sweep in zip(panels, content["sweeps"], strict=True):
        sizes = [point["size"] for point in sweep["points"]]
        for name, colour in COLOURS.items():
            times = [point["ms"][name]["median"] for point in sweep["points"]]
            counts = [point["multiplications"][name] for point in sweep["points"]]
            scaled = [times[0] * count / counts[0] for count in counts]
            axes.plot(sizes, times, color=colour, marker="o", markersize=4, linewidth=1.8, label=f"{name}, measured")
            axes.plot(
                sizes, scaled, color=colour, linestyle="--", linewidth=1.2, label=f"{name}, multiplications (scaled)"
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=40 if len(sizes) > 4 else 0)
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        minor = StrMethodFormatter("{x:,g}") if highest < 10 * lowest else NullFormatter()  # few powers of ten, or none
        axes.yaxis.set_minor_formatter(minor)
        axes.set_xlabel(sweep["label"], fontsize=11)
        axes.set_title(sweep["title"], fontsize=11)
        axes.grid(alpha=0.3, which="both", linewidth=0.5)
    panels[0].set_ylabel("time, milliseconds", fontsize=11)
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=len(lines), frameon=False, fontsize=10)
    device = content["machine"]["cpu"] if content["device"] == "cpu" else content["device"]
    figure.suptitle(f"{device}, {content['precision']}, commit {content['commit']}", fontsize=10)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
