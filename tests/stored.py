"""What a store holds, in a form that two stores can be compared in to the last bit."""

from beats_trainer.embeddings import open_store
from beats_trainer.embeddings.encoder import Encoder


def rows_of(path):
    """Each row: file, start, end, and the bits of its vectors; in the order of the store."""
    store = open_store(path)
    return [
        (
            row["file"],
            row["start_time"],
            row["end_time"],
            *(row[name].tobytes() for name in store.columns),
        )
        for row in store
    ]


def times_of(path):
    """The rows' start and end, by the last part of the file's name."""
    found = {}
    for file, start, end, *_ in rows_of(path):
        found.setdefault(file.rsplit("/", 1)[-1], []).append((start, end))
    return found


class WatchedNetwork:
    """Counts the windows that the network is given, and does something when it comes to a certain batch."""

    def __init__(self, monkeypatch):
        self.num_batches = 0
        self.num_windows = 0
        self._actions = {}
        encode = Encoder.encode_batch

        def encode_batch(encoder, waveforms):
            action = self._actions.pop(self.num_batches, None)
            if action is not None:
                action()
            self.num_batches += 1
            self.num_windows += len(waveforms)
            return encode(encoder, waveforms)

        monkeypatch.setattr(Encoder, "encode_batch", encode_batch)

    def reset(self):
        """Forget what was counted and planned."""
        self.num_batches = self.num_windows = 0
        self._actions = {}

    def before_batch(self, number, action):
        """Call ``action`` before the batch of this number, from 0, of those since the last ``reset``."""
        self._actions[number] = action

    def interrupt_before_batch(self, number):
        """Do what Ctrl-C does."""

        def interrupt():
            raise KeyboardInterrupt

        self.before_batch(number, interrupt)
