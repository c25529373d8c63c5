"""Small members of the families of timm: what surgery can cut of each, and whether the cut is right.

    python benchmarks/families.py [--onnx] [--memory GB] [--seconds N] [FAMILY | NAME ...]

Each network has random weights and runs in a process of its own. A random half of the units of every prunable group
goes; the rest runs in eval and train mode, is saved, loaded and, with --onnx, exported and run by onnxruntime. Both
properties of tests/oracle.py are checked in float64: removing dead units changes nothing, cutting equals masking. Where
a cut changes what a layer or group norm averages over, they are checked with these norms replaced by their scale and
shift; where it changes other averages, only that the network runs. Without names the table goes to
benchmarks/results/families.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TABLE = Path(__file__).parent / "results" / "families.md"
HEAD = (
    "family",
    "network",
    "groups cut",
    "parameters",
    "MACs",
    "change function",
    "trace",
    "verdict",
    "left alone, and why",
)
NORMS = ("layer_norm", "native_layer_norm", "group_norm", "native_group_norm", "rms_norm", "batch_norm")
SIDE = 96  # of the images, where a network takes any: large ones show nothing that small ones do not
ARGS: dict[str, dict[str, Any]] = {  # fewer blocks that are like the others
    "beit_base_patch16_224": {"depth": 3},
    "beitv2_base_patch16_224": {"depth": 3},
    "cait_xxs24_224": {"depth": 6},
}
FAMILIES = {
    "resnet": "resnet10t resnet18 resnet26d resnetblur50 resnext26ts resnest14d",
    "resnetv2": "resnetv2_18 resnetv2_50 resnetv2_50x1_bit resnetv2_50d_gn",
    "regnet": "regnetx_002 regnety_002 regnetz_005",
    "res2net": "res2net50_14w_8s res2next50",
    "dla": "dla34 dla46x_c dla60_res2net",
    "hrnet": "hrnet_w18_small",
    "vovnet": "ese_vovnet19b_slim_dw vovnet39a",
    "ghostnet": "ghostnet_050 ghostnetv2_100 ghostnetv3_050",
    "mobilenetv3": "mobilenetv3_small_050 lcnet_035",
    "mobilenetv4": "mobilenetv4_conv_small_035 mobilenetv4_hybrid_medium",
    "efficientnet": "efficientnet_b0 tf_efficientnet_b0 efficientnet_lite0 mixnet_s",
    "efficientnetv2": "tf_efficientnetv2_b0",
    "convnext": "convnext_atto convnextv2_atto",
    "nfnet": "nfnet_l0 dm_nfnet_f0 nf_regnet_b0 eca_nfnet_l0 nf_resnet26",
    "inception": "inception_v4 inception_resnet_v2",
    "xception": "legacy_xception xception41 xception41p",
    "nasnet": "nasnetalarge pnasnet5large",
    "densenet": "densenet121 densenetblur121d",
    "senet": "legacy_seresnet18 seresnet18 seresnext26t_32x4d",
    "skresnet": "skresnet18 skresnext50_32x4d",
    "ecaresnet": "ecaresnet26t",
    "repvgg": "repvgg_a0 mobileone_s0",
    "mlp-mixer": "mixer_s32_224 gmixer_12_224 resmlp_12_224 gmlp_ti16_224",
    "vit": "vit_tiny_patch16_224 vit_relpos_small_patch16_224",
    "deit": "deit_tiny_patch16_224 deit_tiny_distilled_patch16_224 deit3_small_patch16_224",
    "swin": "swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_ns_224",
    "beit": "beit_base_patch16_224 beitv2_base_patch16_224",
    "cait": "cait_xxs24_224",
    "levit": "levit_128s levit_conv_128s",
    "poolformer": "poolformer_s12 poolformerv2_s12",
    "mobilevit": "mobilevit_xxs mobilevitv2_050",
    "efficientformer": "efficientformer_l1 efficientformerv2_s0",
    "coat": "coat_lite_tiny coat_tiny",
    "edgenext": "edgenext_xx_small",
}


def examine(name: str, onnx: bool) -> Iterator[tuple[str, Any]]:
    """What is found of one network, key by key, "step" before each that may fail; the first that fails raises."""
    sys.path.insert(0, str(ROOT / "tests"))
    import oracle
    import torch

    from prunecli import measure, models, surgery

    args = ARGS.get(name, {})
    torch.manual_seed(0)
    network: Any = models.build(f"timm:{name}", args).eval()
    config = network.pretrained_cfg
    channels, *size = config["input_size"]
    inputs = (torch.randn(2, channels, *(size if config["fixed_input_size"] else (SIDE, SIDE))),)

    yield "step", "trace"
    begin = time.perf_counter()
    structure = surgery.trace(network, *inputs)
    yield "trace", time.perf_counter() - begin
    changing = {group.key: group.changes_function for group in structure.groups if group.changes_function}
    yield "groups", [sum(group.prunable for group in structure.groups), len(structure.groups), len(changing)]
    yield "frozen", structure.frozen
    yield "step", "cut"
    plan = oracle.half(structure)
    cut = copy.deepcopy(network)
    record = surgery.apply(cut, structure, plan)
    costs = [measure.cost(each, inputs[0]) for each in (network, cut)]
    for key, index in (("parameters", 0), ("macs", 1)):
        before, after = (_totals(each, cost)[index] for each, cost in zip((network, cut), costs, strict=True))
        yield key, 1 - after / before
    with torch.no_grad():
        for train in (False, True):
            for first, second in zip(*(_outputs(each.train(train), inputs) for each in (network, cut)), strict=True):
                assert first.shape == second.shape, "the cut network's output has another shape"
                assert bool(second.isfinite().all()), "the cut network's output is not finite"
    yield "step", "save and load"
    _check_saved(f"timm:{name}", args, cut.eval(), record, costs[0], inputs)
    exact = surgery.Plan({key: kept for key, kept in plan.kept.items() if key not in changing})
    other = {key for key, why in changing.items() if not why.startswith(NORMS)}
    scaled = surgery.Plan({key: kept for key, kept in plan.kept.items() if key not in other})
    for check in (oracle.check_dead, oracle.check_masking):
        yield "step", check.__name__
        check(network, inputs, exact)
        if scaled != exact:
            yield "step", f"{check.__name__} with norms that scale alone"
            with oracle.ScaledNorms():
                check(network, inputs, scaled)
    if onnx:
        yield "step", "ONNX"
        from prunecli.exporting import to_onnx, verify

        verify(to_onnx(cut, inputs[0], {}), cut, [inputs[0][:1], inputs[0]])


def _totals(network: Any, cost: Any) -> tuple[int, int]:
    """Parameters and MACs."""
    sizes = {name: tensor.numel() for name, tensor in network.named_parameters()}
    return sum(sizes.values()), cost.other_macs + sum(n * sizes[name] for name, n in cost.positions.items())


def _outputs(network: Any, inputs: tuple[Any, ...]) -> list[Any]:
    from torch.utils._pytree import tree_leaves

    return tree_leaves(copy.deepcopy(network)(*inputs))


def _check_saved(name: str, args: dict[str, Any], cut: Any, record: Any, cost: Any, inputs: tuple[Any, ...]) -> None:
    import torch

    from prunecli import checkpoint as checkpoints
    from prunecli import load
    from prunecli.sidecar import Arch, Sidecar

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "cut.safetensors"
        sidecar = Sidecar(arch=Arch(name=name, args=args), cost=cost, surgery=record)
        checkpoints.save(checkpoints.Checkpoint(cut.state_dict(), sidecar), path)
        loaded, _ = load(path)
        for first, second in zip(_outputs(cut, inputs), _outputs(loaded, inputs), strict=True):
            assert torch.equal(first, second), "after saving and loading, the output differs"


def child(name: str, onnx: bool, gigabytes: float) -> None:
    """Examine one network, with a limit of memory, and print what was found as one line of JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (int(gigabytes * 2**30), resource.RLIM_INFINITY))
    found: dict[str, Any] = {}
    try:
        found.update(examine(name, onnx))
        found["verdict"] = "right" if found["groups"][0] else "nothing to cut"
    except Exception as error:  # whatever it is, it is the result
        found["verdict"] = f"{found.get('step')}: {type(error).__name__}: {error}".partition("\n")[0][:300]
    print(json.dumps(found))


def supervise(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The findings of a process that examines one network."""
    command = [sys.executable, __file__, "--child", name, "--memory", str(options.memory)]
    try:
        done = subprocess.run(
            command + ["--onnx"] * options.onnx, capture_output=True, text=True, timeout=options.seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return {"verdict": f"not done in {options.seconds} s"}
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {"verdict": f"the process ended with {done.returncode}: {done.stderr.strip()[-200:]}"}
    return found


def row(family: str, name: str, found: dict[str, Any]) -> tuple[str, ...]:
    """The cells of one network."""
    cut, total, changing = found.get("groups", (0, 0, 0))
    cell: Callable[[str], str] = lambda key: f"{found[key]:.0%}" if key in found else "-"  # noqa: E731
    reasons: dict[str, list[str]] = {}
    for layer, reason in found.get("frozen", {}).items():
        reasons.setdefault(reason, []).append(layer)
    why = [
        f"{layers[0]}{f' and {len(layers) - 1} more' if layers[1:] else ''}: {reason}"
        for reason, layers in sorted(reasons.items(), key=lambda item: -len(item[1]))
        if reason != "its channels are outputs of the network"
    ]
    left = "; ".join(why[:3]) + (f"; {len(why) - 3} more reasons" if why[3:] else "")
    seconds = f"{found['trace']:.1f} s" if "trace" in found else "-"
    return (
        family,
        name,
        f"{cut} of {total}",
        cell("parameters"),
        cell("macs"),
        str(changing or ""),
        seconds,
        found["verdict"],
        left,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--onnx", action="store_true", help="export the cut network, too")
    parser.add_argument("--memory", type=float, default=12.0, metavar="GB", help="address space of one process")
    parser.add_argument("--seconds", type=float, default=600.0, metavar="N", help="time for one network")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.names[0], options.onnx, options.memory)
        return
    chosen = [(f, n) for f, names in FAMILIES.items() for n in names.split() if {f, n} & {*options.names}]
    known = {n for f, names in FAMILIES.items() for n in (f, *names.split())}
    chosen += [("", name) for name in options.names if name not in known]
    if not options.names:
        chosen = [(family, name) for family, names in FAMILIES.items() for name in names.split()]
    lines = [f"| {' | '.join(cells)} |" for cells in (HEAD, ("---",) * len(HEAD))]
    for family, name in chosen:
        lines.append(f"| {' | '.join(row(family, name, supervise(name, options)))} |")
        print(lines[-1], flush=True)
    if not options.names:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
