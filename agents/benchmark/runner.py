"""Brings the runs of a benchmark to their end, several side by side, and shows where they stand."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from types import FrameType

from acktr.agents.benchmark.jobs import Job
from acktr.agents.benchmark.progress import Progress

POLL_SECONDS = 0.5


def run(jobs: Sequence[Job], *, at_once: int, progress: Progress) -> list[Job]:
    """Run what is not finished.

    Args:
        jobs: in the order in which they are to start.
        at_once: processes.
        progress: is told of every start and end.

    Returns:
        The jobs that failed; what they said is in their logs.

    Raises:
        UserError: a folder holds a run with other settings.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when every run has saved and ended.
    """
    waiting = [job for job in jobs if not job.is_finished()]
    running: dict[Job, subprocess.Popen[bytes]] = {}
    trained = {job for job in waiting if job.is_trained()}
    failed: list[Job] = []
    with _terminated_as_interrupted(), progress:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    job = waiting.pop(0)
                    running[job] = job.start()
                    progress.started(job)
                for job, process in list(running.items()):
                    code = process.poll()
                    if code is None:
                        continue
                    finished = code == 0 and job.is_finished()
                    if code == 0 and not finished and job not in trained and job.is_trained():
                        trained.add(job)
                        running[job] = job.start()  # its policy's games
                        continue
                    del running[job]
                    failed += [] if finished else [job]
                    progress.ended(job, finished=finished)
                progress.refresh(list(running), waiting)
                time.sleep(POLL_SECONDS)
        except BaseException:
            _stop(list(running.values()))
            raise
    return failed


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Let them save and end; by SIGTERM, as what was started in the background may ignore SIGINT."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        process.wait()


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
