"""Run the network over many clips: files or arrays in, what is kept of each out, in the order given.

clips -> [pieces, decoded ahead in threads -> batches of like length -> encoder -> merge] -> values

The one engine under feature extraction, prediction, detection and the training of heads on cached
embeddings. Memory is bounded whatever the number or length of the inputs; a clip's values do not depend on
its mates.

Shapes in this file: N inputs, T tokens, D width, L layers.
"""

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from beats_trainer.embeddings.batch_size import BatchLimit, BatchSize, check_batch_size
from beats_trainer.embeddings.encoder import (
    DEFAULT_WINDOW_S,
    POOLINGS,
    Encoder,
    Encoding,
    Layer,
    Part,
    check_layer,
    check_pooling,
)
from beats_trainer.embeddings.pieces import ClipInput, Piece, Work, read_pieces
from beats_trainer.errors import AudioError
from beats_trainer.loading import Clip, length_sorted_batches
from beats_trainer.model.beats import BEATs
from beats_trainer.model.pooling import AttentivePooling

__all__ = [
    "DEFAULT_WINDOW_S",
    "POOLINGS",
    "ClipInput",
    "Encoded",
    "Failure",
    "Layer",
    "check_layer",
    "check_pooling",
    "encode_clips",
    "encode_stream",
    "files_of",
]


@dataclass(frozen=True)
class Failure:
    """One input that could not be read.

    Attributes:
        index: Its place among the inputs.
        file: The file as it was given.
        reason: What is wrong with it.
    """

    index: int
    file: str
    reason: str


@dataclass(frozen=True)
class Encoded:
    """Embeddings of the inputs that could be read, in the order given.

    Attributes:
        embeddings: One float32 array per readable input: ``(D,)`` pooled, ``(T, D)`` for pooling
            ``"none"``; with several layers a leading axis, of ``L + 1`` for all.
        kept: Index of each embedding's input; all of them unless some failed.
        failures: The inputs that failed; empty unless ``on_error="skip"``.
        precision: The number format that ran: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    """

    embeddings: list[NDArray[np.float32]]
    kept: list[int]
    failures: list[Failure] = field(default_factory=list)
    precision: str = "float32"


def encode_stream(
    encoder: Encoder,
    work: Iterable[Work],
    batch_size: BatchSize = None,
    num_threads: int | None = None,
) -> Generator[tuple[int, NDArray[np.float32] | AudioError]]:
    """Encode clips one after another, as they come, in bounded memory.

    Args:
        encoder: The network and what is kept of its tokens.
        work: Clips, taken a bounded number ahead. Batches are formed within a group, so that the values of
            a group are the same to the last bit whatever came before it.
        batch_size: Most pieces in a batch, fewer where they are long or of other lengths; ``None`` chooses.
        num_threads: Threads that decode ahead; ``None`` chooses by the machine.

    Yields:
        The place of each clip and its values (as `Encoder.merge` gives them), or why it could not be
        read; in the order given. Closing the generator ends the reading.

    Raises:
        BEATsTrainerError: If the network gives values that are not finite.
        ValueError: If ``batch_size`` is less than 1.
    """
    threads = num_threads or min(8, os.cpu_count() or 1)
    limit = encoder.batch_limit(batch_size)
    with (
        encoder.evaluating(),
        contextlib.closing(read_pieces(work, encoder.grid, threads, limit.num_pooled)) as pieces,
    ):
        finished: list[Part | AudioError] = []
        for clip, is_last, part in _in_order(encoder, pieces, limit):
            finished.append(part)
            if is_last:
                errors = [part for part in finished if isinstance(part, AudioError)]
                parts = [part for part in finished if isinstance(part, Part)]
                yield clip, errors[0] if errors else encoder.merge(parts)
                finished = []


def _in_order(
    encoder: Encoder, pieces: Iterator[Piece], limit: BatchLimit
) -> Iterator[tuple[int, bool, Part | AudioError]]:
    """Encode pieces in batches of like length, and give what they became in the order they came in.

    Yields:
        The piece's clip, whether it is the clip's last, and what is kept of it.
    """
    waiting: dict[int, tuple[int, bool]] = {}  # without the sound: that goes when it is encoded
    done: dict[int, Part | AudioError] = {}
    counter = itertools.count()
    next_out = 0

    def readable(of_group: Iterable[Piece]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        for piece in of_group:
            number = next(counter)
            waiting[number] = piece.clip, piece.is_last
            if isinstance(piece.waveform, AudioError):
                done[number] = piece.waveform
            else:
                yield number, piece.waveform

    for _, of_group in itertools.groupby(pieces, key=lambda piece: piece.group):
        batches = length_sorted_batches(
            readable(of_group),
            limit.num_clips,
            limit.pool_batches,
            cost_of=encoder.count_tokens,
            most_cost=limit.num_tokens,
        )
        for numbers, encoding in _one_ahead(encoder, batches):
            done.update(zip(numbers, encoding.parts(), strict=True))
            while next_out in done:
                yield *waiting.pop(next_out), done.pop(next_out)
                next_out += 1
        while next_out in done:  # a group may end with what cannot be read
            yield *waiting.pop(next_out), done.pop(next_out)
            next_out += 1


def _one_ahead(
    encoder: Encoder, batches: Iterable[list[tuple[int, NDArray[np.float32]]]]
) -> Iterator[tuple[list[int], Encoding]]:
    """Give a GPU the next batch before the last one's results are wanted, so that it need not wait."""
    ahead = 1 if encoder.device.type == "cuda" else 0
    launched: deque[tuple[list[int], Encoding]] = deque()
    for batch in batches:
        encoding = encoder.encode_batch([waveform for _, waveform in batch])
        launched.append(([number for number, _ in batch], encoding))
        if len(launched) > ahead:
            yield launched.popleft()
    yield from launched


def encode_clips(
    network: BEATs,
    inputs: Sequence[ClipInput],
    *,
    pooling: str | AttentivePooling = "mean",
    layer: Layer = -1,
    batch_size: BatchSize = None,
    precision: str = "auto",
    window_s: float = DEFAULT_WINDOW_S,
    compile: bool = False,
    num_threads: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    progress: bool | None = None,
    description: str = "Embedding",
) -> Encoded:
    """Encode clips with a network that stays as it is, and hold all results in memory.

    A recording longer than ``window_s`` is encoded window after window and pooled over all of them.
    The windows continue one another's token grid, so that the number and the place of the tokens are
    those of the whole recording; only attention ends at a window's edge.

    Args:
        network: Where it is, its device is used; put back into its mode (train or eval) afterwards.
        inputs: Files, parts of files (`Clip`), or waveforms ``(S,)`` float32 at 16 kHz.
        pooling: ``"mean"``, ``"max"``, ``"first"``, ``"last"``, ``"bands"`` (see `pool_tokens`; gives ``(8 * D,)``),
            or ``"none"`` for every token. Or a learned pooling on the network's device, which reads all layers
            (leave ``layer`` at -1) and gives ``(D,)``.
        layer: 0 (the first layer's input) to L (the last layer), negative from the end, several, or
            ``"all"``.
        batch_size: Most clips in a batch, fewer where they are long or of other lengths; ``None`` or
            ``"auto"`` chooses by the device, its free memory and the network.
        precision: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        window_s: Seconds that are encoded at once.
        compile: As for `Encoder`.
        num_threads: Threads that decode ahead; ``None`` chooses by the machine.
        on_error: ``"raise"`` at the first unreadable input, or ``"skip"`` it and report it.
        progress: Show a bar; ``None`` shows one on a terminal and for more than one input.
        description: The bar's text.

    Returns:
        Embeddings in the order of the inputs, and what failed.

    Raises:
        AudioError: If an input cannot be read and ``on_error`` is ``"raise"``.
        ValueError: If an argument is not as described.
    """
    check_batch_size(batch_size)
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be 'raise' or 'skip', not {on_error!r}.")
    encoder = Encoder(
        network, pooling, layer, precision=precision, window_s=window_s, compile=compile
    )
    encoded = Encoded([], [], [], encoder.precision)
    stream = encode_stream(encoder, (Work(source) for source in inputs), batch_size, num_threads)
    with (
        contextlib.closing(stream),
        tqdm(
            total=len(inputs),
            desc=description,
            unit="clip",
            disable=_bar_is_off(progress, len(inputs)),
        ) as bar,
    ):
        for index, values in stream:
            if not isinstance(values, AudioError):
                encoded.embeddings.append(values)
                encoded.kept.append(index)
            elif on_error == "raise":
                raise values
            else:
                encoded.failures.append(Failure(index, values.file, values.reason))
            bar.update()
    return encoded


def _bar_is_off(progress: bool | None, num_inputs: int) -> bool | None:
    if progress is not None:
        return not progress
    return None if num_inputs > 1 else True  # None: tqdm shows it on a terminal only


def files_of(inputs: Sequence[ClipInput]) -> list[str]:
    """Name each input for a table: its file, or ``array i``."""
    names = []
    for index, source in enumerate(inputs):
        if isinstance(source, np.ndarray):
            names.append(f"array {index}")
        else:
            names.append(source.file if isinstance(source, Clip) else str(Path(source)))
    return names
