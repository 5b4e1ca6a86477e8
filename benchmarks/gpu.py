"""What the network costs on a GPU: right first, then against the machine's limits and against Microsoft's code.

    git clone https://github.com/microsoft/unilm
    python benchmarks/gpu.py --microsoft unilm/beats --audio FOLDER [--shapes 64x10 128x5] [--json gpu.json]

In one run, in turns, medians of wall time with the device waited for:

1. limits: products of the network's sizes in each number format, and the bandwidth of a copy;
2. errors: tokens of each way to compute them against float64 on the CPU, on sound and on noise;
3. embedding: time per clip, share of the limit of its number format, how many times as fast as Microsoft's code in
   its fastest format, and memory per clip;
4. training: a step of full fine-tuning (forward, backward, AdamW), likewise;
5. the largest batch that fits, by doubling;
6. a folder from files to embeddings, with the share of the time in which the device computes.

What fails is a row that says why, and the JSON file is written after every part. ``--device cpu --quick`` runs all of
it with a tiny network, to see that it runs.
"""

import argparse
import contextlib
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from inference import _front_end_of_torchaudio, compare, operations, reference, sound
from torch import Tensor, nn
from torch.nn import functional as F

from beats_trainer import BEATsFeatureExtractor
from beats_trainer.checkpoints import BEATsModel
from beats_trainer.checkpoints.microsoft import to_microsoft
from beats_trainer.model import Architecture
from beats_trainer.model import beats as network_file
from beats_trainer.model.compiled import compiled_for_inference
from beats_trainer.model.lengths import count_frames, count_tokens

FORMATS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
TINY = {
    "encoder_layers": 2,
    "encoder_embed_dim": 64,
    "encoder_ffn_embed_dim": 128,
    "encoder_attention_heads": 2,
    "embed_dim": 32,
}
Report = dict[str, Any]


def build(quick: bool, device: torch.device) -> BEATsModel:
    """A network none of whose weights is neutral, the same in every run."""
    torch.manual_seed(0)
    network = BEATsModel(Architecture(**(TINY if quick else {}))).eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        if name.endswith(("bias", "grep_a")) or "relative_attention" in name:
            nn.init.normal_(parameter, std=0.1)
    return network.to(device)


def wait(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turns(
    works: dict[str, Callable[[], object]], device: torch.device, rounds: int
) -> dict[str, float | str]:
    """Median seconds of each; or why it failed."""
    times: dict[str, list[float]] = {name: [] for name in works}
    failed: dict[str, str] = {}
    for turn in range(rounds + 2):
        for name, work in works.items():
            if name in failed:
                continue
            try:
                wait(device)
                start = time.perf_counter()
                work()
                wait(device)
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {str(error)[:200]}"
                continue
            if turn > 1:  # two to warm up: compiled ways compare in the first
                times[name].append(time.perf_counter() - start)
    return {name: failed.get(name) or statistics.median(times[name]) for name in works}


def limits(a: Architecture, rows: int, device: torch.device, rounds: int) -> dict[str, float]:
    """Products per second in each format, and bytes per second of a copy."""
    width, ffn = a.encoder_embed_dim, a.encoder_ffn_embed_dim
    sizes = [(width, 3 * width), (width, width), (width, ffn), (ffn, width)]
    work = sum(2.0 * rows * inner * outer for inner, outer in sizes)

    def products(dtype: torch.dtype) -> Callable[[], object]:
        pairs = [
            (
                torch.randn(rows, inner, device=device, dtype=dtype),
                torch.randn(inner, outer, device=device, dtype=dtype),
            )
            for inner, outer in sizes
        ]
        return lambda: [left @ right for left, right in pairs]

    works = {name: products(dtype) for name, dtype in FORMATS.items()}
    source = torch.ones(2**26 if device.type == "cuda" else 2**22, device=device)
    target = torch.empty_like(source)
    works["copy"] = lambda: target.copy_(source)
    seconds = in_turns(works, device, rounds)
    with tf32(device):
        seconds["tf32"] = in_turns({"tf32": products(torch.float32)}, device, rounds)["tf32"]
    amounts = dict.fromkeys((*FORMATS, "tf32"), work) | {"copy": 2.0 * source.nbytes}
    return {
        name: amounts[name] / value for name, value in seconds.items() if isinstance(value, float)
    }


@contextlib.contextmanager
def tf32(device: torch.device) -> Iterator[None]:
    """Let float32 products round to TF32, as many run Microsoft's code."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def without_kernel() -> Iterator[None]:
    """Attention with a table of biases, in torch's own kernel."""
    fits = network_file.kernel_fits
    network_file.kernel_fits = lambda *_, **__: False  # type: ignore[assignment]
    try:
        yield
    finally:
        network_file.kernel_fits = fits  # type: ignore[assignment]


def ways(
    network: BEATsModel, original: nn.Module | None, device: torch.device
) -> dict[str, tuple[str, Callable[[Tensor], Tensor]]]:
    """Ways to compute tokens, by name, each with its number format."""
    found: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {}

    def ours(
        model: Any, dtype: torch.dtype, context: Callable[[], Any]
    ) -> Callable[[Tensor], Tensor]:
        def run(waveforms: Tensor) -> Tensor:
            is_cast = dtype != torch.float32
            with context(), torch.inference_mode(), torch.autocast(device.type, dtype, is_cast):
                tokens: Tensor = model(waveforms).tokens
                return tokens

        return run

    compiled = compiled_for_inference(network, "inductor" if device.type == "cuda" else "aot_eager")
    for name, dtype in FORMATS.items():
        if dtype == torch.float16 and device.type == "cpu":
            continue
        found[f"ours, {name}"] = (name, ours(network, dtype, contextlib.nullcontext))
        found[f"ours without kernel, {name}"] = (name, ours(network, dtype, without_kernel))
        found[f"ours compiled, {name}"] = (name, ours(compiled, dtype, contextlib.nullcontext))
        if original is not None:
            found[f"Microsoft, {name}"] = (name, theirs(original, network, dtype, device))
    if original is not None:
        run = theirs(original, network, torch.float32, device)

        def rounded(waveforms: Tensor) -> Tensor:
            with tf32(device):
                return run(waveforms)

        found["Microsoft, tf32"] = ("tf32", rounded)
    return found


def theirs(
    original: nn.Module, network: BEATsModel, dtype: torch.dtype, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Microsoft's code; its front end, which float16 overflows, outside autocast and one clip at a time."""

    def run(waveforms: Tensor) -> Tensor:
        with torch.inference_mode():
            fbank = original.preprocess(waveforms)  # type: ignore[operator]
            original.preprocess = lambda *_, **__: fbank  # type: ignore[assignment]
            try:
                with torch.autocast(device.type, dtype, dtype != torch.float32):
                    tokens: Tensor = original.extract_features(waveforms)[0]  # type: ignore[operator]
                    return tokens
            finally:
                del original.preprocess

    return run


def load_original(checkout: str | None, network: BEATsModel) -> nn.Module | None:
    """Microsoft's network with our weights; ``None`` without a checkout."""
    if checkout is None:
        return None
    import importlib
    import sys

    sys.path.insert(0, checkout)
    with _front_end_of_torchaudio():
        module = importlib.import_module("BEATs")
    content = to_microsoft(copy.deepcopy(network).cpu())
    original: nn.Module = module.BEATs(module.BEATsConfig(content["cfg"])).eval()
    original.load_state_dict(content["model"])
    return original.to(next(network.parameters()).device)


def peak(device: torch.device, work: Callable[[], object]) -> int | None:
    """Bytes that the device held at most, beyond what it held before."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    return torch.cuda.max_memory_allocated(device) - before


def rows_of(
    seconds: dict[str, float | str],
    formats: dict[str, str],
    work: float,
    clips: int,
    rates: dict[str, float],
) -> Report:
    """Figures of each way."""
    base = min(
        (
            value
            for name, value in seconds.items()
            if name.startswith("Microsoft") and isinstance(value, float)
        ),
        default=None,
    )
    report: Report = {}
    for name, value in seconds.items():
        if isinstance(value, str):
            report[name] = {"failed": value}
            continue
        rate = rates.get(formats[name])
        report[name] = {
            "ms_per_clip": 1e3 * value / clips,
            "of_limit": None if rate is None else work / value / rate,
            "times_microsoft": None if base is None else base / value,
        }
    return report


def embedding(
    network: BEATsModel,
    original: nn.Module | None,
    clips: int,
    seconds: float,
    arguments: argparse.Namespace,
) -> Report:
    """Compare and time all ways for one shape of batch."""
    device = next(network.parameters()).device
    exact_network = copy.deepcopy(network).cpu()
    waveforms = sound(arguments.audio, clips, seconds)
    noise = torch.randn(1, waveforms.shape[1], generator=torch.Generator().manual_seed(1)) * 0.1
    exact = {
        "sound": reference(exact_network, waveforms[:1]),
        "noise": reference(exact_network, noise),
    }
    moved, moved_noise = waveforms.to(device), noise.to(device)
    num_tokens = exact["sound"].shape[1]
    rates = limits(network.architecture, clips * num_tokens, device, arguments.rounds)
    everyone = ways(network, original, device)
    errors: Report = {}
    for name, (_, run) in everyone.items():
        try:
            errors[name] = {
                "sound": compare(run(moved[:1]).float().cpu(), exact["sound"]),
                "noise": compare(run(moved_noise).float().cpu(), exact["noise"]),
            }
        except Exception as error:
            errors[name] = {"failed": f"{type(error).__name__}: {str(error)[:200]}"}
    works: dict[str, Callable[[], object]] = {
        name: (lambda run=run: run(moved)) for name, (_, run) in everyone.items()
    }
    times = in_turns(works, device, arguments.rounds)
    work = clips * operations(network.architecture, num_tokens)
    report = rows_of(times, {name: f for name, (f, _) in everyone.items()}, work, clips, rates)
    for name in report:
        report[name]["error"] = errors[name]
        if "failed" not in report[name]:
            held = peak(device, works[name])
            report[name]["mb_per_clip"] = None if held is None else held / clips / 1e6
    return {"limits": rates, "ways": report}


def training(
    network: BEATsModel,
    original: nn.Module | None,
    clips: int,
    seconds: float,
    arguments: argparse.Namespace,
) -> Report:
    """A step of each, in turns."""
    device = next(network.parameters()).device
    waveforms = sound(arguments.audio, clips, seconds).to(device)
    targets = torch.arange(clips, device=device) % 10
    fbank = network.fbank(waveforms)
    num_tokens = count_tokens(count_frames(waveforms.shape[1]))
    rates = limits(network.architecture, clips * num_tokens, device, arguments.rounds)
    works: dict[str, Callable[[], object]] = {}
    formats: dict[str, str] = {}

    def step(
        model: nn.Module, tokens_of: Callable[[], Tensor], dtype: torch.dtype
    ) -> Callable[[], object]:
        head = nn.Linear(network.architecture.encoder_embed_dim, 10).to(device)
        model.requires_grad_(True)
        optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], 1e-6)

        def once() -> None:
            model.train()
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype, dtype != torch.float32):
                logits = head(tokens_of().mean(1))
            F.cross_entropy(logits.float(), targets).backward()
            optimizer.step()

        return once

    for name in ("bfloat16", "float32"):
        ours = copy.deepcopy(network)
        works[f"ours, {name}"] = step(
            ours, lambda ours=ours: ours.encode_fbank(fbank).tokens, FORMATS[name]
        )
        formats[f"ours, {name}"] = name
        if original is not None:
            other = copy_of(original, network, arguments.microsoft)
            other.preprocess = lambda *_, **__: fbank  # type: ignore[assignment]
            works[f"Microsoft, {name}"] = step(
                other, lambda other=other: other.extract_features(waveforms)[0], FORMATS[name]
            )
            formats[f"Microsoft, {name}"] = name
    times = in_turns(works, device, arguments.rounds)
    work = 3.0 * clips * operations(network.architecture, num_tokens)
    report = rows_of(times, formats, work, clips, rates)
    for name in report:
        if "failed" not in report[name]:
            held = peak(device, works[name])
            report[name]["mb_per_clip"] = None if held is None else held / clips / 1e6
    return {"limits": rates, "ways": report}


def copy_of(original: nn.Module, network: BEATsModel, checkout: str) -> nn.Module:
    """Microsoft's weight norm cannot be copied: it is built anew."""
    built = load_original(checkout, network)
    assert built is not None
    return built


def largest_batch(network: BEATsModel, seconds: float, device: torch.device) -> Report:
    """Clips of one length that fit, by doubling."""
    if device.type != "cuda":
        return {"skipped": "needs a GPU"}
    clips = 16
    while clips < 2**14:
        try:
            with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
                network(torch.zeros(2 * clips, round(seconds * 16_000), device=device))
        except torch.OutOfMemoryError:
            break
        clips *= 2
    torch.cuda.empty_cache()
    return {"seconds": seconds, "clips": clips}


def folder(network: BEATsModel, arguments: argparse.Namespace) -> Report:
    """From files to embeddings on disk."""
    if arguments.audio is None:
        return {"skipped": "needs --audio"}
    extractor = BEATsFeatureExtractor(network, device=arguments.device)
    with tempfile.TemporaryDirectory() as target:
        start = time.perf_counter()
        store = extractor.embed_to(arguments.audio, Path(target) / "store")
        seconds = time.perf_counter() - start
        return {"rows": len(store), "seconds": seconds, "device": arguments.device}


def show(title: str, report: Report) -> None:
    """One table."""
    print(f"\n{title}")
    for name, entry in report["ways"].items():
        if "failed" in entry:
            print(f"  {name:32} failed: {entry['failed']}")
            continue
        share, ratio = entry["of_limit"], entry["times_microsoft"]
        line = f"  {name:32}{entry['ms_per_clip']:9.3f} ms/clip"
        line += f"{share:8.0%} of the limit" if share is not None else f"{'':21}"
        line += f"{ratio:8.2f} x Microsoft" if ratio is not None else ""
        held = entry.get("mb_per_clip")
        line += f"{held:9.1f} MB/clip" if held is not None else ""
        error = entry.get("error", {})
        if "sound" in error:
            line += f"  1 - cosine {max(0.0, 1 - error['sound']['cosine']):.1e}"
        print(line)
    rates = report["limits"]
    print("  limits: " + ", ".join(f"{name} {rate / 1e12:.2f} T/s" for name, rate in rates.items()))


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--microsoft", help="folder 'beats' of a checkout of microsoft/unilm")
    parser.add_argument("--audio", help="folder of sound; without one, noise")
    parser.add_argument("--shapes", nargs="+", default=["64x10", "128x5", "1x10"])
    parser.add_argument("--training-shapes", nargs="+", default=["32x10"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tiny network, one small shape")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.shapes, arguments.training_shapes, arguments.rounds = ["2x2"], ["2x2"], 1
    device = torch.device(arguments.device)
    network = build(arguments.quick, device)
    original = load_original(arguments.microsoft, network)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}; torch {torch.__version__}")
    found: Report = {"device": name, "torch": torch.__version__}

    def part(title: str, make: Callable[[], Report]) -> None:
        try:
            found[title] = make()
        except Exception as error:
            found[title] = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
        if "ways" in found[title]:
            show(title, found[title])
        else:
            print(f"\n{title}: {found[title]}")
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=1))

    for text in arguments.shapes:
        clips, seconds = (float(number) for number in text.split("x"))
        part(
            f"embedding, {text} s",
            lambda c=int(clips), s=seconds: embedding(network, original, c, s, arguments),
        )
    for text in arguments.training_shapes:
        clips, seconds = (float(number) for number in text.split("x"))
        part(
            f"training, {text} s",
            lambda c=int(clips), s=seconds: training(network, original, c, s, arguments),
        )
    part("largest batch", lambda: largest_batch(network, 10.0, device))
    part("folder", lambda: folder(network, arguments))


if __name__ == "__main__":
    main()
