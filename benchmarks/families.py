"""What surgery can cut of whole families of networks, and whether the cut is right.

    python benchmarks/families.py [--torchvision] [--onnx] [--memory GB] [--seconds N] [FAMILY | NAME ...]

Small members of timm's families or, with --torchvision, all classification and segmentation networks of torchvision,
some for video, and the backbones inside its detection networks. Each has random weights and runs in a process of its
own. A random half of the units of every prunable group goes. Both properties, see tests/zoo.py, are checked in eval and
train mode, in float64 to 1e-9 of the largest output; large networks, and those with depthwise convolutions, which take
minutes in float64, in float32 to 1e-4, and in float64 only if they fail that. Cutting equals masking, and exactly the
groups of which something averages over the cut say so ("change function"); dead units change nothing. The cut network
is saved and loaded and, with --onnx, exported and run by onnxruntime. Without names the table goes to
benchmarks/results/families.md or torchvision.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
HEAD = (
    "family",
    "network",
    "groups cut",
    "parameters",
    "MACs",
    "change function",
    "trace",
    "precision",
    "verdict",
    "left alone, and why",
)
SIDE = 64  # of images, where a network takes any: large ones show nothing that small ones do not
LARGE, MANY = 5e7, 32  # parameters, groups of a convolution: above, float64 takes minutes
TOO_LARGE = 4e8  # parameters: above, float64 takes too much memory
SIDES = {
    "inception_v3": 299,
    "maxvit_t": 224,
    "vit_h_14": 56,
    "ssd300_vgg16": 300,
    "inception_resnet_v2": 96,
    "inception_v4": 96,
}
FRAMES = dict.fromkeys(("r3d_18", "mc3_18", "r2plus1d_18"), (4, 32, 32))
ARGS: dict[str, dict[str, Any]] = {  # smaller images, and fewer blocks that are like the others
    "beit_base_patch16_224": {"depth": 3, "img_size": 64},
    "beitv2_base_patch16_224": {"depth": 3, "img_size": 64},
    "cait_xxs24_224": {"depth": 6, "img_size": 64},
    "mixer_s32_224": {"img_size": 64},
    "gmixer_12_224": {"img_size": 64},
    "resmlp_12_224": {"img_size": 64},
    "gmlp_ti16_224": {"img_size": 64},
    "vit_tiny_patch16_224": {"img_size": 64},
    "vit_relpos_small_patch16_224": {"img_size": 64},
    "deit_tiny_patch16_224": {"img_size": 64},
    "deit_tiny_distilled_patch16_224": {"img_size": 64},
    "deit3_small_patch16_224": {"img_size": 64},
    "vit_b_16": {"image_size": 64},
    "vit_b_32": {"image_size": 64},
    "vit_l_16": {"image_size": 64},
    "vit_l_32": {"image_size": 64},
    "vit_h_14": {"image_size": 56},
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


def torchvision_families() -> dict[str, str]:
    """The networks of torchvision by family."""
    from prunecli.vision import torchvision

    models = torchvision.models
    families: dict[str, list[str]] = {}
    for name in models.list_models(module=models):
        family = re.match("wide_resnet|resnext|[a-z]+", name)
        families.setdefault(family[0] if family else name, []).append(name)
    families["segmentation"] = models.list_models(module=models.segmentation)
    families["video"] = ["r3d_18", "mc3_18", "r2plus1d_18"]
    families["detection (backbone)"] = models.list_models(module=models.detection)
    return {family: " ".join(names) for family, names in families.items()}


def build(name: str) -> tuple[Any, tuple[Any, ...]]:
    """The network, or the backbone of a detection network, and inputs for it."""
    import torch

    from prunecli import models

    torch.manual_seed(0)
    args, side = ARGS.get(name.partition(":")[2], {}), SIDES.get(name.partition(":")[2], SIDE)
    network: Any = models.build(name, args).eval()
    if name.startswith("timm:"):
        config = network.pretrained_cfg
        _, *size = config["input_size"]
        sides = size if config["fixed_input_size"] and "img_size" not in args else (side, side)
    else:
        network = getattr(network, "backbone", network) if hasattr(network, "transform") else network
        sides = FRAMES.get(name.partition(":")[2], (side, side))
    return network, (torch.randn(2, 3, *sides),)


def examine(name: str, onnx: bool) -> Iterator[tuple[str, Any]]:
    """What is found of one network, key by key, "step" before each that may fail; the first that fails raises."""
    sys.path.insert(0, str(ROOT / "tests"))
    import oracle
    import torch

    from prunecli import measure, surgery

    network, inputs = build(name)

    yield "step", "trace"
    begin = time.perf_counter()
    structure = surgery.trace(network, *inputs)
    yield "trace", time.perf_counter() - begin
    changing = sum(group.changes_function is not None for group in structure.groups)
    yield "groups", [sum(group.prunable for group in structure.groups), len(structure.groups), changing]
    yield "frozen", structure.frozen
    yield "step", "cut"
    plan = oracle.half(structure)
    cut = copy.deepcopy(network)
    surgery.apply(cut, structure, plan)
    costs = [measure.cost(each, inputs[0]) for each in (network, cut)]
    for key, index in (("parameters", 0), ("macs", 1)):
        before, after = (_totals(each, cost)[index] for each, cost in zip((network, cut), costs, strict=True))
        yield key, 1 - after / before
    parameters = sum(parameter.numel() for parameter in network.parameters())
    slow = parameters > LARGE or any(getattr(module, "groups", 1) > MANY for module in network.modules())
    for dtype in (torch.float32, torch.float64) if slow else (torch.float64,):
        yield "precision", str(dtype).removeprefix("torch.")
        try:
            yield from properties(name.partition(":")[2], network, inputs[0].to(dtype), dtype)
            break
        except AssertionError:
            if dtype is torch.float64 or parameters > TOO_LARGE:
                raise
    if onnx:
        yield "step", "ONNX"
        from prunecli.exporting import to_onnx, verify

        yield "onnx", verify(to_onnx(cut, inputs[0], {}), cut, [inputs[0][:1], inputs[0]]).relative


def properties(short: str, network: Any, images: Any, dtype: Any) -> Iterator[tuple[str, Any]]:
    """Both properties with random weights of this type, and the same network after it was saved and loaded."""
    import oracle
    import zoo

    from prunecli import surgery

    network = oracle.randomise(network, dtype=dtype)
    structure = surgery.trace(network, images)
    plan = oracle.half(structure)
    yield "step", "cut against masked"
    prepare = zoo.scaled_by_its_channels if short in ("swin_t", "swin_s", "swin_b") else None
    zoo.check_masking(network, structure, plan, (images,), prepare)
    yield "step", "dead units"
    zoo.check_dead(network, structure, plan, (images,))
    yield "step", "save and load"
    oracle.check_saved(network, (images,), dtype=dtype)


def _totals(network: Any, cost: Any) -> tuple[int, int]:
    """Parameters and MACs."""
    sizes = {name: tensor.numel() for name, tensor in network.named_parameters()}
    return sum(sizes.values()), cost.other_macs + sum(n * sizes[name] for name, n in cost.positions.items())


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
        found.get("precision", "-"),
        found["verdict"],
        left,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--torchvision", action="store_true", help="its networks in place of timm's")
    parser.add_argument("--onnx", action="store_true", help="export the cut network, too")
    parser.add_argument("--memory", type=float, default=20.0, metavar="GB", help="address space of one process")
    parser.add_argument("--seconds", type=float, default=1800.0, metavar="N", help="time for one network")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.names[0], options.onnx, options.memory)
        return
    library, families = ("torchvision", torchvision_families()) if options.torchvision else ("timm", FAMILIES)
    chosen = [(family, name) for family, names in families.items() for name in names.split()]
    if options.names:
        known = {name for pair in chosen for name in pair}
        chosen = [pair for pair in chosen if {*pair} & {*options.names}]
        chosen += [("", name) for name in options.names if name not in known]
    lines = [f"| {' | '.join(cells)} |" for cells in (HEAD, ("---",) * len(HEAD))]
    for family, name in chosen:
        lines.append(f"| {' | '.join(row(family, name, supervise(f'{library}:{name}', options)))} |")
        print(lines[-1], flush=True)
    if not options.names:
        RESULTS.mkdir(exist_ok=True)
        command = f"python benchmarks/families.py{' --torchvision' * options.torchvision}{' --onnx' * options.onnx}"
        table = RESULTS / ("torchvision.md" if options.torchvision else "families.md")
        table.write_text(f"`{command}`\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
