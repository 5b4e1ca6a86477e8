"""Cut annotated recordings into clips of one length, each with the labels that sound in it.

Annotations -> [windows, overlaps] -> table: filename, start_time, end_time, category, unknown, group -> build_manifest

A sliver of a call at a window's edge is neither there nor not there: that label is unknown in the window,
and no loss or metric counts it. Every sample is in a window, and every annotation present in one.
"""

import difflib
import math
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beats_trainer.datasets.annotations import Annotations

__all__ = ["window_clips"]

_ROUNDING_S = 1e-6
"""Far below one sample at 16 kHz: times closer than this are the same."""


def window_clips(
    annotations: Annotations,
    *,
    window_s: float = 5.0,
    hop_s: float | None = None,
    min_overlap_s: float = 0.25,
    min_label_fraction: float = 1.0,
    labels: Sequence[str] | None = None,
    keep_empty: bool = True,
    max_empty_ratio: float | None = None,
    seed: int = 42,
) -> pd.DataFrame:
    """Cut every annotated recording into windows, and say for each label whether it is in each.

    A label is present in a window if one annotation of it overlaps the window by ``min_overlap_s`` or
    more, or with ``min_label_fraction`` of its own length or more: a call shorter than ``min_overlap_s``
    counts where it is whole. An annotation that is so present in no window, cut by an edge, is present in
    the one that has most of it. Where a label overlaps a window otherwise, it is unknown there.

    Windows start every ``hop_s``; the last one is moved back so that it ends with the recording. A recording
    shorter than a window is one clip. Frequency limits and scores of annotations are not looked at.

    Args:
        annotations: From :func:`read_annotations`; recordings with nothing in them give empty windows.
        window_s: Seconds of a window.
        hop_s: Seconds between the starts of two windows; ``None`` means ``window_s``, no overlap.
        min_overlap_s: Seconds of an annotation in a window that are enough, at most ``window_s``.
        min_label_fraction: Part of an annotation in a window that is enough, above 0 to 1.
        labels: The labels that count; others are as if they were not annotated. ``None`` means all.
        keep_empty: Whether windows in which no label is present are kept.
        max_empty_ratio: At most this many such windows for each one with a label; ``None`` keeps all.
        seed: Which of them are kept.

    Returns:
        One row per window, recording by recording in time order: ``filename`` (absolute path),
        ``start_time``, ``end_time`` (seconds from its start), ``category`` and ``unknown`` (lists of labels,
        sorted; ``[]`` for none), ``group`` (the recording).

    Raises:
        ValueError: If a length, fraction or ratio is out of range, or ``hop_s`` would leave gaps.

    Warns:
        UserWarning: If ``labels`` names one that no annotation has.

    Example:
        >>> table = pd.DataFrame(
        ...     {"file": ["/dawn.wav"], "start_time": [4.0], "end_time": [5.1], "label": ["robin"]}
        ... )
        >>> clips = window_clips(Annotations(table, {"/dawn.wav": 12.0}))
        >>> clips[["start_time", "end_time", "category", "unknown"]].values.tolist()
        [[0.0, 5.0, ['robin'], []], [5.0, 10.0, [], ['robin']], [7.0, 12.0, [], []]]
    """
    hop_s = window_s if hop_s is None else hop_s
    if not 0 < hop_s <= window_s < math.inf:
        raise ValueError(
            f"Expected a window above 0 s and a hop of at most the window's length, so that nothing is "
            f"left out between windows; got window_s={window_s} and hop_s={hop_s}."
        )
    if not 0 < min_overlap_s <= window_s:
        raise ValueError(
            f"min_overlap_s must be above 0 and at most window_s ({window_s}), not {min_overlap_s}."
        )
    if not 0 < min_label_fraction <= 1:
        raise ValueError(
            f"min_label_fraction must be above 0 and at most 1, not {min_label_fraction}."
        )
    if max_empty_ratio is not None and not 0 <= max_empty_ratio < math.inf:
        raise ValueError(
            f"max_empty_ratio must be a number from 0, or None, not {max_empty_ratio}."
        )
    if max_empty_ratio is not None and not keep_empty:
        raise ValueError("max_empty_ratio has no effect with keep_empty=False: pass one of them.")
    table = annotations.table
    if labels is not None:
        _warn_of_unused(labels, annotations.labels)
        table = table[table["label"].isin(list(labels))]

    of_file = dict(iter(table.groupby("file", sort=False)))
    parts = []
    for file, duration_s in annotations.recordings.items():
        starts, ends = _place_windows(duration_s, window_s, hop_s)
        present: list[set[str]] = [set() for _ in starts]
        touched: list[set[str]] = [set() for _ in starts]
        if file in of_file:
            part = of_file[file]
            for start, end, label in zip(
                part["start_time"], part["end_time"], part["label"], strict=True
            ):
                first, overlaps = _overlaps(starts, ends, start, end)
                enough = (overlaps >= min_overlap_s - _ROUNDING_S) | (
                    overlaps >= min_label_fraction * (end - start) * (1 - 1e-9)
                )
                if not enough.any():
                    enough[np.argmax(overlaps)] = True
                for index in np.flatnonzero(enough | (overlaps > _ROUNDING_S)):
                    (present if enough[index] else touched)[first + index].add(label)
        parts.append(
            pd.DataFrame(
                {
                    "filename": file,
                    "start_time": starts,
                    "end_time": ends,
                    "category": [sorted(names) for names in present],
                    "unknown": [
                        sorted(some - names) for some, names in zip(touched, present, strict=True)
                    ],
                    "group": file,
                }
            )
        )
    columns = ["filename", "start_time", "end_time", "category", "unknown", "group"]
    if not parts:
        return pd.DataFrame(columns=columns)
    clips = pd.concat(parts, ignore_index=True)
    if keep_empty and max_empty_ratio is None:
        return clips
    is_empty = np.array([not names for names in clips["category"]])
    kept = _choose_empty(clips, is_empty, max_empty_ratio or 0.0, seed)
    return clips[~is_empty | kept].reset_index(drop=True)


def _place_windows(
    duration_s: float, window_s: float, hop_s: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Start and end of each window; both rise from one to the next."""
    if duration_s <= window_s + _ROUNDING_S:
        return np.zeros(1), np.array([duration_s])
    num_hops = max(1, math.ceil((duration_s - window_s) / hop_s - 1e-9))
    starts = np.arange(num_hops + 1, dtype=np.float64) * np.float64(hop_s)
    starts[-1] = duration_s - window_s
    ends = starts + np.float64(window_s)
    ends[-1] = duration_s
    return starts, ends


def _overlaps(
    starts: NDArray[np.float64], ends: NDArray[np.float64], start_s: float, end_s: float
) -> tuple[int, NDArray[np.float64]]:
    """The first window that an annotation reaches, and the seconds of it in that and the next ones."""
    first = min(int(np.searchsorted(ends, start_s, side="right")), len(starts) - 1)
    stop = max(int(np.searchsorted(starts, end_s, side="left")), first + 1)
    return first, np.minimum(ends[first:stop], end_s) - np.maximum(starts[first:stop], start_s)


def _choose_empty(
    clips: pd.DataFrame, is_empty: NDArray[np.bool_], ratio: float, seed: int
) -> NDArray[np.bool_]:
    """Which empty windows are kept: the same ones in whatever order the recordings came."""
    order = np.lexsort((clips["start_time"].to_numpy(), clips["filename"].to_numpy(str)))
    candidates = order[is_empty[order]]
    num_kept = min(len(candidates), math.floor(ratio * int((~is_empty).sum()) + 1e-9))
    kept = np.zeros(len(clips), dtype=bool)
    kept[np.random.default_rng(seed).choice(candidates, num_kept, replace=False)] = True
    return kept


def _warn_of_unused(labels: Sequence[str], known: list[str]) -> None:
    unused = [label for label in labels if label not in known]
    if unused:
        close = difflib.get_close_matches(unused[0], known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        warnings.warn(
            f"No annotation has the label {', '.join(map(repr, unused[:5]))}.{hint}", stacklevel=3
        )
