"""Which clips with which labels: tables, no audio and no torch.

folder / CSV / DataFrame / archive -> [table: filename, category] -> Manifest -> Splits -> loading

Raven | Audacity | CSV of long recordings -> Annotations -> window_clips -> [table]

Sources give a pandas table; :func:`build_manifest` checks it and decides once which class has which id;
:func:`split_manifest` divides it without letting one recording into two parts, :func:`fold_splits` for
cross-validation.
"""

from beats_trainer.datasets.annotation_windows import window_clips
from beats_trainer.datasets.annotation_writing import (
    write_annotation_csv,
    write_audacity,
    write_raven,
)
from beats_trainer.datasets.annotations import Annotations, read_annotations
from beats_trainer.datasets.clip_table import read_clip_table, write_clip_table
from beats_trainer.datasets.esc50 import (
    download_and_organize_esc50,
    download_esc50,
    load_esc50,
    organize_esc50_for_training,
)
from beats_trainer.datasets.folds import FoldSplit, fold_splits
from beats_trainer.datasets.labels import Task, targets_of
from beats_trainer.datasets.manifest import Manifest, build_manifest, validate_dataset
from beats_trainer.datasets.sources import (
    load_csv_dataset,
    load_dataset,
    load_split_csvs,
    load_split_directories,
    scan_directory_dataset,
)
from beats_trainer.datasets.splits import Splits, split_manifest
from beats_trainer.datasets.urbansound8k import (
    download_urbansound8k,
    load_urbansound8k,
    organize_urbansound8k_for_training,
)

__all__ = [
    "Annotations",
    "FoldSplit",
    "Manifest",
    "Splits",
    "Task",
    "build_manifest",
    "download_and_organize_esc50",
    "download_esc50",
    "download_urbansound8k",
    "fold_splits",
    "load_csv_dataset",
    "load_dataset",
    "load_esc50",
    "load_split_csvs",
    "load_split_directories",
    "load_urbansound8k",
    "organize_esc50_for_training",
    "organize_urbansound8k_for_training",
    "read_annotations",
    "read_clip_table",
    "scan_directory_dataset",
    "split_manifest",
    "targets_of",
    "validate_dataset",
    "window_clips",
    "write_annotation_csv",
    "write_audacity",
    "write_clip_table",
    "write_raven",
]
