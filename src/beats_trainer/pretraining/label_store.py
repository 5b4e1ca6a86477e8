"""Codes of a fixed set of windows on disk, made once, to be learned from in every pass.

codes of windows -> [memory-mapped table, what it was made of] -> codes of a batch

For tokenizers that cost as much as the encoder, and archives that are heard many times. Two bytes per token: a
million windows of 10 s take 1 GB, of which only what is read is in memory. The store knows its tokenizer, its grid of patches and
its archive, and refuses to be used with others: codes beside the patches that they belong to teach nothing.

Shapes in this file: N windows, L tokens of the longest.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beats_trainer.atomic import written_whole
from beats_trainer.errors import StoreError, StoreMismatchError, StoreNotFoundError

__all__ = ["LabelOrigin", "LabelStore", "crop_labels"]

_HEADER, _CODES, _DONE = "labels.json", "labels.npy", "done.json"


@dataclass(frozen=True)
class LabelOrigin:
    """What the codes of a store belong to.

    Attributes:
        tokenizer_sha256: Of the tokenizer's weights.
        num_codes: Codes that it has.
        input_patch_size: Frames and mel bands of a patch.
        fbank_mean: Of the front end that the tokenizer heard through.
        fbank_std: The same.
        window_samples: Longest window.
        archive_sha256: Of the archive that was cut into windows.
        seed: Of the cutting.
    """

    tokenizer_sha256: str
    num_codes: int
    input_patch_size: int
    fbank_mean: float
    fbank_std: float
    window_samples: int
    archive_sha256: str
    seed: int


class LabelStore:
    """Codes of windows, by the windows' numbers. Use `create` or `open`.

    Attributes:
        origin: What they belong to.
        num_done: Windows from the first on that have their codes.
    """

    def __init__(
        self, folder: Path, origin: LabelOrigin, codes: NDArray[np.uint16], num_done: int
    ) -> None:
        self._folder = folder
        self._codes_NL = codes
        self.origin = origin
        self.num_done = num_done

    def __len__(self) -> int:
        return len(self._codes_NL)

    @property
    def is_complete(self) -> bool:
        """Whether every window has its codes."""
        return self.num_done == len(self)

    @classmethod
    def create(
        cls, folder: Path, origin: LabelOrigin, num_windows: int, num_tokens: int
    ) -> "LabelStore":
        """Begin a store, or go on with one that was broken off.

        Args:
            folder: Is made if missing.
            origin: What the codes will belong to.
            num_windows: N.
            num_tokens: L.

        Raises:
            StoreMismatchError: If there is one of another origin.
            StoreError: If there are more codes than two bytes can tell apart.
        """
        if origin.num_codes > 2**16:
            raise StoreError(
                f"A store of labels has two bytes per code: at most 65,536 codes, not {origin.num_codes}."
            )
        if (folder / _HEADER).is_file():
            return cls.open(folder, origin, writable=True)
        folder.mkdir(parents=True, exist_ok=True)
        codes = np.lib.format.open_memmap(
            folder / _CODES, mode="w+", dtype=np.uint16, shape=(num_windows, num_tokens)
        )
        codes.flush()
        with written_whole(folder / _HEADER) as partial:  # last: with it the store exists
            partial.write_text(json.dumps(dataclasses.asdict(origin), indent=2), encoding="utf-8")
        return cls(folder, origin, codes, 0)

    @classmethod
    def open(cls, folder: Path, expected: LabelOrigin, *, writable: bool = False) -> "LabelStore":
        """Open a store, if it belongs to what is expected.

        Args:
            folder: Of the store.
            expected: What its codes must belong to.
            writable: Whether codes may be added.

        Raises:
            StoreNotFoundError: If there is none.
            StoreMismatchError: If its codes belong to something else; names what differs.
            StoreError: If it is damaged.
        """
        try:
            header = json.loads((folder / _HEADER).read_text(encoding="utf-8"))
            origin = LabelOrigin(**header)
            codes = np.load(folder / _CODES, mmap_mode="r+" if writable else "r")
            done = folder / _DONE
            num_done = int(json.loads(done.read_text())["windows"]) if done.is_file() else 0
        except FileNotFoundError as error:
            raise StoreNotFoundError(f"There is no store of labels in {folder}.") from error
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(
                f"The store of labels {folder} is damaged ({error}). Remove it, and it is made anew."
            ) from error
        differences = [
            (field.name, json.dumps(old), json.dumps(new))
            for field in dataclasses.fields(LabelOrigin)
            if (old := getattr(origin, field.name)) != (new := getattr(expected, field.name))
        ]
        if differences:
            raise StoreMismatchError(folder, differences)
        return cls(folder, origin, codes, num_done)

    def add(self, codes: Sequence[NDArray[np.int64]]) -> None:
        """Add the codes of the next windows; they are on disk when this returns.

        Args:
            codes: Of each window, shape ``(tokens,)``, in the order of the windows.

        Raises:
            ValueError: If there are more windows than the store has, or a code is none of its tokenizer's.
        """
        if self.num_done + len(codes) > len(self):
            raise ValueError(f"The store has {len(self)} windows, and codes of more were given.")
        for row, values in enumerate(codes, start=self.num_done):
            if len(values) > self._codes_NL.shape[1] or (
                len(values) and not 0 <= values.min() <= values.max() < self.origin.num_codes
            ):
                raise ValueError(
                    f"Window {row} has {len(values)} codes up to {values.max()}; expected at most "
                    f"{self._codes_NL.shape[1]} below {self.origin.num_codes}."
                )
            self._codes_NL[row, : len(values)] = values
        assert isinstance(self._codes_NL, np.memmap)
        self._codes_NL.flush()
        self.num_done += len(codes)
        with written_whole(self._folder / _DONE) as partial:
            partial.write_text(json.dumps({"windows": self.num_done}))

    def codes(self, windows: Sequence[int], num_tokens: int) -> NDArray[np.int64]:
        """The codes of some windows, shape ``(len(windows), num_tokens)``; behind a shorter one's, anything.

        Raises:
            StoreError: If one has none yet.
        """
        if len(windows) and max(windows) >= self.num_done:
            raise StoreError(
                f"Of {len(self)} windows {self.num_done} have labels, and window {max(windows)} is wanted. "
                "The labelling was broken off: run it again, and it goes on."
            )
        return self._codes_NL[list(windows), :num_tokens].astype(np.int64)


def crop_labels(
    codes_L: NDArray[np.int64], first_sample: int, num_samples: int, patch_size: int = 16
) -> NDArray[np.int64]:
    """The codes of a part of a window that starts where one of its time steps does.

    Exact for tokenizers that look at each patch alone, such as a random projection: a frame depends on its own 400
    samples only. One that hears the whole window gives a part other codes than these.

    Args:
        codes_L: Of the window, time-major: 8 per time step for patches of 16.
        first_sample: Where the part starts, a multiple of a time step's samples (2,560 for patches of 16).
        num_samples: Its length.
        patch_size: Frames and mel bands of a patch.

    Raises:
        ValueError: If it starts elsewhere, has no whole patch, or reaches past the window.

    Example:
        >>> crop_labels(np.arange(24), 2_560, 2_800).tolist()
        [8, 9, 10, 11, 12, 13, 14, 15]
    """
    step_samples, per_step = 160 * patch_size, 128 // patch_size
    if first_sample % step_samples:
        raise ValueError(
            f"A part with labels starts at a multiple of {step_samples} samples, where a patch does, not at "
            f"{first_sample}: there, every patch would have the code of another."
        )
    num_steps = (1 + (num_samples - 400) // 160) // patch_size
    first = first_sample // step_samples
    if num_steps < 1 or (first + num_steps) * per_step > len(codes_L):
        raise ValueError(
            f"A part of {num_samples} samples from {first_sample} on has {max(0, num_steps)} time steps; the window "
            f"has {len(codes_L) // per_step}, and {first} lie before it."
        )
    return codes_L[first * per_step : (first + num_steps) * per_step]
