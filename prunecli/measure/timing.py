"""Measured latency of networks side by side, in PyTorch and in onnxruntime."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunecli.exporting import to_onnx
from prunecli.exporting.needed import need

BACKENDS = ("pytorch", "onnxruntime")
WARM_UP = 3  # runs before the clock counts: allocations, kernels chosen, caches filled


@dataclass(frozen=True)
class Timing:
    """Time of one forward pass over `batch` examples: median and quartiles of `repeats` runs, in milliseconds."""

    backend: str
    device: str
    batch: int
    threads: int
    repeats: int
    median_ms: float
    q1_ms: float
    q3_ms: float


def latency(
    candidates: Sequence[tuple[nn.Module, Tensor]],
    batches: Sequence[int] = (1,),
    *,
    threads: int = 1,
    repeats: int = 50,
    backends: Sequence[str] = BACKENDS,
) -> list[list[Timing]]:
    """Time each network on copies of its example [1, ...], every batch size and backend; a list of timings a network.

    One run of every candidate follows another, so that a busy moment of the machine hits all of them. PyTorch runs
    where the example is, onnxruntime on the CPU, both in float32. Raises `PruneError` when a network cannot be exported
    or onnxruntime is missing.
    """
    results: list[list[Timing]] = [[] for _ in candidates]
    if "onnxruntime" in backends:
        need("onnxruntime")  # before the work of exporting
    models = [
        to_onnx(network, example.cpu(), {}) if "onnxruntime" in backends else b"" for network, example in candidates
    ]
    with _evaluation(candidates, threads):
        for batch in batches:
            inputs = [torch.cat([example] * batch) for _, example in candidates]
            for backend in backends:
                if backend == "pytorch":
                    runs = [_pytorch(network, x) for (network, _), x in zip(candidates, inputs, strict=True)]
                else:
                    runs = [_onnxruntime(model, x, threads) for model, x in zip(models, inputs, strict=True)]
                for i, times in enumerate(_interleave(runs, repeats)):
                    q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive")
                    device = str(inputs[i].device) if backend == "pytorch" else "cpu"
                    results[i].append(Timing(backend, device, batch, threads, repeats, median, q1, q3))
    return results


def _interleave(runs: Sequence[Callable[[], None]], repeats: int) -> list[list[float]]:
    times: list[list[float]] = [[] for _ in runs]
    for repeat in range(-WARM_UP, max(repeats, 2)):
        for i, run in enumerate(runs):
            start = time.perf_counter()
            run()
            if repeat >= 0:
                times[i].append((time.perf_counter() - start) * 1e3)
    return times


def _pytorch(network: nn.Module, inputs: Tensor) -> Callable[[], None]:
    def run() -> None:
        network(inputs)
        if inputs.is_cuda:
            torch.cuda.synchronize(inputs.device)

    return run


def _onnxruntime(model: bytes, inputs: Tensor, threads: int) -> Callable[[], None]:
    runtime = need("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry(
        "session.force_spinning_stop", "1"
    )  # its idle threads would slow the next candidate
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: inputs.cpu().numpy()}

    def run() -> None:
        session.run(None, feed)

    return run


@contextmanager
def _evaluation(candidates: Sequence[tuple[nn.Module, Tensor]], threads: int) -> Iterator[None]:
    """Evaluation mode, no gradients and `threads` threads; afterwards everything is as before."""
    modes = [(module, module.training) for network, _ in candidates for module in network.modules()]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    for network, _ in candidates:
        network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)
        for module, mode in modes:
            module.training = mode
