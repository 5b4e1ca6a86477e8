"""A run over many recordings into a store, which can be killed at any moment and taken up again.

clips, store -> [what is not done yet -> windows -> engine -> rows] -> shards of the store

A shard is a unit of work: batches never cross its borders, so that a run that was interrupted makes the
same shards as one that was not, and what is lost is the shard in work. Which clips are done, the store
knows: a clip's file is known by its size and its time of change.

Shapes in this file: N windows, S time steps, K layers, D width.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from beats_trainer.constants import SAMPLE_RATE
from beats_trainer.embeddings.batch_size import BatchSize, check_batch_size
from beats_trainer.embeddings.encoder import Encoder
from beats_trainer.embeddings.journal import Covered, FileState, Progress, WindowFailure
from beats_trainer.embeddings.store_writer import StoreWriter
from beats_trainer.embeddings.windowed import Window, encode_windows
from beats_trainer.embeddings.windows import Windowing
from beats_trainer.errors import AudioError
from beats_trainer.loading import Clip

__all__ = ["DEFAULT_ROWS_PER_SHARD", "RunResult", "ToColumns", "run_to_store"]

log = logging.getLogger(__name__)

ToColumns: TypeAlias = Callable[[NDArray[np.float32]], Mapping[str, NDArray[np.float32]]]
"""Turns what the encoder gives for the rows of a shard, ``(N, D)`` or ``(N, K, D)``, into columns."""

_CHANGED = (
    "the file changed, or went away, while it was read. Run this again when it is as it should be."
)

DEFAULT_ROWS_PER_SHARD = 512
"""Rows between two commits: minutes of work for a large network on a laptop, less than a second on a GPU."""


_WINDOWS_PER_SHARD = 16
"""Least windows of a shard where each gives many rows, and the user names no batch size."""


@dataclass(frozen=True)
class RunResult:
    """What a run did.

    Attributes:
        num_clips: Clips that were asked for.
        num_skipped: Clips of these that the store had already.
        num_rows: Rows that were added.
        failures: What could not be read, of this run and of those before: ``file``, ``start_time``,
            ``end_time``, ``reason``.
    """

    num_clips: int
    num_skipped: int
    num_rows: int
    failures: pd.DataFrame


def run_to_store(
    encoder: Encoder,
    clips: Sequence[Clip],
    writer: StoreWriter,
    windowing: Windowing,
    to_columns: ToColumns,
    *,
    batch_size: BatchSize = None,
    num_threads: int | None = None,
    rows_per_shard: int = DEFAULT_ROWS_PER_SHARD,
    on_error: Literal["raise", "skip"] = "skip",
    retry_failed: bool = False,
    progress: bool | None = None,
    description: str = "Embedding",
) -> RunResult:
    """Bring a store up to date with clips: what it has is left, what is new or changed is encoded.

    Args:
        encoder: The network and what is kept of its tokens.
        clips: Files or parts of files, each at most once.
        writer: The open store.
        windowing: How clips are cut; with a grid if the encoder gives a row per time step.
        to_columns: Makes the store's columns of the encoder's values.
        batch_size: Most windows in a batch; ``None`` chooses.
        num_threads: Threads that decode ahead; ``None`` chooses by the machine.
        rows_per_shard: Rows of a shard, about; at least one window, or one batch where a window gives
            several rows.
        on_error: ``"skip"`` what cannot be read and list it, or ``"raise"`` at the first.
        retry_failed: Do clips anew of which a part could not be read; those of which nothing could be read
            are tried again anyway.
        progress: Show a bar; ``None`` shows one on a terminal.
        description: The bar's text.

    Returns:
        What was done. A clip that could not be read at all is tried again by the next run; one whose file
        changed while it was read is done anew.

    Raises:
        AudioError: If a clip cannot be read and ``on_error`` is ``"raise"``; shards that were complete are kept.
        OSError: If nothing can be written any more; shards that were complete are kept.
    """
    todo = _find_work(clips, writer, retry_failed)
    per_shard = _windows_per_shard(encoder, windowing, rows_per_shard, batch_size)
    shards = _Shards(writer, to_columns, encoder, on_error, per_shard)
    shown = None if progress is None else not progress
    with tqdm(total=len(todo), desc=description, unit="clip", disable=shown) as bar:
        outcomes = encode_windows(
            encoder,
            todo,
            windowing,
            windows_per_group=per_shard,
            batch_size=batch_size,
            num_threads=num_threads,
        )
        with contextlib.closing(outcomes):
            for window, values in outcomes:
                shards.add(window, values)
                if window.is_last:
                    bar.set_postfix_str(f"{shards.num_rows:,} rows", refresh=False)
                    bar.update()
    shards.finish()
    return RunResult(len(clips), len(clips) - len(todo), shards.num_rows, writer.write_errors())


def _find_work(
    clips: Sequence[Clip], writer: StoreWriter, retry_failed: bool
) -> list[tuple[Clip, int]]:
    """The clips that are not done, each with its first window to do; those to be tried again last.

    A clip that stopped midway goes on where it stood, so that the shards to come are those of a run that was
    never stopped.
    """
    todo: list[tuple[Clip, int]] = []
    again: list[tuple[Clip, int]] = []
    changed: list[Clip] = []
    retried: list[Clip] = []
    for clip in clips:
        known = writer.progress(clip)
        if known is None:
            todo.append((clip, 0))
            continue
        state = FileState.of(clip.file)
        if known.is_complete and known.num_rows == 0:  # nothing of it could be read
            again.append((clip, 0))
        elif state is not None and state != known.state:
            changed.append(clip)
            todo.append((clip, 0))
        elif not known.is_complete:
            todo.append((clip, known.next_window))
        elif state is None:
            continue  # its rows are as good as they were; the file may be on a disk that is away
        elif known.has_failed and (retry_failed or writer.is_in_doubt(clip)):
            retried.append(clip)
            again.append((clip, 0))
    if changed:
        log.warning(
            "%d files are not what they were when the store was written (the first: %s): their rows are "
            "made anew.",
            len(changed),
            changed[0].file,
        )
    writer.forget([*changed, *retried, *_gone_failures(clips, writer)])
    return todo + again


def _gone_failures(clips: Sequence[Clip], writer: StoreWriter) -> list[Clip]:
    """Clips without any row whose file is gone, and that nobody asks for: no longer worth a warning."""
    asked = set(clips)
    return [
        clip
        for clip in writer.clips_known
        if (known := writer.progress(clip)) is not None
        and (known.is_complete and known.num_rows == 0)
        and clip not in asked
        and FileState.of(clip.file) is None
    ]


def _windows_per_shard(
    encoder: Encoder, windowing: Windowing, rows_per_shard: int, batch_size: BatchSize
) -> int:
    if not encoder.per_step:
        return max(1, rows_per_shard)
    rows_per_window = max(1, windowing.samples[0] // encoder.grid.step)
    # Batches end with a shard: of few windows they would be slow, and the shards of a long recording many.
    # Not by the device's choice of a batch: another machine goes on with the same shards.
    batch = check_batch_size(batch_size) or _WINDOWS_PER_SHARD
    return max(batch, rows_per_shard // rows_per_window)


@dataclass
class _Shards:
    """The rows of the shard in work, and the clips that they cover."""

    writer: StoreWriter
    to_columns: ToColumns
    encoder: Encoder
    on_error: str
    windows_per_shard: int
    num_rows: int = 0
    num_windows: int = 0
    values: list[NDArray[np.float32]] = field(default_factory=list)
    file: list[str] = field(default_factory=list)
    start_time: list[float] = field(default_factory=list)
    end_time: list[float] = field(default_factory=list)
    covered: list[Covered] = field(default_factory=list)

    def add(self, window: Window, outcome: NDArray[np.float32] | AudioError) -> None:
        """Take a window's values, or why there are none; write the shard that ends with it."""
        if isinstance(outcome, AudioError) and self.on_error == "raise":
            raise outcome
        self._take(window, outcome)
        self.num_windows += 1
        if self.num_windows == self.windows_per_shard:  # at once: the next batch is not yet encoded
            self.finish()

    def _take(self, window: Window, outcome: NDArray[np.float32] | AudioError) -> None:
        known = self.writer.progress(window.clip)
        if known is not None and not known.is_complete and known.state != window.state:
            self._give_up(window, known)
            return
        failures = []
        before = len(self.file)
        if isinstance(outcome, AudioError):
            failures.append(WindowFailure(window.start_time, window.end_time, outcome.reason))
        else:
            self._add_rows(window, outcome)
        was_planned = window.start_time is not None
        if window.is_last and was_planned and FileState.of(window.clip.file) != window.state:
            failures.append(WindowFailure(None, None, _CHANGED))
        self._cover(window, len(self.file) - before, tuple(failures))

    def _give_up(self, window: Window, known: Progress) -> None:
        """End a clip that was begun by an earlier run, since its file changed or went away after that.

        Its rows stay what they are, those of the file as it was, and the clip is in doubt.
        """
        if window.is_last:
            end = known.next_window
            failures = (WindowFailure(None, None, _CHANGED),)
            self.covered.append(
                Covered(window.clip, known.state, known.duration_s, end, end, True, failures, 0)
            )

    def _add_rows(self, window: Window, values: NDArray[np.float32]) -> None:
        assert window.start_time is not None
        assert window.end_time is not None
        if not self.encoder.per_step:
            self.values.append(values[None])
            self.file.append(window.clip.file)
            self.start_time.append(window.start_time)
            self.end_time.append(window.end_time)
            return
        rows = values if self.encoder.is_single else values.swapaxes(0, 1)
        step_s = self.encoder.grid.step / SAMPLE_RATE
        starts = window.start_time + step_s * np.arange(len(rows))
        self.values.append(rows)
        self.file += [window.clip.file] * len(rows)
        self.start_time += starts.tolist()
        self.end_time += (starts + step_s).tolist()

    def _cover(self, window: Window, num_rows: int, failures: tuple[WindowFailure, ...]) -> None:
        """Note what of the clip the shard accounts for; windows of one clip are one entry."""
        # Of a clip whose length is unknown nothing was planned, and there is no window.
        stop = window.index if window.start_time is None else window.index + 1
        last = self.covered[-1] if self.covered else None
        if last is not None and last.clip == window.clip and last.stop == window.index:
            self.covered[-1] = replace(
                last,
                stop=stop,
                is_last=window.is_last,
                failures=last.failures + failures,
                num_rows=(last.num_rows or 0) + num_rows,
            )
            return
        self.covered.append(
            Covered(
                *(window.clip, window.state, window.duration_s, window.index, stop),
                window.is_last,
                failures,
                num_rows,
            )
        )

    def finish(self) -> None:
        """Write the shard in work, if there is anything in it that the store does not know."""
        if self.values or any(self._is_news(covered) for covered in self.covered):
            rows = (
                np.concatenate(self.values)
                if self.values
                else np.zeros((0, *self._row_shape()), np.float32)
            )
            self.writer.write_shard(
                self.covered,
                self.file,
                np.array(self.start_time, np.float64),
                np.array(self.end_time, np.float64),
                self.to_columns(rows),
            )
            self.num_rows += len(rows)
        self.num_windows = 0
        self.values, self.covered = [], []
        self.file, self.start_time, self.end_time = [], [], []

    def _row_shape(self) -> tuple[int, ...]:
        width = self.encoder.width
        return (width,) if self.encoder.is_single else (len(self.encoder.layers), width)

    def _is_news(self, covered: Covered) -> bool:
        """Whether the store does not know this yet; a clip that failed again as it did before is no news."""
        known = self.writer.progress(covered.clip)
        return (
            known is None
            or known.state != covered.state
            or not known.is_complete
            or known.num_rows > 0
            or bool(covered.num_rows)
        )
