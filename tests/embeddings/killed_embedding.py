"""A run over recordings that is killed, again and again; started by ``test_run.py``.

Arguments: a folder, and how many runs are to be killed. A run is killed before or after a random change of
the disk, or at a random moment; each is started again until it ends, and then has the rows of an unbroken
run. The output is a folder and one file in turns. Prints how many runs were killed.
"""

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from beats_trainer import BEATsFeatureExtractor
from checkpoint_files import tiny_architecture, write_microsoft_checkpoint
from sounds import write_tone
from stored import rows_of

place, kills = Path(sys.argv[1]), int(sys.argv[2])


def prepare():
    write_microsoft_checkpoint(place / "model.pt", tiny_architecture())
    for number in range(6):
        write_tone(place / "in" / f"{number}.wav", seconds=0.2 + 0.3 * number, seed=number)
    (place / "in" / "2 broken.wav").write_text("no sound")
    write_tone(place / "in" / "long.flac", seconds=9.0, sample_rate=8_000)


def run(out, calls_left=0, before=False):
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

    extractor = BEATsFeatureExtractor(place / "model.pt", "cpu", precision="float32", batch_size=4)
    for name in ("replace", "fsync", "unlink", "mkdir", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    extractor.embed_to(place / "in", out, 0.5, 0.25, rows_per_shard=8, progress=False)


def check(out):
    assert rows_of(out) == rows_of(place / "unbroken")
    if out.suffix:
        names = sorted(path.name for path in out.parent.iterdir())
        assert names == ["one.errors.csv", "one.parquet"], names


def in_child(work, *arguments):  # this process computes nothing, so that it may fork
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


assert wait(in_child(prepare)) == 0
start = time.perf_counter()
assert wait(in_child(run, place / "unbroken")) == 0
seconds = time.perf_counter() - start
killed, chance, number = 0, random.Random(0), 0
while killed < kills:
    number += 1
    out = place / f"out {number}" / ("one.parquet" if number % 2 else "store")
    out.parent.mkdir()
    while True:
        if chance.random() < 0.7:
            child = in_child(run, out, chance.randint(1, 40), chance.random() < 0.5)
        else:
            child = in_child(run, out)
            time.sleep(chance.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
        code = wait(child)
        if code == 0:
            break
        assert code == -signal.SIGKILL, code
        killed += 1
    assert wait(in_child(check, out)) == 0
print(killed)
