"""TensorBoard event files, written in the calling thread.

torch's SummaryWriter hands events to a thread: a full disk then ends that thread with a traceback, some of the events
that a killed process wrote are lost, and importing it takes most of a second. Scalars need none of that.
"""

import io
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import (  # type: ignore[import-untyped]  # the library has no types
    Event,
    SessionLog,
)
from tensorboard.compat.proto.summary_pb2 import (  # type: ignore[import-untyped]  # the library has no types
    Summary,
    SummaryMetadata,
)
from tensorboard.plugins.hparams import api_pb2, metadata  # type: ignore[import-untyped]  # the library has no types
from tensorboard.plugins.hparams.plugin_data_pb2 import (  # type: ignore[import-untyped]  # the library has no types
    HParamsPluginData,
    SessionStartInfo,
)
from tensorboard.summary.writer.record_writer import (  # type: ignore[import-untyped]  # the library has no types
    RecordWriter,
)

from acktr.agents.files import write_whole

_FILE_VERSION = "brain.Event:2"  # the version from which on TensorBoard understands a purge


class TensorBoardFile:
    """A new event file in `folder`; each call of `write` is on disk when it returns.

    Args:
        folder: where TensorBoard looks for the run.
        purge_step: TensorBoard forgets what earlier files of the folder hold from this step on; None keeps all.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, folder: Path, *, purge_step: int | None = None) -> None:
        # TensorBoard reads the files of a folder by name: a finer clock than seconds keeps them in order
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        # unbuffered: what a full disk refuses must not be tried again when the file is closed
        self._file = (folder / name).open("xb", buffering=0)
        self._write(Event(wall_time=time.time(), file_version=_FILE_VERSION))
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def write(self, scalars: Mapping[str, float], *, step: int) -> None:
        """Write scalars by tag at a step.

        Raises:
            OSError: they cannot be written.
        """
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def describe(self, settings: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """Say with which settings this run is made, for the tab "HParams".

        Args:
            settings: plain values by name.
            metrics: tags of scalars to show beside them.

        Raises:
            OSError: it cannot be written.
        """
        start, known = SessionStartInfo(start_time_secs=time.time()), []
        for name, value in settings.items():
            if isinstance(value, bool):
                start.hparams[name].bool_value = value
                kind = api_pb2.DATA_TYPE_BOOL
            elif isinstance(value, int | float):
                start.hparams[name].number_value = value
                kind = api_pb2.DATA_TYPE_FLOAT64
            else:
                start.hparams[name].string_value = " ".join(map(str, value)) if isinstance(value, list) else str(value)
                kind = api_pb2.DATA_TYPE_STRING
            known.append(api_pb2.HParamInfo(name=name, type=kind))
        infos = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in metrics]
        experiment = api_pb2.Experiment(hparam_infos=known, metric_infos=infos)
        version = metadata.PLUGIN_DATA_VERSION
        self._write_plain(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment, version=version))
        self._write_plain(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start, version=version))

    def _write_plain(self, tag: str, content: Any) -> None:
        plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME, content=content.SerializeToString())
        value = Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin), tensor=metadata.NULL_TENSOR)
        self._write(Event(wall_time=time.time(), summary=Summary(value=[value])))

    def close(self) -> None:
        """Close the file; closing twice does nothing."""
        self._file.close()

    def _write(self, event: Any) -> None:
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        write_whole(self._file, record.getvalue())
