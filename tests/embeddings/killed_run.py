"""A run that writes a store and is killed, again and again; started by ``test_store.py``.

Arguments: the folder, and how many rounds. After each kill the store is checked: every clip has the rows that
its progress says, in order, none twice, and all of one state of its file. Prints how many were killed.
"""

import os
import random
import signal
import sys
import time
import traceback

import numpy as np

from beats_trainer.embeddings import open_store
from beats_trainer.embeddings.journal import Covered, FileState
from beats_trainer.embeddings.store_writer import StoreWriter
from beats_trainer.loading.clips import Clip

out, rounds = sys.argv[1], int(sys.argv[2])
LENGTH = {f"{n}.wav": 1 + n % 7 for n in range(60)}
CHANGING = {f"{n}.wav" for n in range(0, 60, 3)}  # these are other files in every third round


def state_of(name, version):
    return FileState(version if name in CHANGING else 1, 0)


def run(version):
    with StoreWriter(out, {"embedding": 2}, {}) as writer:
        known = {clip: writer.progress(clip) for clip in writer.clips_known}
        writer.forget([c for c, p in known.items() if p.state != state_of(c.file, version)])
        covered, file, start = [], [], []
        for name, length in LENGTH.items():
            before = writer.progress(Clip(name))
            if before is not None and before.is_complete:
                continue
            window = before.next_window if before is not None else 0
            while window < length:
                stop = min(length, window + 5 - len(file))
                covered.append(
                    Covered(Clip(name), state_of(name, version), 1.0, window, stop, stop == length)
                )
                file += [name] * (stop - window)
                start += range(window, stop)
                window = stop
                if len(file) == 5:
                    write(writer, covered, file, start)
                    covered, file, start = [], [], []
        if covered:
            write(writer, covered, file, start)


def write(writer, covered, file, start):
    size = [{item.clip.file: item.state.size for item in covered}[name] for name in file]
    values = {"embedding": np.stack([start, size], axis=1)}
    writer.write_shard(covered, file, start, np.add(start, 1), values)


def check(version, complete):
    with StoreWriter(out, {"embedding": 2}, {}) as writer:
        rows = open_store(out).to_pandas()
        known = {clip.file: writer.progress(clip) for clip in writer.clips_known}
        assert set(rows["file"]) <= set(known)
        for name, progress in known.items():
            mine = rows[rows["file"] == name]
            assert mine["start_time"].tolist() == list(range(progress.next_window)), (name, mine)
            assert progress.is_complete == (progress.next_window == LENGTH[name])
            assert all(vector[1] == progress.state.size for vector in mine["embedding"]), name
        if complete:
            assert known.keys() == LENGTH.keys()
            assert all(p.is_complete and p.state == state_of(n, version) for n, p in known.items())


def in_child(work, *arguments):  # this process never uses Arrow's threads, so that it may fork
    child = os.fork()
    if child:
        return child
    try:
        work(*arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_until(version, calls_left, before):
    """Kill this process before or after its n-th call that changes the disk."""

    def counted(call):
        def wrapper(*arguments, **options):
            nonlocal calls_left
            calls_left -= 1
            if calls_left == 0 and before:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*arguments, **options)
            if calls_left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapper

    for name in ("replace", "fsync", "unlink", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))
    run(version)


killed, chance = 0, random.Random(0)
for number in range(rounds):
    version = 2 + number // 3
    if number % 3:
        child = in_child(run_until, version, chance.randint(1, 25), chance.random() < 0.5)
    else:  # at any moment
        child = in_child(run, version)
        time.sleep(chance.uniform(0.001, 0.03))
        os.kill(child, signal.SIGKILL)
    killed += wait(child) == -signal.SIGKILL
    assert wait(in_child(check, version, False)) == 0
assert wait(in_child(run, version)) == 0
assert wait(in_child(check, version, True)) == 0
print(killed)
