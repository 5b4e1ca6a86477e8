"""Every exception that beats_trainer raises on purpose.

```text
BEATsTrainerError
|-- ConfigError (ValueError)                  a setting is unknown, of the wrong type, or contradicts another
|-- DatasetError (ValueError)                 a table of clips cannot be used as it is
|   `-- DatasetNotFoundError (FileNotFoundError)    a data set's folder or table is not there
|-- AudioError                                one file or array cannot be read; has .file and .reason
|   `-- AudioNotFoundError (FileNotFoundError)    the file is not there
|-- CheckpointError                           weights cannot be had or used
|   |-- UnknownCheckpointError (ValueError)       no checkpoint has this name; has .name and .known
|   |-- CheckpointNotFoundError (FileNotFoundError)   known, but neither on disk nor downloadable now
|   `-- InvalidCheckpointError (ValueError)       the file is damaged, not a checkpoint, or does not fit
|-- CodebookCollapseError                     codes have become all alike: nothing is learned from them
|-- StoreError (ValueError)                   a store of embeddings or scores cannot be used as it is
|   |-- StoreNotFoundError (FileNotFoundError)    there is no store
|   |-- StoreMismatchError                        it was made by another recipe; has .differences
|   `-- StoreInUseError                           another run writes to it; has .holder
`-- DownloadError (OSError)                   a transfer failed, or its content is not what was published
```

Each says what was expected, what came, and what to do next. What is our own mistake is an
``AssertionError``, never one of these. A wrong argument to a single function is a plain ``ValueError``
or ``TypeError``, as everywhere in Python.
"""

import difflib
import os
from collections.abc import Iterable, Sequence

__all__ = [
    "AudioError",
    "AudioNotFoundError",
    "BEATsTrainerError",
    "CheckpointError",
    "CheckpointNotFoundError",
    "CodebookCollapseError",
    "ConfigError",
    "DatasetError",
    "DatasetNotFoundError",
    "DownloadError",
    "InvalidCheckpointError",
    "StoreError",
    "StoreInUseError",
    "StoreMismatchError",
    "StoreNotFoundError",
    "UnknownCheckpointError",
]


class BEATsTrainerError(Exception):
    """Anything that beats_trainer raises on purpose; catch this to catch them all."""


class CodebookCollapseError(BEATsTrainerError):
    """A tokenizer gives nearly every token one of a few codes: nothing can be learned from them."""


class ConfigError(BEATsTrainerError, ValueError):
    """A setting is unknown, has the wrong type or range, or contradicts another."""


class DatasetError(BEATsTrainerError, ValueError):
    """A table or folder of clips cannot be trained on or evaluated as it is."""


class DatasetNotFoundError(DatasetError, FileNotFoundError):
    """The folder, table or published data set that was asked for is not there."""


class AudioError(BEATsTrainerError):
    """One recording cannot be read.

    Attributes:
        file: The file as the user named it, or a description of an array.
        reason: What is wrong with it, one sentence.
    """

    def __init__(self, file: str | os.PathLike[str], reason: str) -> None:
        self.file = os.fspath(file)
        self.reason = reason
        super().__init__(f"Cannot read audio from {self.file}: {reason}")

    def __reduce__(self) -> tuple[type["AudioError"], tuple[str, str]]:
        return type(self), (self.file, self.reason)  # survives a worker process


class AudioNotFoundError(AudioError, FileNotFoundError):
    """The recording is not there."""

    def __init__(
        self, file: str | os.PathLike[str], reason: str = "there is no such file."
    ) -> None:
        super().__init__(file, reason)

    def __str__(self) -> str:
        return f"Cannot read audio from {self.file}: {self.reason}"


class CheckpointError(BEATsTrainerError):
    """Weights cannot be had, read or used."""


class UnknownCheckpointError(CheckpointError, ValueError):
    """No checkpoint is known by this name.

    Attributes:
        name: What was asked for.
        known: The names that exist.
    """

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.known = list(known)
        close = difflib.get_close_matches(name, self.known, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        shown = ", ".join(self.known[:5])
        if len(self.known) > 5:
            shown += f" and {len(self.known) - 5} more, see list_available_models()"
        super().__init__(
            f"There is no checkpoint named {name!r}.{hint} Known names: {shown}. "
            "To load a file or folder instead, pass its path."
        )


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """A checkpoint that is known, or a path that was given, is not there."""


class InvalidCheckpointError(CheckpointError, ValueError):
    """A file is damaged, is not a checkpoint, or does not fit the network it is meant for."""


class StoreError(BEATsTrainerError, ValueError):
    """A store of embeddings or scores is damaged, is none, or does not fit what is asked of it."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """There is no store at this path."""

    def __str__(self) -> str:
        return str(self.args[0])  # the message alone, where an OSError would look for a number


class StoreMismatchError(StoreError):
    """A store holds what was made by another recipe than the one to go on with.

    Attributes:
        path: The store.
        differences: Setting, its value in the store and the one asked for now; values as JSON.
    """

    def __init__(
        self, path: str | os.PathLike[str], differences: Sequence[tuple[str, str, str]]
    ) -> None:
        self.path = os.fspath(path)
        self.differences = list(differences)
        changes = "\n".join(f"  {name}: {old} -> {new}" for name, old, new in self.differences)
        super().__init__(
            f"{self.path} holds rows of another recipe (in the store -> now):\n{changes}\n"
            "Use the settings that it was made with, choose another output, or replace it with "
            "overwrite=True (--overwrite)."
        )

    def __reduce__(
        self,
    ) -> tuple[type["StoreMismatchError"], tuple[str, list[tuple[str, str, str]]]]:
        return type(self), (self.path, self.differences)


class StoreInUseError(StoreError):
    """Another run writes to the store.

    Attributes:
        path: The store.
        holder: Who it is, as far as known: process id, host, and since when.
    """

    def __init__(self, path: str | os.PathLike[str], holder: str) -> None:
        self.path = os.fspath(path)
        self.holder = holder
        super().__init__(
            f"{self.path} is being written to by another run: {holder}. Wait until it has ended, or choose "
            "another output."
        )

    def __reduce__(self) -> tuple[type["StoreInUseError"], tuple[str, str]]:
        return type(self), (self.path, self.holder)


class DownloadError(BEATsTrainerError, OSError):
    """A download failed, or what arrived is not what was published."""
