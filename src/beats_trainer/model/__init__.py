"""The network: tensors in, tensors out. It opens no file and reads no settings of the user.

waveforms -> fbank -> patches -> encoder -> tokens -> pooling -> embeddings | head -> logits
"""

from beats_trainer.model.architecture import Architecture
from beats_trainer.model.beats import BEATs, BEATsOutput
from beats_trainer.model.classifier import (
    Activation,
    BEATsClassifier,
    ClassifierOutput,
    ClassifierTask,
    apply_activation,
)
from beats_trainer.model.heads import ClassifierHead
from beats_trainer.model.pooling import (
    POOLING_MODES,
    AttentivePooling,
    ClassifierPooling,
    PoolingMode,
    pool_tokens,
    pooled_width,
)
from beats_trainer.model.random_projection import RandomProjectionTokenizer
from beats_trainer.model.spec_augment import spec_augment
from beats_trainer.model.tokenizer import AcousticTokenizer, TokenizerOutput

__all__ = [
    "POOLING_MODES",
    "AcousticTokenizer",
    "Activation",
    "Architecture",
    "AttentivePooling",
    "BEATs",
    "BEATsClassifier",
    "BEATsOutput",
    "ClassifierHead",
    "ClassifierOutput",
    "ClassifierPooling",
    "ClassifierTask",
    "PoolingMode",
    "RandomProjectionTokenizer",
    "TokenizerOutput",
    "apply_activation",
    "pool_tokens",
    "pooled_width",
    "spec_augment",
]
