"""Pre-train an encoder on recordings without labels.

recordings -> [archive -> iteration 1: tokenizer, encoder -> iteration 2 -> ...] -> encoder folder

What `beats-trainer pretrain` does. A run is one folder; whatever stops it, the same call goes on with it:

```text
OUT/
|-- config.yaml            every setting, none left open
|-- recordings.csv         what is heard: file, part, size
|-- iteration_1/
|   |-- tokenizer/             a model folder: load_tokenizer
|   |-- encoder/               a model folder: BEATsModel.from_pretrained
|   |-- encoder_history.csv    one row per logged step (tokenizer_history.csv where one was trained)
|   `-- encoder_checkpoints/   what a stage that was broken off goes on from
|-- iteration_2/ ...
|-- curves.html            all histories, to look at
`-- model/                 the last iteration's encoder
```
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from beats_trainer.config import settled
from beats_trainer.errors import ConfigError
from beats_trainer.loading.archive import Archive
from beats_trainer.loading.inputs import ClipInput
from beats_trainer.pretraining_config import PretrainingConfig

if TYPE_CHECKING:
    from beats_trainer.checkpoints import BEATsModel
    from beats_trainer.training.pretraining_stages import Stages

__all__ = ["BEATsPretrainer", "PretrainingResult"]

log = logging.getLogger(__name__)

_FREE_SETTINGS = (
    "cache_audio_gb",
    "checkpoint_every",
    "device",
    "gradient_checkpointing",
    "num_workers",
)
"""Settings that a run may go on with others of: what it learns does not depend on them."""
_MUCH_SILENCE = 0.5
_MANY_PASSES = 300


@dataclass(frozen=True)
class PretrainingResult:
    """What pre-training has given.

    Attributes:
        model: Folder of the last iteration's encoder.
        histories: Rows of each stage, by its name (``"iteration_1/encoder"``).
    """

    model: Path
    histories: dict[str, list[dict[str, float]]]

    def load(self) -> "BEATsModel":
        """The encoder."""
        from beats_trainer.checkpoints import BEATsModel

        return BEATsModel.from_pretrained(self.model)

    def __str__(self) -> str:
        lines = []
        for name, rows in self.histories.items():
            if not rows:
                continue
            last = {
                key: value for row in rows for key, value in row.items()
            }  # the last that there is
            shown = (
                "loss",
                "val_loss",
                "unigram",
                "accuracy",
                "cosine",
                "perplexity",
                "probe_accuracy",
            )
            values = ", ".join(f"{key} {last[key]:.3g}" for key in shown if key in last)
            lines.append(f"{name}: {int(last['step'])} steps, {values}")
        return "\n".join([*lines, f"Encoder: {self.model}"])


class BEATsPretrainer:
    """Pre-training of an encoder: masked audio modelling with acoustic tokenizers (arXiv 2212.09058).

    Args:
        recordings: Files, folders, patterns, tables: see ``beats_trainer.loading.find_clips``.
        output: Folder of the run. If there is a run in it with the same settings, `run` goes on with it; then
            ``recordings`` may be left out.
        config: Settings; ``None`` takes the defaults.
        exclude: Patterns of files to leave out, such as ``"*/test/*"``.
        **settings: Single settings, which go over those of ``config``.

    Raises:
        ConfigError: If a setting is wrong.

    Example:
        >>> pretrainer = BEATsPretrainer("archive/", "runs/frogs", architecture="small")  # doctest: +SKIP
        >>> encoder = pretrainer.run().load()  # doctest: +SKIP
    """

    def __init__(
        self,
        recordings: ClipInput | Iterable[ClipInput] | None,
        output: str | os.PathLike[str],
        config: PretrainingConfig | None = None,
        *,
        exclude: Iterable[str] = (),
        **settings: Any,
    ) -> None:
        merged = {**(config or PretrainingConfig()).to_dict(), **settings}
        self.config = PretrainingConfig.from_dict(merged)
        self.recordings = recordings
        self.output = Path(output).expanduser()
        self.exclude = list(exclude)

    def run(self, progress: bool | None = None) -> PretrainingResult:
        """Run all iterations, or what is left of them.

        Args:
            progress: Show progress lines; ``None`` shows them on a terminal.

        Raises:
            ConfigError: If settings do not fit the run that is in the folder, the recordings, or the checkpoint.
            DatasetError: If there is too little sound, only silence, or recordings have changed since the run was begun.
            AudioError: If an input cannot be found, or too much of it cannot be read.
            CheckpointError: If a checkpoint or tokenizer cannot be had.
            CodebookCollapseError: If codes have become all alike.
            BEATsTrainerError: If the loss stops being finite, or a process of training is lost.
        """
        from beats_trainer.checkpoints import BEATsModel
        from beats_trainer.checkpoints.folder import is_model_folder
        from beats_trainer.model.precision import resolve_device
        from beats_trainer.reports.curves import write_curves
        from beats_trainer.training.pretraining_stages import Stages

        shows = sys.stderr.isatty() if progress is None else progress
        config = self.config.resolved()
        self._require_free()
        self.output.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(self.output / ".lock", timeout=0)
            lock.acquire()
        except Timeout:
            raise ConfigError(
                f"Another process is pre-training in {self.output}. Wait for it, or choose another folder."
            ) from None
        try:
            archive = self._archive(config, shows)
            train, held_out = archive.split(config.validation_share, config.seed)
            stages = Stages(
                self.output, config, train, held_out, resolve_device(config.device), shows
            )
            stages.check()
            if not self._config_file.is_file():
                self._check_sound(archive, stages, config)
                archive.write(self._recordings_file)
                config.to_yaml(self._config_file)  # last: with it a run is begun
            log.info(
                "%d recordings, %.2f hours to learn from%s.",
                len(train.table),
                train.total_s / 3600,
                "" if held_out is None else f", {held_out.total_s / 3600:.2f} to validate on",
            )
            histories = {}
            for iteration in range(1, config.iterations + 1):
                stages.run(iteration)
                for kind in ("tokenizer", "encoder"):
                    stage = stages.stage(iteration, kind)
                    histories[f"iteration_{iteration}/{kind}"] = stage.read_history()
                write_curves(self.output / "curves.html", histories)
            model = self.output / "model"
            last = stages.stage(config.iterations, "encoder").model
            if not is_model_folder(model):
                encoder = BEATsModel.from_pretrained(last)
                encoder.save_pretrained(model)
            return PretrainingResult(model, histories)
        finally:
            lock.release()

    @property
    def _config_file(self) -> Path:
        return self.output / "config.yaml"

    @property
    def _recordings_file(self) -> Path:
        return self.output / "recordings.csv"

    def _require_free(self) -> None:
        """The folder must be new, empty, or that of a run."""
        if self.output.is_file():
            raise ConfigError(f"{self.output} is a file: give a folder for the run.")
        if self._config_file.is_file() or not self.output.is_dir():
            return
        strange = [p.name for p in self.output.iterdir() if not p.name.startswith(".")]
        strange = [name for name in strange if name != self._recordings_file.name]
        if strange:
            raise ConfigError(
                f"{self.output} holds something else ({strange[0]}): give a new folder for the run."
            )

    def _archive(self, config: PretrainingConfig, shows: bool) -> Archive:
        """What the run in the folder was begun with; else what the inputs are now."""
        if self._config_file.is_file():
            self._require_same(config)
            archive = Archive.read(self._recordings_file)
            archive.require_unchanged()
            self._require_among_inputs(archive)
            return archive
        if self.recordings is None:
            raise ConfigError(f"There is no run in {self.output} to go on with: give recordings.")
        with tqdm(desc="Reading lengths", unit="file", disable=not shows, leave=False) as bar:

            def show(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            archive = Archive.scan(
                self.recordings,
                exclude=self.exclude,
                num_threads=config.num_workers,
                on_progress=show,
            )
        for row in archive.failures.head(5).itertuples(index=False):
            log.warning("Left out: %s: %s", row.file, row.reason)
        if len(archive.failures) > 5:
            log.warning("Left out: %d more files.", len(archive.failures) - 5)
        return archive

    def _require_among_inputs(self, archive: Archive) -> None:
        """What the run hears must be what is meant now; what is new in a folder is not heard."""
        if self.recordings is None:
            return
        missing = archive.not_among(self.recordings, self.exclude)
        if missing:
            raise ConfigError(
                f"The run in {self.output} was begun with other recordings: {len(missing)} of them are not among "
                f"those that are given now, such as {missing[0]}. Give the same ones (or none, to go on with it), or "
                "another folder for a new run."
            )

    def _require_same(self, config: PretrainingConfig) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            before = PretrainingConfig.from_yaml(self._config_file).to_dict()
        now = config.to_dict()
        changes = [
            f"{name} was {before[name]!r} and is {now[name]!r}"
            for name in now
            if before[name] != now[name] and name not in _FREE_SETTINGS
        ]
        if changes:
            raise ConfigError(
                f"Cannot go on with the run in {self.output} with other settings: {'; '.join(changes)}. Use those of "
                "its config.yaml, or begin a new run in another folder."
            )

    def _check_sound(self, archive: Archive, stages: "Stages", config: PretrainingConfig) -> None:
        """Listen to some of it, and see how often all of it would be heard."""
        silent = archive.require_sound(config.window_s)
        if silent > _MUCH_SILENCE:
            warnings.warn(
                f"{silent:.0%} of the windows that were listened to are digital silence: little is learned from "
                "them. Leave such recordings out with exclude.",
                stacklevel=3,
            )
        steps, passes = settled(config.steps), stages.count_passes()
        if passes > _MANY_PASSES:
            warnings.warn(
                f"{steps:,} steps hear {stages.archive.total_s / 3600:.2f} hours about {passes:,.0f} times over in each "
                "iteration. The held-out loss of beats_nano stood still after 130 times. Take fewer steps "
                f"({steps * _MANY_PASSES / passes:,.0f} are {_MANY_PASSES} times), or more recordings.",
                stacklevel=3,
            )
