"""Score test clips with what can be fitted on a frozen encoder: neighbours, a linear head, attentive pooling.

training clips, validation clips, test clips of one fold -> [knn | linear | attentive] -> probabilities

Each is a question to the same encoder: are clips of a class near each other, can a plane tell them apart,
can one that may choose among layers and tokens. Only the last two have an epoch to choose; they choose it on
the validation clips. None of them sees the test clips' labels.

Shapes in this file: N training clips, M test clips, C classes, D width of an embedding, K neighbours.
"""

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from beats_trainer.checkpoints import BEATsForAudioClassification
from beats_trainer.config import Config
from beats_trainer.model import ClassifierHead
from beats_trainer.model.classifier import apply_activation
from beats_trainer.training.attentive import TokenFeatures, fit_attentive_of
from beats_trainer.training.cached_head import embedding_moments, fit_head_of
from beats_trainer.training.embedded import EmbeddedSplit
from beats_trainer.training.losses import soft_targets

__all__ = ["METHODS", "NUM_NEIGHBOURS", "Method", "probe_attentive", "probe_knn", "probe_linear"]

Method = Literal["knn", "linear", "attentive"]
"""What is fitted on the frozen encoder."""
METHODS: tuple[Method, ...] = get_args(Method)
"""The same, to iterate over."""

NUM_NEIGHBOURS = 5
"""Training clips that vote on a test clip."""

_NEIGHBOURS_AT_ONCE = 2048


def probe_knn(
    train: EmbeddedSplit,
    test: EmbeddedSplit,
    num_classes: int,
    num_neighbours: int = NUM_NEIGHBOURS,
) -> NDArray[np.float64]:
    """Let the nearest training clips vote on each test clip.

    Embeddings are standardised with the mean and deviation of the training clips; near is what has a large
    cosine similarity. A vote weighs ``(1 + similarity) / 2``, from 0 for opposite clips to 1 for like ones.

    Args:
        train: Clips that vote.
        test: Clips that are voted on; their labels are not looked at.
        num_classes: C.
        num_neighbours: K; fewer where there are fewer training clips.

    Returns:
        Each class's share of the votes, shape ``(M, C)``. Where clips may have any number of classes, a
        neighbour votes only on the classes that are known of it; where none of them knows, the class's
        share of the training clips stands.

    Example:
        >>> train = EmbeddedSplit(np.float32([[0, 1], [0, 2], [3, 0]]), np.array([0, 0, 1]))
        >>> test = EmbeddedSplit(np.float32([[4, 0]]), np.array([1]))
        >>> probe_knn(train, test, num_classes=2, num_neighbours=1)
        array([[0., 1.]])
    """
    raw = torch.from_numpy(train.embeddings)
    mean, std = embedding_moments(raw)
    known_ND = _directions((raw - mean) / std)
    asked_MD = _directions((torch.from_numpy(test.embeddings) - mean) / std)
    targets_NC = soft_targets(train.targets, num_classes).astype(np.float64)
    is_known_NC = ~np.isnan(targets_NC)
    present_NC = np.where(is_known_NC, targets_NC, 0.0)
    prior_C = present_NC.sum(axis=0) / is_known_NC.sum(axis=0).clip(min=1)
    scores = []
    for some_MD in torch.split(asked_MD, _NEIGHBOURS_AT_ONCE):
        similarity_MN = (some_MD @ known_ND.T).numpy().clip(-1.0, 1.0)
        # Stable: among equally near clips the earlier row votes, on every machine.
        nearest_MK = np.argsort(-similarity_MN, axis=1, kind="stable")[:, :num_neighbours]
        weight_MK = (1.0 + np.take_along_axis(similarity_MN, nearest_MK, axis=1)) / 2
        weight_MK[weight_MK.sum(axis=1) == 0] = 1.0  # all are opposite: they count alike
        votes_MC = np.einsum("mk,mkc->mc", weight_MK, present_NC[nearest_MK])
        heard_MC = np.einsum("mk,mkc->mc", weight_MK, is_known_NC[nearest_MK].astype(np.float64))
        silent_MC = heard_MC == 0
        share_MC = votes_MC / np.where(silent_MC, 1.0, heard_MC)
        scores.append(np.where(silent_MC, prior_C, share_MC))
    return np.concatenate(scores)


def probe_linear(
    classifier: BEATsForAudioClassification,
    train: EmbeddedSplit,
    val: EmbeddedSplit | None,
    test: EmbeddedSplit,
    config: Config,
) -> NDArray[np.float64]:
    """Fit a classifier's head on embeddings, as mode ``head`` of training does.

    Args:
        classifier: With a fresh head, which is left as it is.
        train: Clips to learn from.
        val: Clips to choose the epoch on; ``None`` keeps the last one.
        test: Clips to score.
        config: Of mode ``head``, resolved.

    Returns:
        Probabilities, shape ``(M, C)``.

    Raises:
        BEATsTrainerError: If the loss stops being finite.
    """
    fitted = fit_head_of(classifier, train, val, config, progress=False)
    return _probabilities(fitted.head, classifier, test.embeddings)


def probe_attentive(
    classifier: BEATsForAudioClassification,
    train: TokenFeatures,
    val: TokenFeatures | None,
    test: TokenFeatures,
    config: Config,
    device: torch.device,
) -> NDArray[np.float64]:
    """Fit a classifier's learned pooling and head on tokens, as mode ``attentive`` of training does.

    Args:
        classifier: With a fresh pooling and head, which are left as they are.
        train: As all that follow, see `probe_linear`.
        val: Clips to choose the epoch on.
        test: Clips to score.
        config: Of mode ``attentive``, resolved.
        device: Where to compute.

    Returns:
        Probabilities, shape ``(M, C)``.

    Raises:
        BEATsTrainerError: If the loss stops being finite.
    """
    fitted = fit_attentive_of(classifier, train, val, config, device=device, progress=False)
    return _probabilities(fitted.head, classifier, test.embed(fitted.pooling).embeddings)


def _probabilities(
    head: ClassifierHead,
    classifier: BEATsForAudioClassification,
    embeddings: NDArray[np.float32],
) -> NDArray[np.float64]:
    with torch.inference_mode():
        logits = head(torch.from_numpy(embeddings)).double()
    scores: NDArray[np.float64] = apply_activation(logits, classifier.activation).numpy()
    return scores


def _directions(standardised: torch.Tensor) -> torch.Tensor:
    """Rows of length 1, in float64; rows of zeros stay so, and are similar to nothing."""
    return torch.nn.functional.normalize(standardised.double(), dim=1)
