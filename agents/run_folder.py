"""The folder of one run: settings, provenance, metrics and checkpoints, findable by name and safe against a crash."""

import contextlib
import datetime
import errno
import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import yaml

from acktr.agents.files import link_atomically, remove_temporaries, write_text_atomically
from acktr.agents.settings import Settings
from acktr.errors import RunError, UserError
from acktr.process import world_size

if TYPE_CHECKING:
    from acktr.agents.checkpoint import Loaded

SETTINGS_FILE = "settings.yaml"
COMMAND_FILE = "command.txt"
VERSIONS_FILE = "versions.json"
METRICS_FILE = "metrics.csv"
EVALUATION_FILE = "evaluation.json"
CURVE_FILE = "curve.png"
LOCK_FILE = ".lock"
CHECKPOINT_FOLDER = "checkpoints"
BEST_FILE = "best.safetensors"
FINAL_FILE = "final.safetensors"

CHECKPOINTS_KEPT = 2

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_PACKAGES = ("acktr", "torch", "gymnasium", "ale-py", "mujoco", "numpy", "safetensors", "tensorboard", "Box2D")
_STEP_FILE = re.compile(r"step-(\d+)\.safetensors")
_TRACES_OF_A_RUN = (SETTINGS_FILE, METRICS_FILE, CHECKPOINT_FOLDER)


def _warn_on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class RunFolder:
    """One run's folder: `settings.yaml`, `command.txt`, `versions.json`, `metrics.csv`, `checkpoints/` and more.

    It holds no path of its own inside, so that a copied or moved folder works where it stands.

    Attributes:
        path: the folder.
        settings: the run's settings, as in `settings.yaml`.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path = path
        self.settings = settings

    @classmethod
    def create(cls, settings: Settings, run_dir: Path | None = None) -> "RunFolder":
        """Make a new run's folder and write its settings, command and versions.

        Args:
            settings: the resolved settings.
            run_dir: the run's own folder; None makes `runs/<env>/<algorithm>-seed<k>-<time>/`.

        Raises:
            UserError: the folder holds a run already, or cannot be made.
        """
        try:
            if run_dir is None:
                path = _new_folder(settings)
            else:
                path = run_dir
                if any((path / name).exists() for name in _TRACES_OF_A_RUN):
                    raise UserError(
                        f"{path} already holds a run; go on with it by `acktr resume {shlex.quote(str(path))}`, "
                        "or name another folder"
                    )
                path.mkdir(parents=True, exist_ok=True)
            folder = cls(path, settings)
            folder.write_settings(settings)
            folder.checkpoints.mkdir(exist_ok=True)
            folder.record_start()
        except OSError as error:
            where = error.filename or run_dir or "runs"
            raise UserError(f"the run folder cannot be made: {where}: {error.strerror}; name another folder") from error
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open an existing run's folder.

        Raises:
            UserError: it does not exist, is no run folder, or its settings do not parse.
        """
        file = path / SETTINGS_FILE
        if path.is_file():
            raise UserError(f"{path}: a file; this takes the run folder that `acktr train` printed")
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; name the run folder that `acktr train` printed")
        if not file.is_file():
            runs = sorted(str(found.parent) for found in path.glob(f"*/{SETTINGS_FILE}"))[:3]
            hint = f"; there are runs below it, such as {', '.join(runs)}" if runs else ""
            raise UserError(f"{path}: not a run folder: it has no {SETTINGS_FILE}{hint}")
        if (path / "runs").is_dir() and (path / "aggregate.csv").is_file():
            raise UserError(f"{path}: the folder of a benchmark; name one of its runs, {path}/runs/ENV/NAME-seedK")
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{file}: does not parse as YAML: {reason}") from error
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {error.strerror}") from error
        if not isinstance(values, dict):
            raise UserError(f"{file}: holds no settings")
        return cls(path, Settings.from_dict(values, source=str(file)))

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / CHECKPOINT_FOLDER

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training in this folder; the system lifts it when the process ends, however.

        Raises:
            UserError: another process holds it.
        """
        lock = filelock.FileLock(self.path / LOCK_FILE, blocking=False)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise UserError(f"{self.path}: another process is training in it; wait for it or stop it first") from error
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written: {error.strerror}; mend that or copy the folder"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def write_settings(self, settings: Settings) -> None:
        """Replace `settings.yaml`, e.g. when a resume stretches `total_timesteps`."""
        text = yaml.safe_dump(settings.to_dict(), sort_keys=False, allow_unicode=True)
        write_text_atomically(self.path / SETTINGS_FILE, text)
        self.settings = settings

    def record_start(self) -> None:
        """Add this process to `command.txt` and `versions.json`: at the start of a run and at every resume."""
        record_start(self.path)

    def write_checkpoint(
        self, state: Mapping[str, Any], *, timesteps: int, is_best: bool = False, is_final: bool = False
    ) -> Path:
        """Write `checkpoints/step-<timesteps>.safetensors` and keep the last two, `best` and `final`.

        `best` and `final` are hard links (copies where there are none). A checkpoint that is not final takes an
        earlier `final` away: the run goes on beyond it.

        Args:
            state: what `acktr.agents.checkpoint.save` takes.
            timesteps: agent decisions so far.
            is_best: make it `best.safetensors` too.
            is_final: make it `final.safetensors` too.

        Returns:
            The path of the step file.

        Raises:
            RunError: the disk is full or the folder cannot be written; names the last good checkpoint, which is intact.
        """
        from acktr.agents.checkpoint import save  # needs torch, which `acktr plot` does without

        path = self.checkpoints / f"step-{timesteps}.safetensors"
        try:
            self.checkpoints.mkdir(exist_ok=True)
            save(path, state, kind="checkpoint")
            if is_best:
                link_atomically(path, self.checkpoints / BEST_FILE)
            if is_final:
                link_atomically(path, self.checkpoints / FINAL_FILE)
            else:
                (self.checkpoints / FINAL_FILE).unlink(missing_ok=True)
            self._rotate(timesteps)
        except OSError as error:
            good = next((file for _, file in self._step_files()), None)
            kept = f"the last good checkpoint is {good}" if good else "there is no earlier checkpoint"
            cure = "free some space" if error.errno in _FULL else "mend it"
            raise RunError(
                f"checkpoint {path} cannot be written: {error.strerror}; {kept}; {cure} and go on with "
                f"`acktr resume {shlex.quote(str(self.path))}`"
            ) from error
        return path

    def latest_checkpoint(self, warn: Callable[[str], None] = _warn_on_stderr) -> Path | None:
        """Newest checkpoint that loads, or None when the run has none yet.

        Args:
            warn: takes one line for each damaged checkpoint that is passed over.

        Raises:
            UserError: there are checkpoints, but none loads; or the newest is of a newer format.
        """
        found = self.load_latest(warn)
        return found[0] if found else None

    def load_latest(self, warn: Callable[[str], None] = _warn_on_stderr) -> "tuple[Path, Loaded] | None":
        """`latest_checkpoint` with its content, read once."""
        remove_temporaries(self.checkpoints)
        found = self._first_good([file for _, file in self._step_files()] + self._named(FINAL_FILE, BEST_FILE), warn)
        if found is not None and found[1].kind != "checkpoint":
            raise UserError(f"{found[0]}: an exported policy, which cannot be trained further; remove it")
        return found

    def evaluation_checkpoint(self, warn: Callable[[str], None] = _warn_on_stderr) -> Path:
        """The checkpoint that stands for the run: final, or else the last one that loads.

        Raises:
            UserError: the run has no checkpoint that loads.
        """
        candidates = self._named(FINAL_FILE) + [file for _, file in self._step_files()] + self._named(BEST_FILE)
        found = self._first_good(candidates, warn)
        if found is None:
            raise UserError(
                f"{self.path}: has no checkpoint yet; wait for the first one or, if nothing trains there, go on "
                f"with `acktr resume {shlex.quote(str(self.path))}`"
            )
        return found[0]

    def _first_good(self, candidates: list[Path], warn: Callable[[str], None]) -> "tuple[Path, Loaded] | None":

        from acktr.agents.checkpoint import DamagedFileError, load  # needs torch, which `acktr plot` does without

        reasons = []
        for candidate in candidates:
            try:
                return candidate, load(candidate)
            except DamagedFileError as error:
                reasons.append(f"{candidate}: {error.damage}")
                warn(f"acktr: warning: passing over {reasons[-1]}")
        if reasons:
            raise UserError(f"{self.path}: no checkpoint loads; the newest: {reasons[0]}; train anew")
        return None

    def _named(self, *names: str) -> list[Path]:
        return [self.checkpoints / name for name in names if (self.checkpoints / name).is_file()]

    def _step_files(self) -> list[tuple[int, Path]]:
        """(timesteps, file) of the step files, newest first."""
        return sorted(_numbered(self.checkpoints), reverse=True)

    def _rotate(self, newest: int) -> None:
        # Step files beyond the one just written are damaged leftovers: a run resumes from the newest that loads.
        files = self._step_files()
        kept = [file for steps, file in files if steps <= newest][:CHECKPOINTS_KEPT]
        for _, file in files:
            if file not in kept:
                file.unlink(missing_ok=True)


def record_start(folder: Path) -> None:
    """Add this process to a folder's `command.txt` and `versions.json`.

    Raises:
        UserError: `versions.json` is not what this wrote.
    """
    with (folder / COMMAND_FILE).open("a", encoding="utf-8") as handle:
        handle.write(_command() + "\n")
    file = folder / VERSIONS_FILE
    starts: list[Any] = []
    if file.exists():
        try:
            starts = json.loads(file.read_text(encoding="utf-8"))["starts"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: not what acktr wrote ({error!r}); move it away to go on") from error
    document = {"starts": [*starts, provenance()]}
    write_text_atomically(file, json.dumps(document, indent=2, sort_keys=True) + "\n")


def _numbered(folder: Path) -> Iterator[tuple[int, Path]]:
    if not folder.is_dir():
        return
    for file in folder.iterdir():
        match = _STEP_FILE.fullmatch(file.name)
        if match:
            yield int(match.group(1)), file


def _new_folder(settings: Settings) -> Path:
    """Make `runs/<env>/<algorithm>-seed<k>-<time>/`, numbered where two runs start in the same second."""
    environment = re.sub(r"[^\w.\-]+", "-", settings.env).strip("-.") or "environment"
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{settings.algorithm}-seed{settings.seed}-{stamp}"
    parent = Path("runs") / environment
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
            continue
        return path


def _command() -> str:
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    if program == "__main__.py":
        program = "acktr"
    return shlex.join([program, *sys.argv[1:]])


def provenance() -> dict[str, Any]:
    """What this process runs on: package versions, Python, platform, processor, GPUs, threads, the time. JSON-able."""
    torch = sys.modules.get("torch")  # the folder itself needs no torch: say nothing of a torch that nobody loaded
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    facts: dict[str, Any] = {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpus_usable": len(affinity),
        "processes": world_size(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }
    if torch is not None:
        cuda = torch.cuda.is_available()
        facts["torch_threads"] = torch.get_num_threads()
        facts["cuda"] = torch.version.cuda
        facts["gpus"] = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())] if cuda else []
    return facts


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
