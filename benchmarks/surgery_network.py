"""What benchmarks/surgery.py does with one network, in a process of its own: prints one JSON object a finished part.

    python benchmarks/surgery_network.py NAME PART ...

Parts are `time`, `right`, `export` and `memory`, see benchmarks/surgery.py.
"""

from __future__ import annotations

import copy
import gc
import json
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peer
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import prunecli
from prunecli import checkpoint as checkpoints
from prunecli import measure, models, surgery
from prunecli.allocate import widths
from prunecli.allocate.counts import keep_floor
from prunecli.checkpoint import Checkpoint
from prunecli.criteria import CRITERIA
from prunecli.errors import PruneError
from prunecli.exporting import to_onnx, verify
from prunecli.methods.groups import score
from prunecli.sidecar import Arch, Sidecar, Surgery
from prunecli.surgery import Plan, Structure

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import oracle  # the two properties are those of the tests
import zoo

Cut = Callable[[nn.Module, Tensor], object]
LIMIT = 60  # seconds that torch-pruning may take for one network
LARGE = 4e8  # parameters; above, float64 would take too much memory
SIDES = {"inception_v3": 299, "vit": 224, "maxvit": 224}  # of images, where the network wants this one


def build(name: str) -> nn.Module:
    """The network with random weights, in eval mode."""
    torch.manual_seed(0)
    return models.build(f"torchvision:{name}", {}).eval()


def images(name: str, side: int, batch: int = 2) -> Tensor:
    """Images of this many pixels, or of as many as the network insists on."""
    side = next((fixed for start, fixed in SIDES.items() if name.startswith(start)), side)
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def timing(name: str, repeats: int = 3) -> Iterator[dict[str, Any]]:
    """Seconds to trace, plan and cut, in turn with torch-pruning; in place of its time, why it failed."""
    network = build(name)
    ours, theirs, problem = list[float](), list[float](), ""
    for _ in range(repeats):
        ours.append(seconds(prune, network, images(name, 224)))
        yield {"ours": sorted(ours)[len(ours) // 2]}
        if not problem and sum(theirs) < LIMIT:
            try:
                theirs.append(seconds(limited_peer, network, images(name, 224, batch=1)))
            except Exception as error:  # of any kind
                problem = said(error)
            yield {"theirs": problem or sorted(theirs)[len(theirs) // 2]}


def seconds(cut: Cut, network: nn.Module, example: Tensor) -> float:
    """Seconds of a cut of a copy, which is made before."""
    network = copy.deepcopy(network)
    gc.collect()
    start = time.perf_counter()
    cut(network, example)
    return time.perf_counter() - start


def prune(network: nn.Module, example: Tensor) -> Surgery:
    """Half of every prunable group, by the L2 norm of what makes its units, as `prunecli prune` does it."""
    structure = surgery.trace(network, example)
    criterion = CRITERIA["l2"]
    found = {g.key: score(network, g, criterion, criterion.score, ranked=False) for g in structure.groups if g.prunable}
    plan = Plan({key: widths.select(v, max(1, keep_floor(len(v), 0.5))) for key, v in found.items() if v})
    return surgery.apply(network, structure, plan)


def limited_peer(network: nn.Module, example: Tensor) -> None:
    """torch-pruning's cut, stopped with a TimeoutError after `LIMIT` seconds."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"not finished in {LIMIT} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        peer.cut(network, example)
    finally:
        signal.alarm(0)


def right(name: str) -> Iterator[dict[str, Any]]:
    """Both properties of both cuts, and ours after save and load: differences in eval and train mode."""
    whole, example = build(name), images(name, 64)
    large = sum(parameter.numel() for parameter in whole.parameters()) > LARGE
    dtype, tolerance = (torch.float32, 1e-4) if large else (torch.float64, oracle.TOLERANCE)
    whole, example = oracle.randomise(whole, dtype=dtype), example.to(dtype)
    for module in whole.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.0  # so that a run in train mode leaves no trace
    yield {"tolerance": tolerance}
    yield {"our_cut": dict(our_properties(name, whole, example, tolerance))}
    yield {"their_cut": dict(their_properties(whole, example))}


def our_properties(name: str, whole: nn.Module, example: Tensor, tolerance: float) -> Iterator[tuple[str, Any]]:
    """Layer and group norms are let run over what the cut leaves; the groups that this takes must say so themselves."""
    structure = surgery.trace(whole, example)
    plan = oracle.half(structure)
    keep = structure.keep_masks(plan)
    cut = copy.deepcopy(whole)
    record = surgery.apply(cut, structure, plan)
    yield "groups", f"{len(plan.kept)} of {len(structure.groups)}"
    yield "frozen", structure.frozen
    yield "loaded", differences(loaded(name, cut, record, example), cut, example)
    zeroed = oracle.mask(copy.deepcopy(whole), structure, plan)
    oracle.zero(zeroed, structure, plan, ("out", "other"))  # queries and keys meet in products, which no weight reads
    changed = differences(zeroed, cut, example, modes=(False,))[0] > tolerance
    yield "changes", changing_groups(whole, structure, changed)
    scaled_alike(name, zeroed, cut)
    yield "masked", differences(oracle.over_what_is_left(zeroed, keep), cut, example)
    del zeroed
    zeroed = copy.deepcopy(whole)
    oracle.zero(zeroed, structure, plan, ("out", "norm", "other"))
    scaled_alike(name, zeroed, cut)
    yield "dead", differences(oracle.over_what_is_left(zeroed, keep), cut, example)


def scaled_alike(name: str, network: nn.Module, cut: nn.Module) -> None:
    """Let attention that divides by the root of the channels that it finds divide by that of the cut network's."""
    if name in ("swin_t", "swin_s", "swin_b"):
        zoo.scaled_by_its_channels(network, cut)
    for layer, module in cut.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            attention = network.get_submodule(layer)
            widths = [each.embed_dim // each.num_heads for each in (attention, module)]
            for tensor in (attention.in_proj_weight, attention.in_proj_bias):
                tensor.data[: len(tensor) // 3] *= (widths[0] / widths[1]) ** 0.5


def changing_groups(network: nn.Module, structure: Structure, changed: bool) -> str:
    """How many groups are said to change the function; "wrong" unless norms run over them and it does change."""
    claimed = {group.key for group in structure.groups if group.changes_function}
    modules = {name for name, m in network.named_modules() if isinstance(m, (nn.LayerNorm, nn.GroupNorm))}
    normed = {g.key for g in structure.groups if any(m.tensor.rpartition(".")[0] in modules for m in g.members)}
    return str(len(claimed)) if claimed == normed and changed == bool(claimed) else f"wrong: {sorted(claimed ^ normed)}"


def loaded(name: str, cut: nn.Module, record: Surgery, example: Tensor) -> nn.Module:
    """The cut network saved and loaded."""
    cost = measure.cost(cut, example[:1])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cut.safetensors"
        sidecar = Sidecar(arch=Arch(name=f"torchvision:{name}"), cost=cost, surgery=record)
        checkpoints.save(Checkpoint(dict(cut.state_dict()), sidecar), path)
        network, _ = prunecli.load(path)
    for module in network.modules():
        if isinstance(getattr(module, "p", None), float):  # dropout, stochastic depth
            module.p = 0.0
    return network


def their_properties(whole: nn.Module, example: Tensor) -> Iterator[tuple[str, Any]]:
    """The same of torch-pruning's cut; `runs` says what goes wrong in eval and in train mode."""
    pruned = copy.deepcopy(whole).eval()
    try:
        with peer.followed():
            limited_peer(pruned, example[:1])
    except Exception as error:  # of any kind
        yield "problem", said(error)
        return
    yield "runs", [failure(pruned, example, train) for train in (False, True)]
    keep, reads = peer.keep_masks(whole, pruned), peer.reads(whole)
    for title, axes in (("masked", keep.keys() & reads), ("dead", keep.keys() - reads)):
        zeroed = copy.deepcopy(whole)
        tensors = zeroed.state_dict(keep_vars=True)
        for tensor, axis in axes:
            tensors[tensor].data.index_fill_(axis, (~keep[tensor, axis]).nonzero()[:, 0], 0.0)
        yield title, differences(oracle.over_what_is_left(zeroed, keep), pruned, example)


def failure(network: nn.Module, example: Tensor, train: bool) -> str:
    """What goes wrong in a run of the network, empty if nothing does."""
    try:
        with torch.no_grad():
            network.train(train)(example)
    except Exception as error:  # of any kind
        return said(error)
    return ""


def differences(
    first: nn.Module, second: nn.Module, example: Tensor, modes: tuple[bool, ...] = (False, True)
) -> list[float]:
    """Largest difference of the outputs as a share of the largest output, in eval and train mode.

    It is 1e9 where a network fails, and where outputs are zero or not finite, which would show nothing.
    """
    result = []
    for train in modes:
        try:
            with torch.no_grad():
                a, b = (tree_leaves(network.train(train)(example)) for network in (first, second))
        except (RuntimeError, ValueError):
            result.append(1e9)
            continue
        pairs = zip(a, b, strict=True)
        shares = [float((x - y).abs().max() / x.abs().max()) if x.shape == y.shape else 1e9 for x, y in pairs]
        result.append(max(share if share == share else 1e9 for share in shares))
    return result


def said(error: Exception) -> str:
    """An error in one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:90]}"


def exporting(name: str) -> Iterator[dict[str, Any]]:
    """The cut network as an ONNX file, against PyTorch: the relative difference, or why it cannot be one."""
    network, example = build(name), images(name, 224)
    prune(network, example)
    try:
        found = verify(to_onnx(network, example, {}), network, [example], fp16=False)
        yield {"onnx": found.relative}
    except PruneError as error:
        yield {"onnx": error.message}


def memory(name: str) -> Iterator[dict[str, Any]]:
    """Peak memory of a trace beyond what the process had before, in GB, with weights and without any."""
    example = images(name, 224)
    for title in ("without weights", "with weights"):
        with torch.device("meta" if title == "without weights" else "cpu"):
            network = build(name)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = resident("VmRSS")
        surgery.trace(network, example)
        size = sum(tensor.nbytes for tensor in network.state_dict().values()) / 1e9
        yield {title: {"before": before, "beyond": resident("VmHWM") - before, "weights": size}}


def resident(field: str) -> float:
    """A field of the process's status, in GB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith(field))


PARTS = {"time": timing, "right": right, "export": exporting, "memory": memory}


def main() -> None:
    """Run the parts; imports and what PyTorch prepares for the first trace are left out of all times."""
    name, *parts = sys.argv[1:]
    warnings.simplefilter("ignore")
    for cut in (prune, limited_peer):
        cut(build("squeezenet1_1"), torch.zeros(2, 3, 64, 64))
    for part in parts:
        for result in PARTS[part](name):
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
