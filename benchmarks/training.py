"""What a step of fine-tuning the whole network costs on a CPU: time and memory, against Microsoft's code.

    git clone https://github.com/microsoft/unilm && git -C unilm checkout 768a3c8
    python benchmarks/training.py --microsoft unilm/beats [--threads 1] [--rounds 3] [--json FILE]

A step is forward, loss, backward and AdamW's step on a batch of noise, with the base network. Ours is the module
that `BEATsTrainer` trains, and its optimiser; Microsoft's is their modules in a plain loop. Both start from the
same weights and hear the same sound; the losses are compared first, without dropout. Then they take turns; times
are CPU seconds of the process (on one thread they hardly depend on what else the machine does) and wall seconds,
medians. The machine's own limit is the speed of plain products of the network's sizes, in the same run: a step
does three times the products of a forward pass.

Memory is the peak resident set of a fresh process that builds network and optimiser and takes two steps, minus
that of one that only builds them: gradients, the optimiser's state, and what the backward pass needs.

Their code imports torchaudio for the front end. Where that cannot be imported it gets ours, which computes the
same (tests/parity).
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from beats_trainer.checkpoints.microsoft import to_microsoft
from beats_trainer.config import Config
from beats_trainer.constants import WAVEFORM_SCALE
from beats_trainer.loading import AudioBatch
from beats_trainer.model import Architecture, BEATs, BEATsClassifier, ClassifierHead
from beats_trainer.model.fbank import KaldiFbank
from beats_trainer.model.lengths import count_frames, count_tokens
from beats_trainer.model.precision import autocast, fast_float32_products
from beats_trainer.training.losses import ClassificationLoss
from beats_trainer.training.modules import ClassifierModule
from beats_trainer.training.optim import make_optimizer, parameter_groups

CONTESTANTS = ("microsoft float32", "ours float32", "ours bfloat16", "ours bfloat16 checkpointed")
"""The first is what the others are compared with."""
CPU = torch.device("cpu")
CLASSES = 50
TINY = {
    "encoder_layers": 2,
    "encoder_embed_dim": 64,
    "encoder_ffn_embed_dim": 128,
    "encoder_attention_heads": 4,
    "embed_dim": 32,
}


class Alone(ClassifierModule):
    """The module that is trained, without Lightning's loop around it."""

    @property
    def trainer(self) -> Any:
        """What the module asks of it."""
        return types.SimpleNamespace(world_size=1, global_rank=0)

    def log(self, *args: Any, **options: Any) -> None:
        """Nowhere."""


def architecture(arguments: argparse.Namespace) -> Architecture:
    sizes: dict[str, Any] = TINY if arguments.tiny else {}
    return Architecture(dropout=arguments.dropout, attention_dropout=arguments.dropout, **sizes)


def batch(arguments: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Waveforms and targets."""
    generator = torch.Generator().manual_seed(1)
    samples = round(arguments.seconds * 16_000)
    waveforms = torch.randn(arguments.clips, samples, generator=generator) * 0.1
    targets = (torch.rand(arguments.clips, CLASSES, generator=generator) < 0.1).float()
    return waveforms, targets


def build_ours(arguments: argparse.Namespace) -> tuple[Alone, torch.optim.Optimizer]:
    torch.manual_seed(0)
    shape = architecture(arguments)
    head = ClassifierHead(shape.encoder_embed_dim, CLASSES, dropout=arguments.dropout)
    labels = [str(index) for index in range(CLASSES)]
    classifier = BEATsClassifier(BEATs(shape), head, labels, "sigmoid")
    table = classifier.beats.encoder.relative_attention_bias
    assert table is not None
    torch.nn.init.normal_(table.weight, std=0.3)
    config = Config()
    config.model.mode = "full"
    config.data.batch_size = arguments.clips
    config = config.resolved("multi")
    targets = np.zeros((1, CLASSES), np.float32)
    loss = ClassificationLoss.from_config(config.training, "sigmoid", targets)
    module = Alone(classifier, config, loss, (arguments.clips, 0), "multi").train()
    groups = parameter_groups(classifier, 1e-5, 0.01, 0.75, shape.encoder_layers)
    return module, make_optimizer(groups, config.training, 1e-5)


def build_microsoft(
    arguments: argparse.Namespace, weights: dict[str, Any] | None = None
) -> tuple[Any, torch.optim.Optimizer]:
    """Their network with the same settings, and with ``weights`` where some are given."""
    sys.path.insert(0, str(arguments.microsoft))
    _stand_in_for_torchaudio()
    from BEATs import BEATs as Theirs  # type: ignore[import-not-found]
    from BEATs import BEATsConfig

    settings = architecture(arguments).to_dict()
    settings.pop("fbank_mean"), settings.pop("fbank_std")
    settings |= {
        "finetuned_model": True,
        "predictor_class": CLASSES,
        "predictor_dropout": arguments.dropout,
    }
    torch.manual_seed(0)
    network = Theirs(BEATsConfig(settings)).train()
    if weights is not None:
        network.load_state_dict(weights)
    return network, torch.optim.AdamW(network.parameters(), lr=1e-5, betas=(0.9, 0.98))


def _stand_in_for_torchaudio() -> None:
    try:
        import torchaudio.compliance.kaldi  # type: ignore[import-not-found] # noqa: F401
    except (ImportError, OSError):
        front_end = KaldiFbank(0.0, 0.5)
        kaldi = types.ModuleType("torchaudio.compliance.kaldi")
        kaldi.fbank = lambda waveform, **_: front_end(waveform / WAVEFORM_SCALE)[0]  # type: ignore[attr-defined]
        for name in ("torchaudio", "torchaudio.compliance"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules[kaldi.__name__] = kaldi
        sys.modules["torchaudio.compliance"].kaldi = kaldi  # type: ignore[attr-defined]


@dataclass
class Contestant:
    """A network, and what one step of it does."""

    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[], Tensor]
    products: str = "float32"

    def step(self) -> None:
        """One step of training."""
        self.optimizer.zero_grad()
        with fast_float32_products(self.products == "float32"):
            self.loss().backward()
        self.optimizer.step()


def contest(arguments: argparse.Namespace, names: list[str]) -> dict[str, Contestant]:
    """Networks with the same weights; all of ours share one, and one optimiser."""
    waveforms, targets = batch(arguments)
    lengths = torch.full((len(waveforms),), waveforms.shape[1])
    found: dict[str, Contestant] = {}
    weights = None
    if any(name.startswith("ours") for name in names):
        module, optimizer = build_ours(arguments)
        if any(name.startswith("microsoft") for name in names):
            weights = to_microsoft(module.classifier)["model"]
        for name in names:
            if name.startswith("ours"):
                loss = loss_of_ours(module, (AudioBatch(waveforms, lengths), targets), name)
                found[name] = Contestant(module, optimizer, loss, name.split()[1])
    if any(name.startswith("microsoft") for name in names):
        network, optimizer = build_microsoft(arguments, weights)
        for name in names:
            if name.startswith("microsoft"):
                dtype = getattr(torch, name.split()[1])

                def loss_of_theirs(dtype: torch.dtype = dtype) -> Tensor:
                    with autocast(CPU, dtype):
                        scores, _ = network.extract_features(waveforms)
                    return F.binary_cross_entropy(scores.float(), targets)

                found[name] = Contestant(network, optimizer, loss_of_theirs, "plain")
    return {name: found[name] for name in names}


def loss_of_ours(module: Alone, data: tuple[AudioBatch, Tensor], name: str) -> Callable[[], Tensor]:
    dtype = getattr(torch, name.split()[1])

    def loss() -> Tensor:
        module.classifier.beats.encoder.recomputes_layers = name.endswith("checkpointed")
        with autocast(CPU, dtype):
            return module.training_step(data, 0)

    return loss


def compare(contestants: dict[str, Contestant]) -> dict[str, dict[str, float]]:
    """Loss, and the gradient of the first layer's first matrix, before any step and without dropout."""
    found = {}
    gradients: dict[str, Tensor] = {}
    for name, contestant in contestants.items():
        contestant.optimizer.zero_grad()
        loss = contestant.loss()
        loss.backward()
        (gradients[name],) = (
            parameter.grad.double()
            for key, parameter in contestant.network.named_parameters()
            if key.endswith("encoder.layers.0.fc1.weight") and parameter.grad is not None
        )
        expected = next(iter(gradients.values()))
        error = (gradients[name] - expected).norm() / expected.norm()
        found[name] = {"loss": float(loss.detach()), "gradient_error": float(error)}
        contestant.optimizer.zero_grad()
    return found


def step_operations(a: Architecture, clips: int, num_tokens: int) -> float:
    """Multiplications and additions of a step's products: those of the forward pass, three times."""
    width, ffn = a.encoder_embed_dim, a.encoder_ffn_embed_dim
    per_token = 4 * width * width + 2 * width * ffn + 2 * num_tokens * width
    patches = a.input_patch_size**2 * a.embed_dim + a.embed_dim * width
    position = a.conv_pos * width * width / a.conv_pos_groups
    return 6.0 * clips * num_tokens * (a.encoder_layers * per_token + patches + position)


def product_rate(a: Architecture, num_rows: int, products: str) -> float:
    """Operations per CPU second of the three products of a feed-forward matrix's forward and backward pass."""
    dtype = torch.bfloat16 if products == "bfloat16" else torch.float32
    values = torch.randn(num_rows, a.encoder_embed_dim).to(dtype)
    weight = torch.randn(a.encoder_ffn_embed_dim, a.encoder_embed_dim).to(dtype)
    gradient = torch.randn(num_rows, a.encoder_ffn_embed_dim).to(dtype)
    seconds = []
    with fast_float32_products(products == "float32"):
        for _ in range(6):
            start = time.process_time()
            F.linear(values, weight), gradient @ weight, gradient.T @ values
            seconds.append(time.process_time() - start)
    return 6.0 * num_rows * weight.numel() / statistics.median(seconds[1:])


def memory(arguments: argparse.Namespace, name: str, steps: int) -> float:
    """Peak resident set, in MB, of a process that builds one contestant and takes so many steps."""
    command = [sys.executable, __file__, *arguments.passed_on, "--run", name, str(steps)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def run(arguments: argparse.Namespace, name: str, steps: int) -> None:
    """What such a process does."""
    (contestant,) = contest(arguments, [name]).values()
    for _ in range(steps):
        contestant.step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--microsoft", type=Path, help="folder beats of a checkout of microsoft/unilm"
    )
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--dropout", type=float, default=0.1, help="everywhere, on both sides")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, help="not all contestants")
    parser.add_argument("--skip", choices=("time", "memory"), help="one of the two")
    parser.add_argument("--tiny", action="store_true", help="a tiny network, to try the command")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.passed_on = sys.argv[1:]
    torch.set_num_threads(arguments.threads)
    if arguments.run:
        run(arguments, arguments.run[0], int(arguments.run[1]))
        return
    names = [
        name
        for name in arguments.only or CONTESTANTS
        if arguments.microsoft or not name.startswith("microsoft")
    ]
    results: dict[str, dict[str, float]] = {name: {} for name in names}
    limits: dict[str, float] = {}
    if arguments.skip != "time":
        limits = time_steps(arguments, results)
    if arguments.skip != "memory":
        for name in names:
            built, peak = memory(arguments, name, 0), memory(arguments, name, 2)
            results[name] |= {"built_mb": built, "peak_mb": peak, "memory_mb": peak - built}
    show(results)
    for products, rate in limits.items():
        print(f"products in {products}: {rate / 1e9:.0f} GFLOP per CPU second")
    if arguments.json:
        settings = {key: str(value) for key, value in vars(arguments).items() if key != "json"}
        report = {"settings": settings, "results": results, "limits_flops": limits}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def time_steps(
    arguments: argparse.Namespace, results: dict[str, dict[str, float]]
) -> dict[str, float]:
    """Fill in losses and times; return the speed of products in each format."""
    shape = architecture(arguments)
    num_tokens = int(count_tokens(count_frames(round(arguments.seconds * 16_000))))
    rates = {
        products: product_rate(shape, arguments.clips * num_tokens, products)
        for products in ("plain", "float32", "bfloat16")
    }
    exact = argparse.Namespace(**vars(arguments) | {"dropout": 0.0})
    for name, found in compare(contest(exact, list(results))).items():
        results[name] |= found
    contestants = contest(arguments, list(results))
    for contestant in contestants.values():
        contestant.step()  # makes the optimiser's state
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for _ in range(arguments.rounds):
        for name, contestant in contestants.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            contestant.step()
            times = (time.process_time() - start_cpu, time.perf_counter() - start)
            taken[name].append(times)
    work = step_operations(shape, arguments.clips, num_tokens)
    for name, times in taken.items():
        cpu_s, wall_s = (statistics.median(column) for column in zip(*times, strict=True))
        limit = rates[contestants[name].products]
        results[name] |= {
            "cpu_s": cpu_s,
            "least_cpu_s": min(cpu for cpu, _ in times),
            "wall_s": wall_s,
            "share_of_limit": work / cpu_s / limit,
        }
    return rates


def show(results: dict[str, dict[str, float]]) -> None:
    columns = (
        ("loss", "loss", ".6f"),
        ("gradient_error", "grad. error", ".1e"),
        ("cpu_s", "CPU s", ".2f"),
        ("least_cpu_s", "least", ".2f"),
        ("wall_s", "wall s", ".2f"),
        ("share_of_limit", "of limit", ".0%"),
        ("memory_mb", "memory MB", ",.0f"),
    )
    print(f"{'':27}" + "".join(f"{title:>13}" for _, title, _ in columns) + "   against the first")
    first = next(iter(results.values()))
    for name, row in results.items():
        cells = "".join(
            f"{format(row[key], how) if key in row else '':>13}" for key, _, how in columns
        )
        ratios = []
        if "cpu_s" in row:
            ratios.append(f"{first['cpu_s'] / row['cpu_s']:.2f} x as fast")
        if first.get("memory_mb"):
            ratios.append(f"{row['memory_mb'] / first['memory_mb']:.0%} of the memory")
        print(f"{name:27}{cells}   {', '.join(ratios)}")


if __name__ == "__main__":
    main()
