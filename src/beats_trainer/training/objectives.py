"""What pre-training minimises, as functions of a batch of sound: guess hidden codes, or imitate a teacher.

AudioBatch -> [front end -> tokenizer -> masked model | distiller] -> StepOutput -> PretrainingModule

Shapes in this file: B clips, T tokens, C codes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from beats_trainer.loading.archive import ArchiveStep
from beats_trainer.loading.batches import AudioBatch
from beats_trainer.model import AcousticTokenizer, Architecture, RandomProjectionTokenizer
from beats_trainer.model.lengths import count_tokens
from beats_trainer.pretraining import (
    CodeUsage,
    LabelStore,
    MaskedAudioModel,
    TokenizerDistiller,
    check_usage,
    mask_noise,
)

__all__ = ["EncoderObjective", "Objective", "StepOutput", "TokenizerObjective", "label"]


@dataclass(frozen=True)
class StepOutput:
    """What a batch, or a part of one, has given.

    Attributes:
        loss_sum: Sum over its items (tokens) of what is minimised.
        num_items: How many they are.
        sums: What else is added up over batches and processes, by name.
    """

    loss_sum: Tensor
    num_items: Tensor
    sums: dict[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """What `PretrainingModule` asks for; both classes below are modules, too."""

    def __call__(self, batch: ArchiveStep) -> StepOutput:
        """Give the loss of some clips of a step."""

    def summarize(self, sums: Mapping[str, Tensor], num_items: float) -> dict[str, float]:
        """Turn sums over steps and processes into what is logged."""

    def check(self, sums: Mapping[str, Tensor]) -> None:
        """Stop a run that learns nothing any more."""

    def describe(self, row: Mapping[str, float]) -> str:
        """A row in a few words, for the progress line."""


class EncoderObjective(nn.Module):
    """Let an encoder guess the codes of hidden patches.

    Args:
        model: Is trained.
        tokenizer: Gives the codes; stays as it is, and is not part of what is saved.
        seed: Of what is hidden.
        labels: Codes of all windows, made by the tokenizer before; ``None`` makes them as they are needed.
    """

    def __init__(
        self,
        model: MaskedAudioModel,
        tokenizer: AcousticTokenizer | RandomProjectionTokenizer,
        seed: int,
        labels: LabelStore | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.seed = seed
        self.labels = labels
        self._tokenizer = [tokenizer.eval().requires_grad_(False)]  # a list hides it from the state

    def forward(self, batch: ArchiveStep) -> StepOutput:
        """See `Objective`; the items are the hidden tokens."""
        beats, audio = self.model.beats, batch.audio
        fbank, frame_lengths = beats.front_end(audio.waveforms, audio.lengths)
        codes_BT = self._codes(batch, fbank, frame_lengths)
        noise_BT = mask_noise(self.seed, batch.step, batch.rows, codes_BT.shape[1])
        output = self.model(fbank, codes_BT, noise_BT, frame_lengths)
        sums = {
            "right": output.num_right,
            "targets": output.target_counts,
            "guesses": output.guess_counts,
        }
        return StepOutput(output.loss_sum, output.num_hidden, sums)

    def _codes(self, batch: ArchiveStep, fbank: Tensor, frame_lengths: Tensor | None) -> Tensor:
        patch = self.model.beats.architecture.input_patch_size
        if self.labels is not None and batch.windows:
            num_tokens = int(count_tokens(fbank.shape[1], patch))
            return torch.from_numpy(self.labels.codes(batch.windows, num_tokens))
        tokenizer = self._tokenizer[0].to(fbank.device)
        return label(tokenizer, batch.audio, (fbank, frame_lengths), self.model.beats.architecture)

    def summarize(self, sums: Mapping[str, Tensor], num_items: float) -> dict[str, float]:
        """See `Objective`.

        ``accuracy`` of hidden codes beside ``majority``, that of always guessing the commonest code;
        ``unigram`` is the loss of guessing codes by how common they are, and ``perplexity`` how many equally
        common codes would be as hard; ``codes_guessed`` counts different guesses.
        """
        usage = CodeUsage.of(sums["targets"])
        return {
            "accuracy": float(sums["right"]) / max(1.0, num_items),
            "majority": usage.top_share,
            "unigram": usage.entropy,
            "perplexity": usage.perplexity,
            "codes_guessed": float((sums["guesses"] > 0).sum()),
        }

    def check(self, sums: Mapping[str, Tensor]) -> None:
        """See `Objective`: codes that are all alike teach nothing."""
        check_usage(sums["targets"], "The codes to be guessed")

    def describe(self, row: Mapping[str, float]) -> str:
        """See `Objective`."""
        return (
            f"loss {row['loss']:.3f} (unigram {row['unigram']:.3f}), accuracy {row['accuracy']:.1%}"
        )


class TokenizerObjective(nn.Module):
    """Let a tokenizer's codes tell what a teacher hears.

    Args:
        distiller: Is trained.
    """

    def __init__(self, distiller: TokenizerDistiller) -> None:
        super().__init__()
        self.distiller = distiller

    def forward(self, batch: ArchiveStep) -> StepOutput:
        """See `Objective`; the items are the real tokens."""
        audio = batch.audio
        output = self.distiller(*self.distiller.tokenizer.front_end(audio.waveforms, audio.lengths))
        sums = {
            "cosine": output.cosine_sum,
            "distance": output.distance_sum,
            "codes": output.code_counts,
        }
        return StepOutput(output.loss_sum, output.num_tokens, sums)

    def summarize(self, sums: Mapping[str, Tensor], num_items: float) -> dict[str, float]:
        """See `Objective`.

        ``cosine`` between the estimate and the teacher, ``distance`` of vectors to their codes, ``codes_used``
        and their ``perplexity``.
        """
        usage = CodeUsage.of(sums["codes"])
        return {
            "cosine": float(sums["cosine"]) / max(1.0, num_items),
            "distance": float(sums["distance"]) / max(1.0, num_items),
            "codes_used": float(usage.num_used),
            "perplexity": usage.perplexity,
        }

    def check(self, sums: Mapping[str, Tensor]) -> None:
        """See `Objective`: a tokenizer with a handful of codes tells nothing."""
        check_usage(sums["codes"], "The tokenizer's codes")

    def describe(self, row: Mapping[str, float]) -> str:
        """See `Objective`."""
        return f"cosine {row['cosine']:.3f}, {row['perplexity']:.0f} codes"


@torch.no_grad()
def label(
    tokenizer: AcousticTokenizer | RandomProjectionTokenizer,
    audio: AudioBatch,
    heard: tuple[Tensor, Tensor | None],
    architecture: Architecture,
) -> Tensor:
    """The codes of a batch, shape ``(B, T)``.

    Args:
        tokenizer: On the device of the batch.
        audio: The clips.
        heard: What a network's front end made of them; used where the tokenizer's is the same.
        architecture: Of that network.
    """
    own = tokenizer.architecture
    if (own.fbank_mean, own.fbank_std) != (architecture.fbank_mean, architecture.fbank_std):
        return tokenizer.encode(audio.waveforms, audio.lengths).codes
    fbank, frame_lengths = heard
    if isinstance(tokenizer, RandomProjectionTokenizer):
        return tokenizer.encode_fbank(fbank, frame_lengths).codes
    return tokenizer.codes_of(tokenizer.encode_fbank(fbank, frame_lengths).tokens)
