"""``beats-trainer demo``: the whole main job on sounds that it makes itself, without network, in a minute or two.

make sounds -> train a head on an encoder that is here -> evaluate -> embed, find neighbours -> predict -> detect

The encoder is a large one if it is on this machine, else the one that comes with the package.

Twin of the Python calls that it makes, which are the ones a user makes too.
"""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from beats_trainer.cli.exit_code import ExitCode
from beats_trainer.cli.output import format_table
from beats_trainer.errors import BEATsTrainerError

if TYPE_CHECKING:
    from beats_trainer.config import Config
    from beats_trainer.embeddings.table import EmbeddingTable

__all__ = ["add_arguments", "run"]

SUMMARY = "Make sounds, train a model on them, and use it; needs no network and no data."
USAGE = "[-o FOLDER]"
EPILOG = """\
Takes a minute or two on two CPU cores. It uses a large checkpoint that is on this machine, or else beats_nano, the small one
that comes with the package, and says which. The folder then holds the sounds, the run, the model, the
embeddings, and what was found in a recording; the last lines printed are commands to go on with.
"""

_CLIPS_PER_CLASS = 80
_SEED = 7
_SECONDS_PER_KIND = 12.0
_WINDOW_S, _HOP_S = 2.0, 0.5
"""A window is about as long as a clip."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "-o", "--output", default="beats_demo", metavar="FOLDER", help="(default: beats_demo)"
    )


def run(arguments: argparse.Namespace) -> ExitCode:
    """Run the command."""
    start = time.monotonic()
    folder = Path(arguments.output)
    sounds, new_sounds, model = folder / "sounds", folder / "new_sounds", folder / "model"

    from beats_trainer.cli.demo_sounds import SOUNDS, make_clips, make_recording

    _say(f"1. Making {_CLIPS_PER_CLASS} clips each of {', '.join(SOUNDS)}, in {sounds}")
    make_clips(sounds, _CLIPS_PER_CLASS, _SEED, folder_per_class=True)
    make_clips(new_sounds, 1, _SEED + 1, folder_per_class=False)

    from beats_trainer import BEATsPredictor, BEATsTrainer

    _say("\n2. Training a head on an encoder that is on this machine")
    trainer = BEATsTrainer.from_directory(sounds, config=_config(), log_dir=folder / "runs")
    encoder = trainer.model.beats.architecture
    _say(
        f"{trainer.config.model.model_path}: {encoder.encoder_layers} layers of width {encoder.encoder_embed_dim}"
    )
    result = trainer.train(verbose=False)
    trainer.save(model)
    print(result)

    _say("\n3. The test clips, which training did not see")
    metrics = trainer.evaluate("test")
    print(metrics)
    print(
        f"{metrics.accuracy:.0%} of {metrics.num_clips} clips are right; guessing would give "
        f"{1 / len(SOUNDS):.0%}."
    )

    _say("\n4. New sounds: what they are, and what they resemble most")
    files = sorted(str(file) for file in sounds.rglob("*.wav"))
    new_files = sorted(str(file) for file in new_sounds.glob("*.wav"))
    predictor = BEATsPredictor.from_pretrained(model)
    scores = predictor.predict(new_files)
    extractor = trainer.get_feature_extractor()
    library = extractor.embed(files)
    library.to_parquet(folder / "embeddings.parquet")
    nearest = _nearest(extractor.embed(new_files), library)
    rows = [
        (Path(file).name, label, f"{score:.2f}", Path(neighbour).name)
        for file, label, score, neighbour in zip(
            scores["file"], scores["label"], scores["score"], nearest, strict=True
        )
    ]
    print(format_table(["new sound", "label", "score", "nearest known sound"], rows))

    recording = folder / "recordings" / "20240510_043000.wav"
    _say(f"\n5. A recording of a minute: what is heard when, in {folder / 'found'}")
    made = make_recording(recording, _SECONDS_PER_KIND, _SEED + 2)
    found = predictor.detect(
        recording.parent,
        folder / "found",
        window_s=_WINDOW_S,
        hop_s=_HOP_S,
        min_duration_s=_WINDOW_S,
        merge_gap_s=_WINDOW_S,
        formats=["csv", "raven", "audacity"],
        overwrite=True,
        progress=False,
    )
    events = found.events
    middles = (events["start_time"] + events["end_time"]) / 2
    columns = [
        events["datetime"].dt.strftime("%H:%M:%S"),
        events["start_time"].map("{:.1f}".format),
        events["end_time"].map("{:.1f}".format),
        events["label"],
        events["score"].map("{:.2f}".format),
        [made[int(middle // _SECONDS_PER_KIND)] for middle in middles],
    ]
    header = ["time", "from s", "to s", "label", "score", "made"]
    print(format_table(header, list(zip(*columns, strict=True))))

    program = _program()
    print(
        f"\nDone in {time.monotonic() - start:.0f} s. Go on with:\n"
        f"  {program} predict {model} {new_sounds} --top 3\n"
        f"  {program} detect {recording.parent} -o {folder / 'found'} --model {model} "
        f"--window {_WINDOW_S:g} --hop {_HOP_S:g} --threshold 0.7\n"
        f"  {program} evaluate {model}\n"
        f"  {program} embed {sounds} -o {folder / 'windows.parquet'} --model {model} --window 0.5\n"
        "With your own recordings, one folder per class:\n"
        f"  {program} train RECORDINGS"
    )
    if metrics.accuracy < 2 / len(SOUNDS):
        raise BEATsTrainerError(
            f"The demo's accuracy is {metrics.accuracy:.2f}, where about 0.9 is usual: something is wrong "
            "with this installation. Please report it, with the versions of Python and torch."
        )
    return ExitCode.OK


def _say(text: str) -> None:
    print(text, flush=True)  # at once, also into a pipe: what follows takes time


def _program() -> str:
    """How to call this program again, from where it was called."""
    called_as = sys.argv[0]
    if not os.path.basename(called_as).startswith("beats-trainer"):
        return "python -m beats_trainer"
    return "beats-trainer" if shutil.which("beats-trainer") else called_as


def _config() -> "Config":
    from beats_trainer.checkpoints.registry import AUTO
    from beats_trainer.config import Config, DataConfig, ModelConfig

    return Config(
        experiment_name="demo",
        seed=_SEED,
        data=DataConfig(train_split=0.6, val_split=0.2, test_split=0.2, num_workers=0),
        model=ModelConfig(model_path=AUTO),
    )


def _nearest(new: "EmbeddingTable", library: "EmbeddingTable") -> list[str]:
    """The file of each new embedding's nearest neighbour, by cosine."""
    import numpy as np

    lengths = np.linalg.norm(library.embeddings, axis=1)
    best = (new.embeddings @ library.embeddings.T / lengths).argmax(axis=1)
    return [library.file[index] for index in best]
