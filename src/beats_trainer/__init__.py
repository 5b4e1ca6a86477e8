"""Load, embed, train, evaluate and use BEATs audio transformers.

Public names are loaded on first use (PEP 562): ``import beats_trainer`` costs no torch, so the command
line answers at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

from beats_trainer._version import __version__

__author__ = "The beats_trainer developers"
__license__ = "MIT"

if TYPE_CHECKING:
    from beats_trainer.checkpoints import (
        BEATsForAudioClassification,
        BEATsModel,
        download_beats_checkpoint,
        ensure_checkpoint,
        find_checkpoint,
        get_model_info,
        list_available_models,
        load_tokenizer,
        validate_checkpoint,
    )
    from beats_trainer.comparison import Comparison, compare_models
    from beats_trainer.config import (
        Config,
        DataConfig,
        ModelConfig,
        PretrainingConfig,
        TrainingConfig,
    )
    from beats_trainer.feature_extractor import BEATsFeatureExtractor
    from beats_trainer.predictor import BEATsPredictor
    from beats_trainer.pretrainer import BEATsPretrainer
    from beats_trainer.trainer import BEATsTrainer

_HOME_OF = {
    "BEATsFeatureExtractor": "beats_trainer.feature_extractor",
    "BEATsForAudioClassification": "beats_trainer.checkpoints",
    "BEATsModel": "beats_trainer.checkpoints",
    "BEATsPredictor": "beats_trainer.predictor",
    "BEATsPretrainer": "beats_trainer.pretrainer",
    "BEATsTrainer": "beats_trainer.trainer",
    "Comparison": "beats_trainer.comparison",
    "Config": "beats_trainer.config",
    "DataConfig": "beats_trainer.config",
    "ModelConfig": "beats_trainer.config",
    "PretrainingConfig": "beats_trainer.config",
    "TrainingConfig": "beats_trainer.config",
    "compare_models": "beats_trainer.comparison",
    "download_beats_checkpoint": "beats_trainer.checkpoints",
    "ensure_checkpoint": "beats_trainer.checkpoints",
    "find_checkpoint": "beats_trainer.checkpoints",
    "get_model_info": "beats_trainer.checkpoints",
    "list_available_models": "beats_trainer.checkpoints",
    "load_tokenizer": "beats_trainer.checkpoints",
    "validate_checkpoint": "beats_trainer.checkpoints",
}

__all__ = [
    "BEATsFeatureExtractor",
    "BEATsForAudioClassification",
    "BEATsModel",
    "BEATsPredictor",
    "BEATsPretrainer",
    "BEATsTrainer",
    "Comparison",
    "Config",
    "DataConfig",
    "ModelConfig",
    "PretrainingConfig",
    "TrainingConfig",
    "__version__",
    "compare_models",
    "download_beats_checkpoint",
    "ensure_checkpoint",
    "find_checkpoint",
    "get_model_info",
    "list_available_models",
    "load_tokenizer",
    "validate_checkpoint",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
