"""Every built-in network and some of torchvision as ONNX files, against PyTorch; and what a cut brings in onnxruntime.

    python benchmarks/export.py [NAME ...]

Weights are random; batch normalisations have the statistics of random inputs, so that signals neither vanish nor grow.
"cut" has every second unit of every group removed, "masked" 90 % of each weight. A difference is the largest one of any
output, as a share of the largest output of its batch; batches of 1 and 8 are compared. Latency is the median of 50 runs
on one thread, dense and cut taking turns.
"""

from __future__ import annotations

import sys
import time

import torch
from torch import Tensor, nn

from prunecli import measure, models, surgery
from prunecli.errors import PruneError
from prunecli.exporting import Form, to_onnx, verify

TORCHVISION = ("resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "densenet121", "vit_b_16", "swin_t", "convnext_tiny")
FORMS = {"fp32": Form(), "fp16": Form(fp16=True), "sparse": Form(sparse=True)}


def network(name: str, shape: tuple[int, ...]) -> nn.Module:
    """A network whose batch normalisations have seen inputs."""
    torch.manual_seed(0)
    built = models.build(name, {})
    norms = [m for m in built.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for module in built.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():  # a head that starts at zero hides everything
            nn.init.normal_(module.weight, std=0.02)
    for norm in norms:
        norm.momentum = None  # a plain average over all batches
    if norms:
        with torch.no_grad():
            built.train()(torch.randn(8, *shape))
    return built.eval()


def cut(built: nn.Module, example: Tensor) -> nn.Module:
    """Every second unit of every group that can lose single units."""
    structure = surgery.trace(built, example[:1])
    surgery.apply(
        built, structure, surgery.Plan({g.key: list(range(0, g.units, 2)) for g in structure.groups if g.prunable})
    )
    return built


def mask(built: nn.Module) -> nn.Module:
    """The smallest 90 % of each weight at zero."""
    with torch.no_grad():
        for weight in built.parameters():
            if weight.dim() > 1:
                weight *= weight.abs() > weight.abs().flatten().kthvalue(round(0.9 * weight.numel())).values
    return built


def row(title: str, built: nn.Module, example: Tensor, forms: tuple[str, ...]) -> None:
    """Print the size and largest difference of each form."""
    cells = []
    for form in forms:
        start = time.perf_counter()
        try:
            model = to_onnx(built, example, {}, FORMS[form])
            found = verify(model, built, [example[:1], example], fp16=FORMS[form].fp16)
            took = time.perf_counter() - start
            cells.append(f"{form}: {found.relative:.1e}, {len(model) / 1e6:7.2f} MB, {took:5.1f} s")
        except PruneError as error:
            cells.append(f"{form}: {error.message}")
    print(f"{title:32}", " | ".join(cells), flush=True)


def latencies(example: Tensor) -> None:
    """Print what cutting every second unit of a ResNet-20 brings."""
    dense, half = network("resnet20", (3, 32, 32)), cut(network("resnet20", (3, 32, 32)), example)
    timings = measure.latency([(dense, example[:1]), (half, example[:1])], (1, 32))
    for before, after in zip(*timings, strict=True):
        times = f"dense {before.median_ms:.3f} ms, cut {after.median_ms:.3f} ms"
        faster = before.median_ms / after.median_ms
        print(f"resnet20, {before.backend}, batch {before.batch}: {times}, {faster:.2f} times as fast")


def main() -> None:
    names = sys.argv[1:] or [*models.names(), *(f"torchvision:{name}" for name in TORCHVISION)]
    for name in names:
        shape = models.input_shape(name, {}) or (3, 224, 224)
        example = torch.randn(8, *shape, generator=torch.Generator().manual_seed(1))
        row(name, network(name, shape), example, ("fp32", "fp16"))
        if ":" not in name and shape[-1] <= 64:
            row(f"{name} cut", cut(network(name, shape), example), example, ("fp32",))
            row(f"{name} masked", mask(network(name, shape)), example, ("fp32", "sparse"))
    latencies(torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1)))


if __name__ == "__main__":
    main()
