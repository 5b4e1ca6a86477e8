"""`BEATsTrainer`: labelled sound in, trained classifier out.

folder | CSV | DataFrame | annotations -> manifest -> splits -> [train -> model folder] -> evaluate, predict

The facade that joins the stations. A frozen backbone (the default) encodes each clip once and fits a head
on the cached embeddings; a trained one goes through Lightning, which is imported only then.

Shapes in this file: N clips, D width of an embedding.
"""

import copy
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pandas as pd
from tqdm import tqdm

from beats_trainer.checkpoints import BEATsForAudioClassification, BEATsModel
from beats_trainer.checkpoints.download import choose_model
from beats_trainer.config import (
    Config,
    DataConfig,
    ModelConfig,
    TrainingConfig,
)
from beats_trainer.datasets import (
    FoldSplit,
    Manifest,
    Splits,
    Task,
    build_manifest,
    download_esc50,
    fold_splits,
    load_esc50,
    load_split_csvs,
    load_split_directories,
    load_urbansound8k,
    split_manifest,
)
from beats_trainer.datasets.folds import DEFAULT_FOLDS
from beats_trainer.errors import BEATsTrainerError, ConfigError, DatasetError
from beats_trainer.feature_extractor import BEATsFeatureExtractor
from beats_trainer.loading import ClipChange
from beats_trainer.model.precision import resolve_device, resolve_precision
from beats_trainer.predictor import BEATsPredictor, Thresholds
from beats_trainer.presets import Mode
from beats_trainer.reports import Metrics, summary_names
from beats_trainer.reports.html import write_report
from beats_trainer.training.augmentation import augmentation_from
from beats_trainer.training.build import (
    build_classifier,
    build_encoder,
    require_base,
)
from beats_trainer.training.checks import check_before_training
from beats_trainer.training.cross_validation import cross_validate
from beats_trainer.training.embedded import EmbeddingCache, encoding_batch_size
from beats_trainer.training.loggers import require_loggers
from beats_trainer.training.manifest import label_settings, read_manifest
from beats_trainer.training.new_clips import choose_rows, read_new_clips
from beats_trainer.training.report import class_balance, describe_evaluation, describe_training
from beats_trainer.training.result import CrossValidationResult, TrainResult
from beats_trainer.training.run_folder import SPLIT_NAMES, RunFolder
from beats_trainer.training.session import (
    Caches,
    Outcome,
    ScoredSplit,
    score_split,
    train_once,
)

__all__ = ["BEATsTrainer", "CrossValidationResult", "ScoredSplit", "TrainResult"]

PathLike: TypeAlias = str | os.PathLike[str]

log = logging.getLogger(__name__)

_PRESETS = {"esc50": "from_esc50", "urbansound8k": "from_urbansound8k"}


class BEATsTrainer:
    """Train a BEATs classifier on a table of clips, and use it.

    All that can be wrong with the settings and the data is found here, before any work: settings, labels,
    missing files, classes without clips, the checkpoint's name, the device. The ``from_...`` constructors
    take data in other forms and pass further keywords on to this one.

    Args:
        dataset: A table with one row per clip (columns named by ``config.data``), a checked `Manifest`,
            or ready `Splits`; a `Config` alone reads its ``data.data_dir`` and ``data.metadata_file``, as
            does ``None``.
        data_dir: Where relative file names start.
        config: Settings; copied, never changed. ``None`` takes the defaults.
        data_config: Replaces ``config.data``.
        model_config: Replaces ``config.model``.
        training_config: Replaces ``config.training``.
        experiment_name: Replaces ``config.experiment_name``.
        log_dir: Runs are saved as ``LOG_DIR/EXPERIMENT_NAME/version_N``; ``None`` means ``./logs``.
        mode: What is trained: ``"head"``, ``"attentive"``, ``"lora"``, ``"full"`` or ``"scratch"``; replaces
            ``config.model.mode``.
        augment: Changes the waveform of each training clip, ``(samples, sample_rate) -> samples``, besides
            what ``config.augmentation`` asks for: so any library's augmentation plugs in.

    Attributes:
        config: The settings in use.
        dataset: The checked table of clips; ``None`` for a loaded model that came without its data.
        manifest: The checked table of all clips; ``None`` where ready `Splits` were given or loaded.
        splits: The clips for training, validation and testing.
        task: ``"single"`` where each clip has exactly one class, ``"multi"`` where it has any number.
        labels: Class names, in the order of their ids.
        log_dir: Where runs are saved.
        device: Where the network runs.

    Raises:
        ConfigError: If a setting is unknown, wrong, or contradicts another, or there is no data.
        DatasetError: If the table cannot be trained on.
        CheckpointError: If no checkpoint has the name that ``config.model.model_path`` asks for.

    Example:
        >>> trainer = BEATsTrainer.from_directory("path/to/dataset")  # doctest: +SKIP
        >>> result = trainer.train()  # doctest: +SKIP
        >>> result["test_results"]["test_accuracy"]  # doctest: +SKIP
        0.95
    """

    def __init__(
        self,
        dataset: pd.DataFrame | Manifest | Splits | Config | None = None,
        data_dir: PathLike | None = None,
        config: Config | None = None,
        *,
        data_config: DataConfig | None = None,
        model_config: ModelConfig | None = None,
        training_config: TrainingConfig | None = None,
        experiment_name: str | None = None,
        log_dir: PathLike | None = None,
        mode: Mode | None = None,
        augment: ClipChange | None = None,
    ) -> None:
        if isinstance(dataset, Config):
            if config is not None:
                raise ConfigError("There are two configs: pass one, as BEATsTrainer(config).")
            dataset, config = None, dataset
        self.config = copy.deepcopy(config) if config is not None else Config()
        for name, section in (
            ("data", data_config),
            ("model", model_config),
            ("training", training_config),
        ):
            if section is not None:
                setattr(self.config, name, copy.deepcopy(section))
        if experiment_name is not None:
            self.config.experiment_name = experiment_name
        if mode is not None:
            self.config.model.mode = mode
        if data_dir is not None:
            self.config.data.data_dir = data_dir
        self.augment = augment
        self.log_dir = Path("logs" if log_dir is None else log_dir)
        self._model: BEATsForAudioClassification | None = None
        self._is_trained = False
        self._splits: Splits | None = None
        self._folds: dict[tuple[Any, ...], list[FoldSplit]] = {}
        self.config.validate()
        if self.config.model.model_path is not None:  # what is written down is what is meant
            self.config.model.model_path = choose_model(self.config.model.model_path)

        if isinstance(dataset, Splits):
            self.manifest: Manifest | None = None
            self._splits = dataset
            self.task: Task = dataset.task
            self.labels = list(dataset.labels)
        else:
            self.manifest = read_manifest(self.config, dataset)
            self.task = self.manifest.task
            self.labels = list(self.manifest.labels)
        self._check_config()
        _check_processes(self.config.training.devices)
        require_loggers(self.config)
        if self.config.augmentation.is_on:
            augmentation_from(self.config)  # its background recordings are looked at now
        expected = self.config.model.num_classes
        if expected is not None and expected != len(self.labels):
            raise ConfigError(
                f"model.num_classes is {expected}, but the data has {len(self.labels)} classes "
                f"({', '.join(self.labels[:5])}...). Leave it out to take what is there."
            )
        if self.config.data.folds is None:
            self._known_splits()  # what is wrong with them is found now
        else:
            self._known_folds(self.config.data.folds)
        require_base(self.config)  # last: it may be a download

    @property
    def splits(self) -> Splits | None:
        """The clips for training, validation and testing; ``None`` for a model without its data."""
        if self._splits is None and self.manifest is not None:
            data = self.config.data
            total = data.train_split + data.val_split + data.test_split
            # Not checked with the other settings where folds are made: these need val_split alone.
            if abs(total - 1) > 1e-6:
                raise ConfigError(
                    f"data.train_split, val_split and test_split sum to {total:g}, not 1. Set them so, to "
                    "train once; or call cross_validate(), as data.folds asks for."
                )
            self._splits = split_manifest(
                self.manifest, data.train_split, data.val_split, data.test_split, self.config.seed
            )
        return self._splits

    @splits.setter
    def splits(self, splits: Splits | None) -> None:
        self._splits = splits

    @classmethod
    def from_directory(
        cls, data_dir: PathLike, config: Config | None = None, **options: Any
    ) -> "BEATsTrainer":
        """Train on a folder with one folder of recordings per class.

        Args:
            data_dir: The folder.
            config: Settings; ``data.audio_extensions`` limits which files count.
            **options: As for the class.
        """
        settings = _own_settings(config, options)
        settings.data.metadata_file = settings.data.annotations = None
        return cls(None, data_dir, settings, **options)

    @classmethod
    def from_annotations(
        cls,
        annotations: PathLike,
        recordings: PathLike | None = None,
        config: Config | None = None,
        **options: Any,
    ) -> "BEATsTrainer":
        """Train on annotated recordings: Raven selection tables, Audacity labels, or a CSV with times.

        Recordings are cut into windows (``config.data.window_s``, ``hop_s``); a window has the classes of
        the annotations that overlap it enough, and may have none. Windows of one recording stay in one
        part of the split.

        Args:
            annotations: A table, or a folder of them.
            recordings: Folder of the recordings; ``None`` looks beside the tables.
            config: Settings.
            **options: As for the class.
        """
        settings = _own_settings(config, options)
        settings.data.annotations = annotations
        return cls(None, recordings, settings, **options)

    @classmethod
    def from_csv(
        cls,
        csv_path: PathLike,
        data_dir: PathLike | None = None,
        config: Config | None = None,
        audio_column: str | None = None,
        label_column: str | None = None,
        **options: Any,
    ) -> "BEATsTrainer":
        """Train on a CSV file with one row per clip.

        Columns ``split``, ``fold`` and ``group`` are used for the splits where they are there.

        Args:
            csv_path: The file.
            data_dir: Where relative file names start; ``None`` means the CSV's own folder.
            config: Settings.
            audio_column: Column of file names; ``None`` takes ``config.data.audio_column``.
            label_column: Column of class names; ``None`` takes ``config.data.label_column``.
            **options: As for the class.
        """
        settings = _own_settings(config, options, audio_column, label_column)
        # So that the run's config names its data.
        settings.data.metadata_file = os.path.abspath(csv_path)
        return cls(None, data_dir, settings, **options)

    @classmethod
    def from_dataframe(
        cls,
        df: pd.DataFrame,
        audio_column: str | None = None,
        label_column: str | None = None,
        data_dir: PathLike | None = None,
        config: Config | None = None,
        **options: Any,
    ) -> "BEATsTrainer":
        """Train on a table with one row per clip, such as `load_esc50` returns.

        Args:
            df: The table; columns ``split``, ``fold`` and ``group`` are used where they are there.
            audio_column: Column of file names; ``None`` takes ``config.data.audio_column``.
            label_column: Column of class names; ``None`` takes ``config.data.label_column``.
            data_dir: Where relative file names start; ``None`` means ``df.attrs["data_dir"]`` or the
                working directory.
            config: Settings.
            **options: As for the class.
        """
        settings = _own_settings(config, options, audio_column, label_column)
        manifest = build_manifest(
            df,
            data_dir=data_dir,
            audio_column=settings.data.audio_column,
            label_column=settings.data.label_column,
            **label_settings(settings.data),
        )
        return cls(manifest, data_dir, settings, **options)

    @classmethod
    def from_esc50(
        cls,
        data_dir: PathLike = "./datasets",
        config: Config | None = None,
        auto_download: bool = True,
        force_download: bool = False,
        protocol: Literal["split", "folds"] = "split",
        **options: Any,
    ) -> "BEATsTrainer":
        """Train on ESC-50 with its official folds.

        Args:
            data_dir: The data set's root, or the folder that holds it or shall hold it.
            config: Settings.
            auto_download: Download the data set (600 MB) if it is not there.
            force_download: Download it in any case.
            protocol: ``"split"``: for ``train()``, which tests on fold 5 and chooses the epoch on fold 4; one
                figure, of one fold. ``"folds"``: for ``cross_validate()``, the data set's own protocol,
                whose mean over five folds is what papers report.
            **options: As for the class.

        Raises:
            ConfigError: If there is no such protocol.
        """
        if protocol not in ("split", "folds"):
            raise ConfigError(f"protocol must be 'split' or 'folds', not {protocol!r}.")
        if force_download:
            download_esc50(data_dir, force_download=True)
        table = load_esc50(data_dir, auto_download=auto_download)
        if protocol == "folds":
            config = _own_settings(config, options)
            config.data.folds = "official"
        return cls(build_manifest(table), None, config, **options)

    @classmethod
    def from_urbansound8k(
        cls,
        data_dir: PathLike = "./datasets",
        config: Config | None = None,
        auto_download: bool = True,
        **options: Any,
    ) -> "BEATsTrainer":
        """Train on UrbanSound8K with its official folds: fold 10 for testing, fold 9 for validation.

        Args:
            data_dir: The data set's root, or the folder that holds it or shall hold it.
            config: Settings.
            auto_download: Download the data set (6 GB) if it is not there.
            **options: As for the class.
        """
        table = load_urbansound8k(data_dir, auto_download=auto_download)
        return cls(build_manifest(table), None, config, **options)

    @classmethod
    def from_preset(
        cls, preset_name: str, data_dir: PathLike, config: Config | None = None, **options: Any
    ) -> "BEATsTrainer":
        """Train on a well-known data set: ``"esc50"`` or ``"urbansound8k"``.

        Raises:
            ConfigError: If there is no such preset.
        """
        constructor = _PRESETS.get(preset_name.lower())
        if constructor is None:
            raise ConfigError(
                f"There is no preset {preset_name!r}: expected {' or '.join(_PRESETS)}."
            )
        trainer: BEATsTrainer = getattr(cls, constructor)(data_dir, config, **options)
        return trainer

    @classmethod
    def from_split_directories(
        cls,
        train_dir: PathLike,
        val_dir: PathLike,
        test_dir: PathLike | None = None,
        config: Config | None = None,
        **options: Any,
    ) -> "BEATsTrainer":
        """Train on two or three folders, each with one folder of recordings per class.

        Args:
            train_dir: Clips to train on.
            val_dir: Clips to choose the best epoch on.
            test_dir: Clips to report the final result on, if any.
            config: Settings.
            **options: As for the class.
        """
        settings = _own_settings(config, options)
        tables = load_split_directories(
            train_dir=train_dir,
            val_dir=val_dir,
            test_dir=test_dir,
            audio_extensions=settings.data.audio_extensions,
            label_delimiter=settings.data.label_delimiter,
        )
        manifest = build_manifest(pd.concat(tables.values()), **label_settings(settings.data))
        return cls(manifest, None, settings, **options)

    @classmethod
    def from_split_csvs(
        cls,
        train_csv: PathLike,
        val_csv: PathLike,
        test_csv: PathLike | None = None,
        data_dir: PathLike | None = None,
        audio_column: str | None = None,
        label_column: str | None = None,
        config: Config | None = None,
        **options: Any,
    ) -> "BEATsTrainer":
        """Train on two or three CSV files, one for each split.

        Args:
            train_csv: Clips to train on.
            val_csv: Clips to choose the best epoch on.
            test_csv: Clips to report the final result on, if any.
            data_dir: Where relative file names start; ``None`` means each CSV's own folder.
            audio_column: Column of file names; ``None`` takes ``config.data.audio_column``.
            label_column: Column of class names; ``None`` takes ``config.data.label_column``.
            config: Settings.
            **options: As for the class.
        """
        settings = _own_settings(config, options, audio_column, label_column)
        tables = load_split_csvs(
            data_dir,
            train_csv,
            val_csv,
            test_csv,
            audio_column=settings.data.audio_column,
            label_column=settings.data.label_column,
        )
        manifest = build_manifest(
            pd.concat(tables.values()), data_dir, **label_settings(settings.data)
        )
        return cls(manifest, data_dir, settings, **options)

    @classmethod
    def load(cls, folder: PathLike, *, device: str = "auto") -> "BEATsTrainer":
        """Take up a trained model again: to evaluate, predict, embed, or train anew on the same clips.

        Args:
            folder: A run's folder, its ``model`` folder, or what ``save`` wrote.
            device: Where the network shall run.

        Raises:
            CheckpointError: If there is no model, or it cannot be used.
        """
        path = Path(folder)
        run = RunFolder(path)
        if path.name == "model" and not (path / "config.yaml").is_file():
            run = RunFolder(path.parent)
        model_path = run.model if run.model.is_dir() else path
        trainer = cls.__new__(cls)
        trainer._model = BEATsForAudioClassification.from_pretrained(model_path).eval()
        trainer._is_trained = True
        trainer.config = run.read_config() or Config()
        trainer.config.training.device = device
        trainer.labels = list(trainer._model.labels)
        trainer.task = trainer._model.task
        trainer.manifest, trainer._folds, trainer.augment = None, {}, None
        trainer._splits = run.read_splits(trainer.labels, trainer.task)
        trainer.log_dir = Path("logs")
        trainer._check_config()
        return trainer

    @property
    def model(self) -> BEATsForAudioClassification:
        """The classifier: trained, or as training starts from it (its head is random then)."""
        if self._model is None:
            config = self._resolved()
            self._model = build_classifier(build_encoder(config), config, self.labels, self.task)
            self._model.eval()
        return self._model

    @property
    def data_dir(self) -> str | None:
        """Where relative file names start, if that was said."""
        where = self.config.data.data_dir
        return None if where is None else str(where)

    @property
    def dataset(self) -> pd.DataFrame | None:
        """The checked table of all clips, with class ids and splits."""
        if self.splits is None:
            return None
        parts = [self._table(name).assign(split=name) for name in SPLIT_NAMES]
        return pd.concat(parts, ignore_index=True)

    @property
    def dataset_stats(self) -> dict[str, Any]:
        """What there is to train on, as plain values."""
        splits = self._known_splits()
        balance = class_balance(splits)
        counts = {label: sum(part[label] for part in balance.values()) for label in self.labels}
        return {
            "num_classes": len(self.labels),
            "class_names": list(self.labels),
            "total_samples": sum(len(self._table(name)) for name in SPLIT_NAMES),
            "class_distribution": counts,
            **{f"{name}_samples": len(self._table(name)) for name in SPLIT_NAMES},
            "split": splits.how,
        }

    def train(
        self,
        resume_from_checkpoint: PathLike | bool | None = None,
        *,
        verbose: bool = True,
        progress: bool | None = None,
    ) -> TrainResult:
        """Train, save the model folder and a report, and measure the model on the test clips.

        Args:
            resume_from_checkpoint: A run that was broken off: its folder, its ``last.ckpt``, or ``True``
                for the experiment's latest. It goes on in its own folder, and ends as it would have
                without the break.
            verbose: Show a summary of a few lines at the end.
            progress: Show progress bars; ``None`` shows them on a terminal.

        Returns:
            Where the model is, how good it is, and how it got there; reads like a dict.

        Raises:
            CheckpointError: If the checkpoint to start from, or the run to resume, cannot be had.
            AudioError: If a recording cannot be read; names the file and the reason.
            BEATsTrainerError: If the loss stops being finite.
        """
        start = time.monotonic()
        splits = self._known_splits()
        self._check_config()  # settings are mutable: they may have changed since
        _check_processes(self.config.training.devices)
        require_loggers(self.config)
        config = self._resolved()
        config.data.folds = None  # whoever resumes this run shall not cross-validate
        interrupted = self._find_interrupted(resume_from_checkpoint)
        if interrupted is not None:
            interrupted.check_same_plan(config, splits)
        check_before_training([splits], self.config, config)
        classifier = self._fresh_model()
        run = interrupted or RunFolder.create(self.log_dir, config.experiment_name)
        outcome = train_once(
            classifier,
            splits,
            config,
            run,
            self.device,
            resume=interrupted is not None,
            progress=progress,
            augment=self.augment,
        )
        self._model, self._is_trained = classifier, True
        report = write_report(
            run.path, describe_training(outcome, config, f"{config.experiment_name}: training")
        )
        summaries, test = outcome.summaries, outcome.scored.get("test")
        result = TrainResult(
            best_checkpoint=str(run.model),
            best_score=outcome.fitted.best_score,
            best_epoch=outcome.fitted.best_epoch,
            monitor_metric=str(config.training.monitor_metric),
            test_results=summaries.get("test"),
            val_results=summaries.get("val"),
            dataset_stats=self.dataset_stats,
            history=outcome.fitted.history,
            test_metrics=None if test is None else test.metrics,
            test_intervals={} if test is None else test.intervals,
            run_dir=str(run.path),
            report=str(report),
            precision=self.precision,
            duration_s=time.monotonic() - start,
        )
        if verbose:
            # The one place outside cli/ that writes to the terminal: whoever calls train() waits for this.
            tqdm.write(str(result))
        return result

    def cross_validate(
        self,
        folds: int | str | None = None,
        resume_from_checkpoint: PathLike | bool | None = None,
        *,
        verbose: bool = True,
        progress: bool | None = None,
    ) -> CrossValidationResult:
        """Test every clip once, by a model that was trained without its fold.

        In each fold, the epoch and the thresholds are chosen on validation clips that are held out of the
        training folds (a share ``data.val_split`` of them, whole groups); never on the test fold.

        Args:
            folds: ``"official"`` for the data set's own, a number for so many made of whole groups,
                ``"groups"`` to leave out one group at a time; ``None`` takes ``config.data.folds``, else the
                official ones where there are any, else 5.
            resume_from_checkpoint: A cross-validation that was broken off: its folder, or ``True`` for
                the experiment's latest. Finished folds are kept.
            verbose: Show a table at the end.
            progress: Show progress bars; ``None`` shows them on a terminal.

        Returns:
            Figures per fold, their mean and deviation, the pooled ones, and a score for every clip.

        Raises:
            DatasetError: If the clips cannot be divided so.
            AudioError: If a recording cannot be read; names the file and the reason.

        Example:
            >>> trainer = BEATsTrainer.from_esc50("./datasets", protocol="folds")  # doctest: +SKIP
            >>> trainer.cross_validate().summary["accuracy"]  # doctest: +SKIP
            {'mean': 0.95, 'std': 0.01, 'pooled': 0.95}
        """
        self._check_config()
        _check_processes(self.config.training.devices)
        require_loggers(self.config)
        folds = self._asked_folds(folds)
        fold_list = self._known_folds(folds)
        config = self._resolved()
        config.data.folds = folds  # whoever resumes this run shall have the same
        check_before_training([fold.splits for fold in fold_list], self.config, config)
        interrupted = self._find_interrupted(resume_from_checkpoint)
        if interrupted is not None:
            interrupted.check_same_plan(config, None)
        run = interrupted or RunFolder.create(self.log_dir, config.experiment_name)
        run.write_plan(config, None)
        run.remove_leftovers()
        is_frozen = config.model.mode in ("head", "attentive")
        encoder = build_encoder(config) if is_frozen else None
        caches: Caches | None = None

        def train_fold(fold: FoldSplit, folder: RunFolder) -> Outcome:
            nonlocal caches
            classifier = build_classifier(
                encoder or build_encoder(config), config, self.labels, self.task
            )
            if caches is None or not is_frozen:
                caches = Caches.for_classifier(classifier.to(self.device), config, self.task)
                if is_frozen:  # hears each clip once, for all folds
                    caches.fill(
                        classifier,
                        fold_list[0].splits,
                        config,
                        progress=progress,
                        augment=self.augment,
                    )
            return train_once(
                classifier,
                fold.splits,
                config,
                folder,
                self.device,
                caches=caches,
                resume=interrupted is not None,
                progress=progress,
                augment=self.augment,
            )

        result = cross_validate(fold_list, config, run, train_fold, resume=interrupted is not None)
        if verbose:
            tqdm.write(str(result))
        return result

    def evaluate(
        self,
        data: str | PathLike | pd.DataFrame | Manifest = "test",
        *,
        rows: Mapping[str, Any] | None = None,
        report: PathLike | None = None,
        progress: bool | None = None,
        **settings: Any,
    ) -> Metrics:
        """Measure the trained model on labelled clips, with the thresholds that it carries.

        Args:
            data: ``"test"``, ``"val"`` or ``"train"``; a table of clips; a CSV file; a folder with one folder
                per class, or, with ``annotations=``, of recordings. Its classes must be among the model's;
                its labels are written as the training data's were, or in columns ``filename`` and
                ``category``.
            rows: Take only rows of the table that have these values in these columns, such as
                ``{"fold": 5}``.
            report: Folder for a ``report.html`` and ``report.json`` of this measurement.
            progress: Show a progress bar; ``None`` shows one on a terminal.
            **settings: Fields of ``config.data`` that are different for these clips, such as
                ``label_delimiter=","`` or ``data_dir="audio"``.

        Returns:
            All metrics of these clips, over all of them at once.

        Raises:
            BEATsTrainerError: If nothing was trained yet.
            ConfigError: If there is no such setting.
            DatasetError: If the clips cannot be used, or there is none; it names the row.
            AudioError: If a recording cannot be read; names the file and the reason.
        """
        return self._score(data, rows, report, progress, settings, report is not None).metrics

    def score_clips(
        self,
        data: str | PathLike | pd.DataFrame | Manifest = "test",
        *,
        rows: Mapping[str, Any] | None = None,
        report: PathLike | None = None,
        progress: bool | None = None,
        **settings: Any,
    ) -> ScoredSplit:
        """Measure as `evaluate` does, and keep everything: each clip's truth and scores, and intervals.

        Args:
            data: As for `evaluate`, as all others.
            rows: Which rows of the table.
            report: Folder for a report.
            progress: Show a progress bar.
            **settings: Fields of ``config.data``.

        Returns:
            ``table`` (one row per clip), ``targets``, ``probabilities`` ``(N, C)``, ``metrics``, and 95 %
            ``intervals`` of the single numbers, by resampling clips, or whole groups of clips.
        """
        return self._score(data, rows, report, progress, settings, True)

    def _score(
        self,
        data: str | PathLike | pd.DataFrame | Manifest,
        rows: Mapping[str, Any] | None,
        report: PathLike | None,
        progress: bool | None,
        settings: Mapping[str, Any],
        with_intervals: bool,
    ) -> ScoredSplit:
        model = self._trained_model().to(self.device)
        table = self._labelled(data, settings, rows)
        (split,) = EmbeddingCache(model, self._resolved(), self.task).split(
            model, [table], progress
        )
        scored = score_split(model, split, table, self.config.seed, with_intervals=with_intervals)
        if report is not None:
            named = data if isinstance(data, str | os.PathLike) else "a table"
            write_report(report, describe_evaluation(scored, model, str(named)))
        return scored

    def test(self, checkpoint_path: PathLike | None = None) -> dict[str, float]:
        """Measure a model on the test clips: ``test_loss``, ``test_accuracy``, ``test_f1`` and more.

        Args:
            checkpoint_path: A model folder; ``None`` takes the model trained here.
        """
        if checkpoint_path is None:
            return self.evaluate("test").summary("test")
        other = self.load(checkpoint_path, device=str(self.device))
        clips = Manifest(self._labelled("test"), self.labels, self.task)
        return other.evaluate(clips).summary("test")

    def predict(
        self,
        audio_paths: PathLike | Sequence[PathLike],
        checkpoint_path: PathLike | None = None,
        *,
        thresholds: Thresholds | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        progress: bool | None = None,
    ) -> pd.DataFrame:
        """Find each recording's most likely class, what is detected in it, and the score of every class.

        Args:
            audio_paths: One file or several, of any length.
            checkpoint_path: A model folder; ``None`` takes the model trained here.
            thresholds: Score from which on a class is detected: a number, or numbers by class name;
                ``None`` takes the model's own.
            on_error: ``"raise"`` at the first unreadable file, or ``"skip"`` it; see `BEATsPredictor`.
            progress: Show a progress bar; ``None`` shows one on a terminal.

        Returns:
            One row per file: ``file``, ``label``, ``score``, ``detected``, then one column per class; see
            `BEATsPredictor`.

        Raises:
            BEATsTrainerError: If nothing was trained yet.
            ValueError: If a threshold is not from 0 to 1, or names a class that the model does not have.
            AudioError: If a file cannot be read and ``on_error`` is ``"raise"``.
        """
        predictor = BEATsPredictor(
            self._trained_model() if checkpoint_path is None else checkpoint_path,
            self.device,
            precision=self.config.training.precision_name,
            batch_size=encoding_batch_size(self._resolved()),
            num_threads=self._num_threads,
        )
        return predictor.predict(
            audio_paths, thresholds=thresholds, on_error=on_error, progress=progress
        )

    def get_feature_extractor(
        self, checkpoint_path: PathLike | None = None, **options: Any
    ) -> BEATsFeatureExtractor:
        """Return an extractor of this model's embeddings, which shares its weights.

        Args:
            checkpoint_path: Another model; ``None`` takes the one trained here, or the one that training
                starts from.
            **options: As for `BEATsFeatureExtractor`.
        """
        options.setdefault("device", self.device)
        options.setdefault("precision", self.config.training.precision_name)
        options.setdefault("num_threads", self._num_threads)
        if checkpoint_path is not None:
            return BEATsFeatureExtractor(checkpoint_path, **options)
        encoder = self.model.beats
        assert isinstance(encoder, BEATsModel)
        return BEATsFeatureExtractor(encoder, **options)

    def extract_features(
        self,
        audio_paths: PathLike | Sequence[PathLike],
        checkpoint_path: PathLike | None = None,
        pooling: str = "mean",
        normalize: bool = False,
        batch_size: int | None = None,
        layer: int = -1,
        *,
        progress: bool | None = None,
    ) -> Any:
        """Embed recordings with the trained model; before training, with the one it starts from.

        Args:
            audio_paths: One file or several.
            checkpoint_path: Another model to embed with.
            pooling: ``"mean"``, ``"max"``, ``"first"``, ``"last"``, ``"bands"``, or ``"none"`` for every token.
            normalize: Scale each embedding to unit length.
            batch_size: Most clips in a batch; ``None`` chooses.
            layer: 0 (the first layer's input) to L, negative from the end.
            progress: Show a progress bar; ``None`` shows one on a terminal.

        Returns:
            Float32, ``(D,)`` for a single path and ``(N, D)`` for several; see `BEATsFeatureExtractor`.

        Raises:
            AudioError: If a file cannot be read; names the file and the reason.
        """
        extractor = self.get_feature_extractor(
            checkpoint_path, pooling=pooling, layer=layer, batch_size=batch_size
        )
        if isinstance(audio_paths, str | os.PathLike):
            return extractor.extract_from_file(audio_paths, normalize=normalize)
        return extractor.extract_from_files(audio_paths, normalize=normalize, progress=progress)

    def save(self, folder: PathLike) -> Path:
        """Save the trained model into a folder of its own, with the settings and clips of its training.

        Args:
            folder: Is made if it is not there. `BEATsPredictor`, `BEATsFeatureExtractor`,
                `BEATsForAudioClassification` and ``BEATsTrainer.load`` take it.

        Returns:
            The folder.

        Raises:
            BEATsTrainerError: If nothing was trained yet.
        """
        model = self._trained_model()
        path = model.save_pretrained(folder, metrics=model.provenance.get("metrics"))
        RunFolder(path).write_plan(self._resolved(), self.splits)
        return path

    @property
    def precision(self) -> str:
        """The number format of the network's products: ``"float32"``, ``"bfloat16"``, ``"float16"``."""
        dtype = resolve_precision(self.config.training.precision_name, self.device)
        return str(dtype).removeprefix("torch.")

    @property
    def _num_threads(self) -> int:
        return max(1, self.config.data.num_workers)

    def _resolved(self) -> Config:
        """The settings with nothing left open."""
        return self.config.resolved(self.task)

    def _check_config(self) -> None:
        """Find what is wrong with the settings before anything is done with them."""
        self.config.validate()
        training = self._resolved().training
        known = [f"val_{name}" for name in summary_names(self.task)]
        if training.monitor_metric not in known:
            raise ConfigError(
                f"training.monitor_metric must be one of {', '.join(known)}, "
                f"not {training.monitor_metric!r}."
            )
        try:
            self.device = resolve_device(training.device)
        except ValueError as error:
            raise ConfigError(f"training.device: {error}") from error

    def _asked_folds(self, folds: int | str | None) -> int | str:
        """What to cross-validate by: as said, else official folds where there are any, else 5."""
        folds = self.config.data.folds if folds is None else folds
        if folds is not None:
            return folds
        has_official = self.manifest is not None and "fold" in self.manifest.table.columns
        return "official" if has_official else DEFAULT_FOLDS

    def _known_folds(self, folds: int | str) -> list[FoldSplit]:
        """The folds that were asked for."""
        if self.manifest is None:
            raise DatasetError(
                "Cross-validation divides the clips itself, but this trainer has ready splits, or a model "
                "without its clips. Make a trainer with a table, a folder or a CSV."
            )
        data = self.config.data
        if folds == "official" and "fold" not in self.manifest.table.columns:
            raise DatasetError(
                "folds='official' needs a column of folds, and the table has none. Name it with "
                "data.fold_column, or give a number of folds to be made."
            )
        asked = (folds, data.val_split, self.config.seed)
        if asked not in self._folds:  # else made, and warned of, before
            self._folds[asked] = fold_splits(
                self.manifest,
                None if folds == "official" else folds,  # type: ignore[arg-type]  # checked there
                val_split=data.val_split,
                seed=self.config.seed,
            )
        return self._folds[asked]

    def _labelled(
        self,
        data: str | PathLike | pd.DataFrame | Manifest,
        settings: Mapping[str, Any] | None = None,
        rows: Mapping[str, Any] | None = None,
    ) -> pd.DataFrame:
        """The rows to evaluate on, with the model's class ids."""
        if isinstance(data, str) and data in SPLIT_NAMES:
            table = self._table(data)
            if table.empty:
                raise DatasetError(f"There are no {data} clips: {self._known_splits().how}")
            if settings:
                raise ConfigError(
                    f"{next(iter(settings))}= is for reading other clips; the {data} clips are read already."
                )
            return choose_rows(table, rows)
        return read_new_clips(data, self.config, self.labels, self.task, settings, rows)

    def _known_splits(self) -> Splits:
        splits = self.splits
        if splits is None:
            raise DatasetError(
                "This model was loaded without the clips that it was trained on. Pass the clips to "
                "evaluate on, or make a trainer with the data to train on."
            )
        return splits

    def _table(self, split: str) -> pd.DataFrame:
        table: pd.DataFrame = getattr(self._known_splits(), split)
        return table

    def _find_interrupted(self, checkpoint: PathLike | bool | None) -> RunFolder | None:
        """The run to go on with, if that was asked for."""
        if checkpoint is None or checkpoint is False:
            return None
        return RunFolder.to_resume(checkpoint, self.log_dir, self.config.experiment_name)

    def _fresh_model(self) -> BEATsForAudioClassification:
        """The network that training starts from; no longer ours until it is trained."""
        if self._is_trained:
            self._model = None
        model = self.model
        self._model, self._is_trained = None, False
        return model

    def _trained_model(self) -> BEATsForAudioClassification:
        if not self._is_trained:
            raise BEATsTrainerError(
                "There is no trained model yet, and an untrained head only guesses: call train() first, "
                "or load a trained model with BEATsTrainer.load(folder)."
            )
        return self.model


def _check_processes(devices: int) -> None:
    """Make sure that processes of training can be started from here."""
    if devices > 1 and getattr(multiprocessing.current_process(), "_inheriting", False):
        # We are such a process, which runs the user's script up to here to know its functions.
        raise BEATsTrainerError(
            f"Training with training.devices={devices} starts this script again in each process. Put what "
            'the script does under the line: if __name__ == "__main__":'
        )
    if devices > 1 and hasattr(sys, "ps1"):
        raise ConfigError(
            f"training.devices={devices} starts processes, which a notebook or an interactive session cannot. "
            "Write a script, use beats-trainer train --training.devices, or set it to 1."
        )


def _own_settings(
    config: Config | None,
    options: dict[str, Any],
    audio_column: str | None = None,
    label_column: str | None = None,
) -> Config:
    """A copy of the settings that a constructor was given, to put what it says besides into ``data``.

    The columns are kept there also where they are read at once: other clips are measured as these were read.
    """
    settings = copy.deepcopy(config) if config is not None else Config()
    settings.data = copy.deepcopy(options.pop("data_config", None) or settings.data)
    if not isinstance(settings.data, DataConfig):
        settings.validate()  # says so
    settings.data.audio_column = audio_column or settings.data.audio_column
    settings.data.label_column = label_column or settings.data.label_column
    return settings
