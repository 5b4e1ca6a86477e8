"""Self-supervision: learn from sound without labels. Tensors in, losses out; `training` feeds it."""

from beats_trainer.pretraining.codebook import CodeUsage, check_usage
from beats_trainer.pretraining.distillation import DistillationOutput, TokenizerDistiller
from beats_trainer.pretraining.label_store import LabelOrigin, LabelStore, crop_labels
from beats_trainer.pretraining.masked_model import MaskedAudioModel, MaskedOutput, Positions
from beats_trainer.pretraining.masking import KeptTokens, choose_kept, mask_noise
from beats_trainer.pretraining.predictor import LabelPredictor

__all__ = [
    "CodeUsage",
    "DistillationOutput",
    "KeptTokens",
    "LabelOrigin",
    "LabelPredictor",
    "LabelStore",
    "MaskedAudioModel",
    "MaskedOutput",
    "Positions",
    "TokenizerDistiller",
    "check_usage",
    "choose_kept",
    "crop_labels",
    "mask_noise",
]
