"""Run the Python blocks of a Markdown document, in a folder where everything that they name stands in."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import soundfile
import torch

from beats_trainer import BEATsForAudioClassification, BEATsModel
from beats_trainer.model import Architecture, BEATs, ClassifierHead
from checkpoint_files import tiny_architecture
from tones import PITCHES, tone, write_tones

_HEADING = re.compile(r"#+ +(.*)")
_FENCE = re.compile(r"```(\w*)")


@dataclass(frozen=True)
class Block:
    """A fenced block: the heading above it, made a name, and its place in the document."""

    name: str
    language: str
    code: str
    line: int


def read_blocks(document: Path, language: str) -> list[Block]:
    """The document's blocks of one language; names are headings, numbered where several share one."""
    blocks: list[Block] = []
    heading, lines, opened, language_here = "start", [], 0, None
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), start=1):
        fence = _FENCE.match(line)
        if language_here is None and fence:
            language_here, opened, lines = fence[1], number, []
        elif fence:
            if language_here == language:
                same = sum(re.sub(r"-\d+$", "", block.name) == heading for block in blocks)
                name = f"{heading}-{same + 1}" if same else heading
                blocks.append(Block(name, language, "\n".join(lines) + "\n", opened))
            language_here = None
        elif language_here is not None:
            lines.append(line)
        elif match := _HEADING.match(line):
            heading = "-".join(re.findall(r"[a-z0-9]+", match[1].lower()))
    return blocks


def run_block(
    block: Block, document: Path, substitutions: dict[str, str], prelude: str
) -> dict[str, Any]:
    """Execute a block as a script and return its names."""
    code = block.code
    for written, instead in substitutions.items():
        code = code.replace(written, instead)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(prelude, f"prelude of {block.name}", "exec"), names)
    # Line numbers of the document, so that a traceback points into it.
    exec(compile("\n" * block.line + code, str(document), "exec"), names)
    return names


def build_stand_ins(folder: Path) -> Path:
    """Make every file that the documents name: tiny tones, tiny data sets, tiny checkpoints."""
    for name in (
        *("audio.wav", "audio1.wav", "audio2.wav", "query.wav", "new_audio1.wav", "new_audio2.wav"),
        *("song1.mp3", "song2.mp3"),
        *(f"recordings/night_{n}.wav" for n in range(12)),
        "recordings/20240510_043000.WAV",
        *("audio/sample1.wav", "audio/sample2.mp3", "audio/sample3.flac", "audio/sample4.wav"),
    ):
        _write(folder / name)
    for place in ("path/to/dataset", "path/to/your/audio/data", "path/to/your_dataset"):
        write_tones(folder / place, num_clips=10)
    _write(folder / "path/to/your_dataset/high/more.mp3")
    _write(folder / "path/to/your_dataset/low/more.flac")

    write_tones(folder / "path/to/audio/files", num_clips=10)
    rows = [(f"{label}/clip_{n}.wav", label) for label in PITCHES for n in range(10)]
    columns = ["file_path", "class_name"]
    pd.DataFrame(rows, columns=columns).to_csv(
        folder / "path/to/audio/files/labels.csv", index=False
    )
    _write_csv(
        folder / "your_data.csv",
        [(f"path/to/dataset/{file}", label) for file, label in rows],
    )
    _write_csv(
        folder / "dataset.csv",
        [
            ("audio/sample1.wav", "bird"),
            ("audio/sample2.mp3", "dog"),
            ("audio/sample3.flac", "cat"),
            ("audio/sample4.wav", "bird"),
        ],
    )
    _write_esc50(folder / "path/to/ESC-50-master")
    _write_esc50(folder / "datasets/ESC-50-master")
    _write_urbansound8k(folder / "path/to/UrbanSound8K")

    (folder / "checkpoints").mkdir()
    for number, name in enumerate(("BEATs_iter3_plus_AS2M.pt", "openbeats_i3.pt")):
        torch.save(_small_checkpoint(seed=number), folder / "checkpoints" / name)
    _small_classifier().save_pretrained(folder / "my_model")
    return folder


def copy_stand_ins(stand_ins: Path, folder: Path) -> Path:
    """A copy to work in; files are links, for what is written is always a new file."""
    shutil.copytree(stand_ins, folder, copy_function=os.link, dirs_exist_ok=True)
    return folder


def _small_checkpoint(seed: int) -> dict[str, Any]:
    """Of the released width, 768, in Microsoft's layout; but one thin layer instead of twelve."""
    torch.manual_seed(seed)
    architecture = Architecture(
        encoder_layers=1, encoder_ffn_embed_dim=64, conv_pos=16, num_buckets=32, max_distance=80
    )
    return BEATsModel(architecture).to_microsoft()


def _small_classifier() -> BEATsForAudioClassification:
    """A model folder such as training leaves."""
    torch.manual_seed(0)
    architecture = tiny_architecture()
    head = ClassifierHead(architecture.encoder_embed_dim, 3)
    labels = ["wren", "robin", "crow"]
    return BEATsForAudioClassification(BEATs(architecture), head, labels, "sigmoid", window_s=0.2)


def _write(file: Path, pitch: float = 600.0, seed: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, tone(pitch, seed), 16000)


def _write_csv(file: Path, rows: list[tuple[str, str]]) -> None:
    pd.DataFrame(rows, columns=["filename", "category"]).to_csv(file, index=False)


def _write_esc50(root: Path) -> None:
    """Three classes of ten clips, in the real layout."""
    rows = []
    for target, (label, pitch) in enumerate(PITCHES.items()):
        for number in range(10):
            fold, source = number % 5 + 1, 1000 * target + number
            name = f"{fold}-{source}-A-{target}.wav"
            _write(root / "audio" / name, pitch, number)
            rows.append((name, fold, target, label, False, source, "A"))
    columns = ["filename", "fold", "target", "category", "esc10", "src_file", "take"]
    (root / "meta").mkdir()
    pd.DataFrame(rows, columns=columns).to_csv(root / "meta" / "esc50.csv", index=False)


def _write_urbansound8k(root: Path) -> None:
    """Three classes with a clip in each of the ten folds, in the real layout."""
    rows = []
    for target, (label, pitch) in enumerate(PITCHES.items()):
        for fold in range(1, 11):
            source = 1000 * target + fold
            name = f"{source}-{target}-0-0.wav"
            _write(root / "audio" / f"fold{fold}" / name, pitch, fold)
            rows.append((name, source, 0.0, 0.4, 1, fold, target, label))
    columns = ["slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class"]
    (root / "metadata").mkdir()
    pd.DataFrame(rows, columns=columns).to_csv(root / "metadata" / "UrbanSound8K.csv", index=False)
