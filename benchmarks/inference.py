"""How fast tokens are computed on a CPU: against other implementations, and against the machine itself.

    python benchmarks/inference.py [--microsoft unilm/beats] [--audio FOLDER] [--shapes 8x5 4x10 1x5 1x10 1x30]
                                   [--threads 1 2] [--rounds 5] [--only packed microsoft] [--json FILE]

Everyone gets the same weights (random, seeded, none of them neutral) and the same sound (files of FOLDER, or
noise), and does the same work: waveforms in, tokens out. Their tokens are compared first, with ours in float64
on the first clip: the largest difference, and the cosine of pooled embeddings. Then they run in turns; the
figures are medians of CPU time with one thread, which holds on a busy machine too, and of wall time with more.

Limits are measured in the same turns: the rate of matrix products of the sizes that this network has, by
torch's own linear map and by oneDNN with packed weights, and the bandwidth of a copy in memory. The share of a
contestant is the arithmetic it has to do, in its time, of the best rate there is in its number format.

Peers that are not installed are left out, with a line that says how to get them:

- Microsoft's BEATs: git clone https://github.com/microsoft/unilm, then --microsoft unilm/beats. It imports
  torchaudio for its front end; where that is missing, a stand-in gives it ours (which is faster: it is counted
  in its favour);
- openbeats: pip install --no-deps openbeats==0.1.1 (the same stand-in);
- ONNX Runtime and OpenVINO run our encoder, exported for each shape, behind our front end:
  pip install onnx onnxscript onnxruntime openvino;
- torchao: pip install torchao.
"""

import argparse
import contextlib
import copy
import importlib
import importlib.util
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beats_trainer.audio import load_audio
from beats_trainer.checkpoints import BEATsModel
from beats_trainer.checkpoints.microsoft import to_microsoft
from beats_trainer.loading import find_clips
from beats_trainer.model import Architecture
from beats_trainer.model.fbank import KaldiFbank
from beats_trainer.model.lengths import count_frames, count_tokens
from beats_trainer.model.packed import can_pack, pack_for_inference

RATE = 16_000

Run = Callable[[Tensor], Tensor]
"""Waveforms ``(B, S)`` to tokens ``(B, T, D)``."""


@dataclass
class Contestant:
    """One way to compute tokens; ``build`` makes it ready for a batch of waveforms and a number of threads."""

    name: str
    number_format: str
    build: Callable[[Tensor, int], Run]
    needs: tuple[str, ...] = ()
    advice: str = ""


@dataclass
class Shape:
    """Figures of one batch size and clip length."""

    clips: int
    seconds: float
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    limits: dict[str, dict[str, float]] = field(default_factory=dict)


def operations(a: Architecture, num_tokens: int) -> float:
    """Multiplications and additions of one clip's matrix products and convolutions."""
    width, ffn = a.encoder_embed_dim, a.encoder_ffn_embed_dim
    per_token = 4 * width * width + 2 * width * ffn + 2 * num_tokens * width
    patches = a.input_patch_size**2 * a.embed_dim + a.embed_dim * width
    position = a.conv_pos * width * width / a.conv_pos_groups
    return 2.0 * num_tokens * (a.encoder_layers * per_token + patches + position)


def build_network() -> BEATsModel:
    """The released architecture, as the paper initialises it, with every bias, gate and bucket drawn too."""
    torch.manual_seed(0)
    network = BEATsModel(Architecture()).eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        if name.endswith(("bias", "grep_a")) or "relative_attention" in name:
            nn.init.normal_(parameter, std=0.1)
    return network


def sound(folder: str | None, clips: int, seconds: float) -> Tensor:
    """Clips of files laid end to end, or noise."""
    size = round(seconds * RATE)
    if folder is None:
        return torch.randn(clips, size, generator=torch.Generator().manual_seed(0)) * 0.1
    pieces: list[np.ndarray] = []
    files = find_clips(folder)
    for index in range(10**6):
        if sum(map(len, pieces)) >= clips * size:
            break
        pieces.append(load_audio(files[index * 7 % len(files)].file))
    return torch.from_numpy(np.concatenate(pieces)[: clips * size]).view(clips, size)


# -- the contestants ------------------------------------------------------------------------------------------


def contestants(network: BEATsModel, microsoft: str | None, folder: Path) -> list[Contestant]:
    """Everyone who could run, ours first."""
    packed: dict[torch.dtype, Any] = {}

    def ours(dtype: torch.dtype | None, autocast: bool = False) -> Callable[[Tensor, int], Run]:
        def build(_: Tensor, __: int) -> Run:
            model: Any = network
            if dtype is not None:
                if not can_pack(network, dtype):
                    raise ImportError("this machine or torch cannot")
                model = packed.setdefault(dtype, pack_for_inference(network, dtype))
            is_cast = autocast or dtype == torch.bfloat16
            return _under_autocast(lambda waveforms: model(waveforms).tokens, is_cast)

        return build

    export = Exports(network, folder)
    runtime, onnx = "pip install onnx onnxscript onnxruntime", ("onnx", "onnxscript", "onnxruntime")
    vino = "pip install onnx onnxscript openvino"
    clone = "git clone https://github.com/microsoft/unilm, then --microsoft unilm/beats"
    return [
        Contestant("plain float32", "float32", ours(None)),
        Contestant("packed float32", "float32", ours(torch.float32)),
        Contestant("plain bfloat16", "bfloat16", ours(None, autocast=True)),
        Contestant("packed bfloat16", "bfloat16", ours(torch.bfloat16)),
        *(
            Contestant(
                f"Microsoft {number_format}",
                number_format,
                lambda _, __, cast=number_format == "bfloat16": _microsoft(
                    network, microsoft, cast
                ),
                advice=clone,
            )
            for number_format in ("float32", "bfloat16")
        ),
        *(
            Contestant(
                f"openbeats {number_format}",
                number_format,
                lambda _, __, cast=number_format == "bfloat16": _openbeats(network, cast),
                ("openbeats",),
                "pip install --no-deps openbeats==0.1.1",
            )
            for number_format in ("float32", "bfloat16")
        ),
        Contestant("ONNX Runtime float32", "float32", export.onnxruntime(False), onnx, runtime),
        Contestant("ONNX Runtime int8", "int8", export.onnxruntime(True), onnx, runtime),
        Contestant("OpenVINO float32", "float32", export.openvino("f32"), ("openvino",), vino),
        Contestant("OpenVINO bfloat16", "bfloat16", export.openvino("bf16"), ("openvino",), vino),
        Contestant("torch.ao int8", "int8", lambda *_: _torch_int8(network)),
        Contestant(
            "torchao int8",
            "int8",
            lambda *_: _torchao(network),
            ("torchao",),
            "pip install torchao",
        ),
    ]


def _under_autocast(run: Run, is_cast: bool) -> Run:
    def cast(waveforms: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=is_cast):
            return run(waveforms)

    return cast


@contextlib.contextmanager
def _front_end_of_torchaudio() -> Iterator[None]:
    """Let ``torchaudio.compliance.kaldi.fbank`` be ours where torchaudio cannot be imported."""
    try:
        import torchaudio.compliance.kaldi  # noqa: F401
    except (ImportError, OSError):
        front_end = KaldiFbank(0.0, 0.5)
        kaldi = types.ModuleType("torchaudio.compliance.kaldi")
        kaldi.fbank = lambda waveform, **_: front_end(waveform / 2**15)[0]  # type: ignore[attr-defined]
        compliance = types.ModuleType("torchaudio.compliance")
        compliance.kaldi = kaldi  # type: ignore[attr-defined]
        whole = types.ModuleType("torchaudio")
        whole.compliance = compliance  # type: ignore[attr-defined]
        sys.modules |= {
            "torchaudio": whole,
            "torchaudio.compliance": compliance,
            "torchaudio.compliance.kaldi": kaldi,
        }
    yield


def _microsoft(network: BEATsModel, checkout: str | None, is_cast: bool) -> Run:
    if checkout is None:
        raise ImportError("no --microsoft")
    with _front_end_of_torchaudio(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if checkout not in sys.path:
            sys.path.insert(0, checkout)
        original = importlib.import_module("BEATs")

        content = to_microsoft(network)
        model = original.BEATs(original.BEATsConfig(content["cfg"])).eval()
        model.load_state_dict(content["model"])
    return _under_autocast(lambda waveforms: model.extract_features(waveforms)[0], is_cast)


def _openbeats(network: BEATsModel, is_cast: bool) -> Run:
    with _front_end_of_torchaudio(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from openbeats.beats_encoder import BeatsEncoder

        content = to_microsoft(network)
        model = BeatsEncoder(input_size=0, beats_config=content["cfg"]).eval()
        missing, unknown = model.load_state_dict(content["model"], strict=False)
    wrong = [*unknown, *(name for name in missing if "_pad" not in name)]
    assert not wrong, f"openbeats did not take {wrong}"

    def run(waveforms: Tensor) -> Tensor:
        lengths = torch.full((len(waveforms),), waveforms.shape[1])
        tokens: Tensor = model(waveforms, lengths)[0]
        return tokens

    return _under_autocast(run, is_cast)


class Exports:
    """Our encoder, from log-mel on, as ONNX of fixed shapes; each is written once."""

    def __init__(self, network: BEATsModel, folder: Path) -> None:
        self.network, self.folder = network, folder

    def file(self, waveforms: Tensor) -> Path:
        """Export for the shape of these waveforms; the last one makes room."""
        file = self.folder / f"{'x'.join(map(str, waveforms.shape))}.onnx"
        if not file.exists():
            for old in self.folder.iterdir():
                old.unlink()

            class FromFbank(nn.Module):
                def __init__(self, network: BEATsModel) -> None:
                    super().__init__()
                    self.network = network

                def forward(self, fbank: Tensor) -> Tensor:
                    return self.network.encode_fbank(fbank).tokens

            with torch.inference_mode():
                fbank = self.network.front_end(waveforms)[0].clone()
            with contextlib.redirect_stdout(None), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    FromFbank(self.network).eval(), (fbank,), file, dynamo=True, verbose=False
                )
        return file

    def onnxruntime(self, is_int8: bool) -> Callable[[Tensor, int], Run]:
        """Float32, or with linear maps whose weights are 8 bits, and whose inputs are as they come."""

        def build(waveforms: Tensor, threads: int) -> Run:
            import onnxruntime

            file = self.file(waveforms)
            if is_int8:
                from onnxruntime.quantization import QuantType, quantize_dynamic

                small = file.with_suffix(".int8.onnx")
                if not small.exists():
                    quantize_dynamic(
                        file,
                        small,
                        weight_type=QuantType.QInt8,
                        op_types_to_quantize=["MatMul", "Gemm"],
                    )
                file = small
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.log_severity_level = 3
            session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
            return self._behind_front_end(
                lambda fbank: session.run(None, {_input(session): fbank})[0]
            )

        return build

    def openvino(self, number_format: str) -> Callable[[Tensor, int], Run]:
        """With the products in ``"f32"`` or ``"bf16"``."""

        def build(waveforms: Tensor, threads: int) -> Run:
            import openvino

            model = openvino.Core().compile_model(
                self.file(waveforms),
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": number_format,
                    "PERFORMANCE_HINT": "LATENCY",
                    "INFERENCE_NUM_THREADS": threads,
                },
            )
            return self._behind_front_end(lambda fbank: model([fbank])[0])

        return build

    def _behind_front_end(self, encode: Callable[[np.ndarray], np.ndarray]) -> Run:
        def run(waveforms: Tensor) -> Tensor:
            with torch.inference_mode():
                fbank = self.network.front_end(waveforms)[0]
            return torch.from_numpy(encode(fbank.numpy()))

        return run


def _input(session: Any) -> str:
    name: str = session.get_inputs()[0].name
    return name


def _torch_int8(network: BEATsModel) -> Run:
    from torch.ao.quantization import quantize_dynamic

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = quantize_dynamic(copy.deepcopy(network), {nn.Linear}, torch.qint8)
    return _under_autocast(lambda waveforms: model(waveforms).tokens, False)


def _torchao(network: BEATsModel) -> Run:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = copy.deepcopy(network)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return _under_autocast(lambda waveforms: model(waveforms).tokens, False)


# -- the limits -----------------------------------------------------------------------------------------------


def limits(a: Architecture, num_rows: int) -> dict[str, tuple[Callable[[], object], float]]:
    """What the machine can do at most: a piece of work, and its operations or bytes."""
    sizes = [
        (3 * a.encoder_embed_dim, a.encoder_embed_dim),
        (a.encoder_embed_dim, a.encoder_embed_dim),
        (a.encoder_ffn_embed_dim, a.encoder_embed_dim),
        (a.encoder_embed_dim, a.encoder_ffn_embed_dim),
    ]
    work = sum(2.0 * num_rows * outputs * inputs for outputs, inputs in sizes)
    found: dict[str, tuple[Callable[[], object], float]] = {}

    def linear(dtype: torch.dtype, is_packed: bool) -> Callable[[], object]:
        layers: list[tuple[Tensor, Tensor, Tensor]] = []
        for outputs, inputs in sizes:
            weight = torch.randn(outputs, inputs).to(dtype)
            if is_packed:
                weight = torch.ops.mkldnn._reorder_linear_weight(weight, num_rows)
            layers.append(
                (torch.randn(num_rows, inputs).to(dtype), weight, torch.randn(outputs).to(dtype))
            )

        def multiply() -> None:
            with torch.inference_mode():
                for values, weight, bias in layers:
                    if is_packed:
                        torch.ops.mkldnn._linear_pointwise(values, weight, bias, "none", [], "")
                    else:
                        F.linear(values, weight, bias)

        return multiply

    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        found[f"linear {name}"] = (linear(dtype, False), work)
        with contextlib.suppress(RuntimeError, AttributeError):
            found[f"packed {name}"] = (linear(dtype, True), work)
    source, target = torch.ones(2, 2**25).unbind()  # 128 MB each, more than any cache
    found["copy"] = (lambda: target.copy_(source), 2.0 * source.nbytes)
    return found


# -- the race -------------------------------------------------------------------------------------------------


def reference(network: BEATsModel, waveforms: Tensor) -> Tensor:
    """Tokens in float64, of the same log-mel."""
    with torch.inference_mode():
        fbank = network.front_end(waveforms)[0]
        exact = copy.deepcopy(network).double()
        return exact.encode_fbank(fbank.double()).tokens


def compare(tokens: Tensor, exact: Tensor) -> dict[str, float]:
    """Largest difference of the first clips' tokens, and the least cosine of their pooled embeddings."""
    tokens = tokens[: len(exact)].double()
    assert tokens.shape == exact.shape, f"{tuple(tokens.shape)}, not {tuple(exact.shape)}"
    cosine = F.cosine_similarity(tokens.mean(1), exact.mean(1))
    return {
        "max_error": float((tokens - exact).abs().max()),
        "cosine": float(cosine.min()),
    }


def timed(work: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    work()
    return clock() - start


def race(
    shape: Shape, network: BEATsModel, everyone: list[Contestant], arguments: argparse.Namespace
) -> None:
    """Compare, then time in turns, one thread count after the other."""
    waveforms = sound(arguments.audio, shape.clips, shape.seconds)
    exact = reference(network, waveforms[: arguments.exact_clips])
    num_tokens = exact.shape[1]
    work = shape.clips * operations(network.architecture, num_tokens)
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        clock = time.process_time if threads == 1 else time.perf_counter
        runs: dict[str, Callable[[], object]] = {}
        for one in everyone:
            try:
                run = one.build(waveforms, threads)
            except ImportError as error:
                print(f"  without {one.name}: {error}. {one.advice}", file=sys.stderr)
                continue
            figures = compare(run(waveforms), exact)
            shape.results.setdefault(one.name, {"format": one.number_format, **figures})
            runs[one.name] = lambda run=run: run(waveforms)
        machine = limits(network.architecture, shape.clips * num_tokens)
        for unit, (limit, _) in machine.items():
            runs[f"limit {unit}"] = limit
        times: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(arguments.rounds + 1):
            for name, run_once in runs.items():
                time.sleep(arguments.pause)  # threads of the one before may still spin
                seconds = timed(run_once, clock)
                if turn:  # the first one warms up
                    times[name].append(seconds)
        label = f"{threads} thread{'s' if threads > 1 else ''}"
        rates = {
            unit: amount / statistics.median(times[f"limit {unit}"])
            for unit, (_, amount) in machine.items()
        }
        shape.limits[label] = rates
        for name, entry in shape.results.items():
            if name not in times:
                continue
            seconds = statistics.median(times[name])
            best = max(
                (rate for unit, rate in rates.items() if unit.endswith(entry["format"])),
                default=0.0,
            )
            entry[label] = {
                "ms_per_clip": 1e3 * seconds / shape.clips,
                "fastest_ms_per_clip": 1e3 * min(times[name]) / shape.clips,
                "share_of_limit": work / seconds / best if best else None,
            }
        base = shape.results.get("Microsoft float32", {}).get(label)
        for entry in shape.results.values():
            if base and label in entry:
                entry[label]["times_microsoft_float32"] = (
                    base["ms_per_clip"] / entry[label]["ms_per_clip"]
                )


def show(shape: Shape) -> None:
    """One table for all thread counts."""
    labels = list(shape.limits)
    print(f"\n{shape.clips} x {shape.seconds:g} s")
    head = f"{'':22}{'max error':>11}{'1 - cosine':>12}"
    for label in labels:
        head += f" |{label + ': ms/clip':>20}{'of limit':>10}{'x Microsoft':>13}"
    print(head)
    for name, entry in shape.results.items():
        line = f"{name:22}{entry['max_error']:11.1e}{max(0.0, 1 - entry['cosine']):12.1e}"
        for label in labels:
            figures = entry.get(label)
            if figures is None:
                continue
            share, ratio = figures["share_of_limit"], figures.get("times_microsoft_float32")
            line += f" |{figures['ms_per_clip']:20.1f}"
            line += f"{share:10.0%}" if share else f"{'':10}"
            line += f"{ratio:13.2f}" if ratio else f"{'':13}"
        print(line)
    for label, rates in shape.limits.items():
        text = ", ".join(
            f"{unit} {rate / 1e9:.0f} {'GB/s' if unit == 'copy' else 'GFLOP/s'}"
            for unit, rate in rates.items()
        )
        print(f"limits, {label}: {text}")


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    """Run the race."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--microsoft", help="folder 'beats' of a checkout of microsoft/unilm")
    parser.add_argument("--audio", help="folder of sound; without one, noise")
    parser.add_argument("--shapes", nargs="+", default=["8x5", "4x10", "1x5", "1x10", "1x30"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, os.cpu_count() or 1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between two turns")
    parser.add_argument("--exact-clips", type=int, default=1, help="clips compared with float64")
    parser.add_argument("--only", nargs="+", help="contestants whose name has one of these in it")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.threads = sorted(set(arguments.threads))
    network = build_network()
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"{_processor()}, {os.cpu_count()} processors, {capability}; torch {torch.__version__}")
    print(f"load {os.getloadavg()[0]:.1f}; sound: {arguments.audio or 'noise'}")
    shapes = []
    with tempfile.TemporaryDirectory() as folder:
        everyone = [
            one
            for one in contestants(network, arguments.microsoft, Path(folder))
            if not arguments.only or any(word in one.name for word in arguments.only)
        ]
        for one in list(everyone):
            missing = [name for name in one.needs if importlib.util.find_spec(name) is None]
            if missing:
                print(f"without {one.name}: {one.advice}", file=sys.stderr)
                everyone.remove(one)
        for text in arguments.shapes:
            clips, seconds = text.split("x")
            shape = Shape(int(clips), float(seconds))
            assert count_tokens(count_frames(round(shape.seconds * RATE))) > 0
            race(shape, network, everyone, arguments)
            show(shape)
            shapes.append(shape)
            if arguments.json:
                arguments.json.write_text(
                    json.dumps(
                        {
                            "processor": _processor(),
                            "processors": os.cpu_count(),
                            "torch": torch.__version__,
                            "load": os.getloadavg()[0],
                            "sound": arguments.audio or "noise",
                            "rounds": arguments.rounds,
                            "shapes": [vars(one) for one in shapes],
                        },
                        indent=1,
                    )
                )


if __name__ == "__main__":
    main()
