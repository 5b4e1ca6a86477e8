"""The stages of pre-training: a tokenizer, then an encoder that learns from its codes, and again.

archive, settings -> [iteration 1: random projection | distilled | given -> encoder] -> [iteration 2: distilled -> encoder] ...

A stage that has been finished has its model folder; one that was broken off has a checkpoint in its folder and goes on.
Each stage builds its networks from the seed and the files of the stage before it, so that it can be run in a new
process at any time.
"""

import csv
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from beats_trainer.atomic import written_whole
from beats_trainer.checkpoints import BEATsModel, load_tokenizer
from beats_trainer.checkpoints.folder import is_model_folder, save_model
from beats_trainer.config import settled
from beats_trainer.errors import ConfigError
from beats_trainer.loading.archive import Archive, ArchiveBatches
from beats_trainer.model import (
    AcousticTokenizer,
    Architecture,
    BEATs,
    RandomProjectionTokenizer,
)
from beats_trainer.model.fingerprint import hash_weights
from beats_trainer.model.lengths import count_frames, count_tokens
from beats_trainer.model.precision import autocast, resolve_precision
from beats_trainer.pretraining import (
    LabelOrigin,
    LabelPredictor,
    LabelStore,
    MaskedAudioModel,
    TokenizerDistiller,
)
from beats_trainer.pretraining_config import PretrainingConfig
from beats_trainer.training.objectives import EncoderObjective, TokenizerObjective
from beats_trainer.training.pretraining_fit import StageRun, fit_objective
from beats_trainer.training.pretraining_module import PretrainingModule, StepPlan
from beats_trainer.training.probe import LinearProbe

__all__ = ["StageFolder", "Stages"]

logger = logging.getLogger(__name__)

_LABELLED_AT_ONCE = 32
"""Windows."""
_MOST_VALIDATED = 8
"""Batches of held-out sound that are looked at."""
_START_TOKENS_PER_CODE = 16
"""Tokens that k-means starts from."""


@dataclass(frozen=True)
class StageFolder:
    """What a stage leaves.

    Attributes:
        path: Its folder.
        kind: ``"tokenizer"`` or ``"encoder"``.
    """

    path: Path
    kind: str

    @property
    def model(self) -> Path:
        """The finished model."""
        return self.path / self.kind

    @property
    def history(self) -> Path:
        """One row per logged step."""
        return self.path / f"{self.kind}_history.csv"

    @property
    def checkpoints(self) -> Path:
        """Where a stage that was broken off is taken up."""
        return self.path / f"{self.kind}_checkpoints"

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to do."""
        return is_model_folder(self.model)

    def read_history(self) -> list[dict[str, float]]:
        """The rows that were written; none for a tokenizer that was not trained."""
        if not self.history.is_file():
            return []
        with open(self.history, newline="", encoding="utf-8") as stream:
            return [
                {name: float(value) for name, value in row.items() if value}
                for row in csv.DictReader(stream)
            ]


class Stages:
    """All stages of a run, to be run one after the other.

    Args:
        folder: Of the run.
        config: Resolved.
        archive: What to train on.
        held_out: What to validate on, or ``None``.
        device: Where to compute.
        progress: Whether progress lines are shown.
    """

    def __init__(
        self,
        folder: Path,
        config: PretrainingConfig,
        archive: Archive,
        held_out: Archive | None,
        device: torch.device,
        progress: bool,
    ) -> None:
        self.folder = folder
        self.config = config
        self.archive = archive
        self.held_out = held_out
        self.device = device
        self.progress = progress
        self.probe = None if config.probe is None else LinearProbe(config.probe, config.seed)

    def stage(self, iteration: int, kind: str) -> StageFolder:
        """The folder of a stage; iterations count from 1."""
        return StageFolder(self.folder / f"iteration_{iteration}", kind)

    def run(self, iteration: int) -> None:
        """Run what is left of an iteration.

        Raises:
            BEATsTrainerError: As `fit_objective`.
        """
        tokenizer, encoder = (self.stage(iteration, kind) for kind in ("tokenizer", "encoder"))
        tokenizer.path.mkdir(parents=True, exist_ok=True)
        if not tokenizer.is_finished:
            self._make_tokenizer(iteration, tokenizer)
        if not encoder.is_finished:
            self._train_encoder(iteration, tokenizer, encoder)

    def check(self) -> None:
        """Load what is given, and see that it fits, before anything is trained.

        Raises:
            CheckpointError: If a checkpoint or tokenizer cannot be had.
            ConfigError: If they do not fit.
        """
        teacher = self._given_encoder()
        given = self._given_tokenizer()
        architecture = self._architecture()
        if given is not None:
            own = given.architecture
            if own.input_patch_size != architecture.input_patch_size:
                raise ConfigError(
                    f"The tokenizer {self.config.tokenizer} has patches of {own.input_patch_size}, the encoder of "
                    f"{architecture.input_patch_size}: there would not be one code per token."
                )
        if (
            teacher is not None
            and self.config.architecture is not None
            and not _has_size(teacher.architecture, self.config)
        ):
            raise ConfigError(
                f"from_checkpoint is an encoder of {teacher.architecture.encoder_layers} layers, "
                f"{teacher.architecture.encoder_embed_dim} wide, which is not architecture="
                f"{self.config.architecture!r}. The checkpoint decides: leave architecture out."
            )
        self._batches(self.config.seed)

    def count_passes(self) -> float:
        """Count how often an encoder hears the archive in an iteration."""
        return settled(self.config.steps) / len(self._batches(self.config.seed).plan(0))

    # -- tokenizers ----------------------------------------------------------------------------------------------

    def _make_tokenizer(self, iteration: int, stage: StageFolder) -> None:
        config = self.config
        if iteration == 1 and config.tokenizer == "random":
            tokenizer = RandomProjectionTokenizer(
                self._architecture(),
                config.num_codes,
                config.code_dim,
                config.projection,
                config.seed,
            )
            save_model(tokenizer, stage.model, provenance=self._provenance(iteration, "random"))
        elif iteration == 1 and config.tokenizer != "distilled":
            given = self._given_tokenizer()
            assert given is not None
            save_model(given, stage.model, provenance=_plain(given.provenance))
        else:
            self._distil_tokenizer(iteration, stage)

    def _distil_tokenizer(self, iteration: int, stage: StageFolder) -> None:
        config = self.config
        teacher: BEATs | None
        if iteration == 1:
            teacher = self._given_encoder()
            assert teacher is not None
        else:
            teacher = BEATsModel.from_pretrained(self.stage(iteration - 1, "encoder").model)
        seed = self._seed(iteration, 0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tokenizer = AcousticTokenizer(
                _trained(teacher.architecture, config), config.num_codes, config.code_dim
            )
            if config.tokenizer_start == "teacher":
                tokenizer.load_state_dict(teacher.state_dict(), strict=False)
            distiller = TokenizerDistiller(tokenizer, teacher, config.commitment)
        batches = self._batches(seed)
        if not (stage.checkpoints / "last.ckpt").is_file():
            self._start_codes(distiller, batches, seed)
        objective = TokenizerObjective(distiller)
        self._fit(iteration, stage, objective, batches, seed)
        save_model(tokenizer, stage.model, provenance=self._provenance(iteration, "distilled"))

    def _start_codes(
        self, distiller: TokenizerDistiller, batches: ArchiveBatches, seed: int
    ) -> None:
        wanted = _START_TOKENS_PER_CODE * self.config.num_codes
        distiller.to(self.device)
        dtype = resolve_precision(self.config.precision, self.device)

        def some() -> Any:
            found = 0
            for batch in batches(0):
                audio = batch.audio.to(self.device)
                fbank, frame_lengths = distiller.tokenizer.front_end(audio.waveforms, audio.lengths)
                yield fbank, frame_lengths
                found += int(audio.lengths.sum()) // 2_560 * 8
                if found >= wanted:
                    return

        with autocast(self.device, dtype):
            distiller.start(some(), seed)
        distiller.cpu()

    def _given_tokenizer(self) -> AcousticTokenizer | RandomProjectionTokenizer | None:
        source = self.config.tokenizer
        if source in (None, "random", "distilled"):
            return None
        assert source is not None
        return load_tokenizer(source)

    # -- encoders ------------------------------------------------------------------------------------------------

    def _train_encoder(self, iteration: int, labelled_by: StageFolder, stage: StageFolder) -> None:
        config = self.config
        seed = self._seed(iteration, 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            beats = BEATsModel(self._architecture())
            predictor = LabelPredictor(
                beats.architecture,
                load_tokenizer(labelled_by.model).num_codes,
                settled(config.predictor_layers),
                _fitting_width(settled(config.predictor_width), beats.architecture),
            )
        start = self._given_encoder()
        if start is not None:
            beats.load_state_dict(start.state_dict())
        model = MaskedAudioModel(
            beats, predictor, config.mask_ratio, config.positions, config.label_smoothing
        )
        tokenizer = load_tokenizer(labelled_by.model)
        batches = self._batches(seed, are_fixed=config.store_labels)
        labels = None
        if config.store_labels:
            labels = self._label(tokenizer, batches, stage.path / "labels", seed)
        objective = EncoderObjective(model, tokenizer, seed, labels)
        self._fit(iteration, stage, objective, batches, seed)
        finished = BEATsModel(_at_rest(beats.architecture))
        finished.load_state_dict(beats.state_dict())
        save_model(finished, stage.model, provenance=self._provenance(iteration, "pre-trained"))

    def _given_encoder(self) -> BEATsModel | None:
        source = self.config.from_checkpoint
        return None if source is None else BEATsModel.from_pretrained(source)

    def _architecture(self) -> Architecture:
        given = self._given_encoder()
        if given is not None:
            return _trained(given.architecture, self.config)
        return Architecture(**self.config.architecture_settings())

    # -- both ----------------------------------------------------------------------------------------------------

    def _batches(self, seed: int, are_fixed: bool = False) -> ArchiveBatches:
        config = self.config
        return ArchiveBatches(
            self.archive,
            config.window_s,
            settled(config.batch_s),
            seed,
            num_threads=config.num_workers,
            cache_gb=config.cache_audio_gb,
            parts=config.accumulate_grad_batches,
            are_fixed=are_fixed,
        )

    def _label(
        self,
        tokenizer: AcousticTokenizer | RandomProjectionTokenizer,
        batches: ArchiveBatches,
        folder: Path,
        seed: int,
    ) -> LabelStore:
        """Give every window its codes, once; goes on where it was broken off."""
        a = tokenizer.architecture
        windows = batches.windows()
        longest = int(windows[:, 2].max())
        num_tokens = int(
            count_tokens(count_frames(longest, a.input_patch_size), a.input_patch_size)
        )
        origin = LabelOrigin(
            hash_weights(tokenizer),
            tokenizer.num_codes,
            a.input_patch_size,
            a.fbank_mean,
            a.fbank_std,
            batches.window,
            self.archive.fingerprint,
            seed,
        )
        store = LabelStore.create(folder, origin, len(windows), num_tokens)
        if store.is_complete:
            return store
        tokenizer.to(self.device)
        dtype = resolve_precision(self.config.precision, self.device)
        with tqdm(
            desc="Labelling",
            total=len(windows),
            initial=store.num_done,
            unit="window",
            disable=not self.progress,
            leave=False,
        ) as bar:
            for audio in batches.in_order(store.num_done, _LABELLED_AT_ONCE):
                moved = audio.to(self.device)
                with autocast(self.device, dtype):
                    found = tokenizer.encode(moved.waveforms, moved.lengths)
                lengths = found.token_lengths.tolist()
                codes = found.codes.cpu().numpy()
                store.add([row[:length] for row, length in zip(codes, lengths, strict=True)])
                bar.update(len(lengths))
        tokenizer.cpu()
        return store

    def _fit(
        self,
        iteration: int,
        stage: StageFolder,
        objective: EncoderObjective | TokenizerObjective,
        batches: ArchiveBatches,
        seed: int,
    ) -> None:
        config = self.config
        is_encoder = stage.kind == "encoder"
        stage.checkpoints.mkdir(exist_ok=True)
        rate = config.learning_rate if is_encoder else config.tokenizer_learning_rate
        plan = StepPlan(
            settled(config.steps if is_encoder else config.tokenizer_steps),
            settled(rate),
            config.warmup_ratio,
            config.weight_decay,
            seed,
            config.log_every,
            config.gradient_checkpointing,
        )
        run = StageRun(
            stage.checkpoints,
            self.device,
            config.devices,
            config.precision,
            config.gradient_clip,
            config.accumulate_grad_batches,
            config.checkpoint_every,
            f"Iteration {iteration} of {config.iterations}, {stage.kind}",
            self.progress,
        )
        look = _Look(config, self.held_out, self.probe if is_encoder else None, plan.num_steps)
        fit_objective(
            objective, batches, plan, run, validate=look, on_row=_HistoryFile(stage.history)
        )

    def _seed(self, iteration: int, kind: int) -> int:
        return (self.config.seed + 1_000 * iteration + kind) % 2**32

    def _provenance(self, iteration: int, how: str) -> dict[str, Any]:
        return {
            "made_by": f"beats-trainer pretrain, iteration {iteration}: {how}",
            "recordings": len(self.archive.table),
            "hours": round(self.archive.total_s / 3600, 3),
            "archive_sha256": self.archive.fingerprint,
            "settings": {
                name: value for name, value in self.config.to_dict().items() if value is not None
            },
        }


class _HistoryFile:
    """Writes the history whenever it has a new row."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, history: list[dict[str, float]]) -> None:
        columns = list(dict.fromkeys(name for row in history for name in row))
        with written_whole(self.path) as partial, open(partial, "w", newline="") as stream:
            writer = csv.DictWriter(stream, columns)
            writer.writeheader()
            writer.writerows(history)


class _Look:
    """Looks at held-out sound, and at labelled clips, every so often."""

    def __init__(
        self,
        config: PretrainingConfig,
        held_out: Archive | None,
        probe: LinearProbe | None,
        num_steps: int,
    ) -> None:
        self.config = config
        self.held_out = held_out
        self.probe = probe
        self.num_steps = num_steps
        self._batches: list[Any] | None = None

    def __call__(self, module: PretrainingModule, step: int) -> dict[str, float]:
        found: dict[str, float] = {}
        is_last = step == self.num_steps
        if self.held_out is not None and (is_last or step % self.config.validate_every == 0):
            found |= self._validate(module)
        if self.probe is not None and (is_last or step % self.config.probe_every == 0):
            found["probe_accuracy"] = self._probe(module)
        return found

    def _validate(self, module: PretrainingModule) -> dict[str, float]:
        """Every process does all of it, and comes to the same."""
        assert self.held_out is not None
        config = self.config
        if self._batches is None:
            size = min(settled(config.batch_s), self.held_out.total_s)
            batches = ArchiveBatches(
                self.held_out, config.window_s, size, 0, cache_gb=config.cache_audio_gb
            )
            num = min(_MOST_VALIDATED, len(batches.plan(0)))
            self._batches = [batch for batch, _ in zip(batches(0), range(num), strict=False)]
        loss, items = 0.0, 0.0
        right: float | None = None
        objective: Any = module.objective
        objective.eval()
        dtype = resolve_precision(config.precision, module.device)
        with torch.no_grad(), autocast(module.device, dtype):
            for batch in self._batches:
                output = objective(batch.to(module.device))
                loss += float(output.loss_sum)
                items += float(output.num_items)
                if "right" in output.sums:
                    right = (right or 0.0) + float(output.sums["right"])
        objective.train()
        found = {"val_loss": loss / max(1.0, items)}
        return found if right is None else found | {"val_accuracy": right / max(1.0, items)}

    def _probe(self, module: PretrainingModule) -> float:
        assert self.probe is not None
        value = 0.0
        if module.trainer.is_global_zero:
            objective: Any = module.objective
            value = self.probe.measure(objective.model.beats)
            objective.train()
        return float(module.trainer.strategy.broadcast(value))


def _trained(architecture: Architecture, config: PretrainingConfig) -> Architecture:
    """With the dropout of training, which a released architecture may have other values of."""
    return architecture.replace(
        dropout=config.dropout,
        attention_dropout=config.dropout,
        activation_dropout=0.0,
        dropout_input=0.0,
        encoder_layerdrop=config.layerdrop,
    )


def _at_rest(architecture: Architecture) -> Architecture:
    """Without dropout: whoever trains the encoder on decides anew."""
    return architecture.replace(dropout=0.0, attention_dropout=0.0, encoder_layerdrop=0.0)


def _has_size(architecture: Architecture, config: PretrainingConfig) -> bool:
    wanted = config.architecture_settings()
    return all(
        getattr(architecture, name) == wanted[name]
        for name in ("encoder_layers", "encoder_embed_dim")
    )


def _fitting_width(width: int, architecture: Architecture) -> int:
    """The nearest width that is a multiple of the encoder's heads'."""
    return max(1, round(width / architecture.head_dim)) * architecture.head_dim


def _plain(provenance: Any) -> dict[str, Any]:
    return dict(provenance)
