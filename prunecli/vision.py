"""torchvision, imported so that it also works beside a torch that its compiled operators were not built for.

A torchvision wheel built against CUDA torch fails to import beside a CPU torch with `operator torchvision::nms does
not exist`. Its models, datasets and transforms need no compiled operator, so the missing operators are declared first:
`nms` gets an implementation in plain PyTorch, `qnms` (quantised boxes) only its schema. Where the compiled operators
load, nothing is replaced.

    from prunecli.vision import torchvision
"""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path

import torch
from torch import Tensor
from torch.library import Library

from prunecli.errors import PruneError


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression: the indices of the boxes that stay, by falling score.

    `boxes` [N, 4] are corners (x1, y1, x2, y2), `scores` [N]. The best box stays and removes every box whose
    intersection over union with it is *greater* than `iou_threshold`; then the best of the rest, and so on. Equal
    scores keep their order. Boxes without area overlap nothing.
    """
    x1, y1, x2, y2 = boxes.to(torch.promote_types(boxes.dtype, torch.float32)).unbind(1)
    area = (x2 - x1) * (y2 - y1)
    left = torch.sort(scores, descending=True, stable=True).indices
    kept = []
    while left.numel():
        best, left = left[0], left[1:]
        kept.append(best)
        width = torch.minimum(x2[best], x2[left]) - torch.maximum(x1[best], x1[left])
        height = torch.minimum(y2[best], y2[left]) - torch.maximum(y1[best], y1[left])
        both = width.clamp(min=0) * height.clamp(min=0)
        removed = both / (area[best] + area[left] - both) > iou_threshold
        left = left[~removed]
    return torch.stack(kept) if kept else left


def load_compiled_operators(folder: Path) -> bool:
    """Whether torchvision's compiled operators, a library `_C*` in its `folder`, fit this torch. Loads them if so."""
    for library in sorted(folder.glob("_C*")):
        with contextlib.suppress(OSError):
            torch.ops.load_library(str(library))
    return hasattr(torch.ops.torchvision, "nms")


_spec = importlib.util.find_spec("torchvision")
if _spec is None or _spec.origin is None:
    raise PruneError("torchvision is not installed", "install it with: pip install torchvision")
_compiled = load_compiled_operators(Path(_spec.origin).parent)
if not _compiled:
    # Kept in the module: operators live as long as their library object.
    _library = Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _schema = f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        _library.define(_schema)
    _library.impl("nms", nms, "CompositeExplicitAutograd")

import torchvision  # noqa: E402  # only now that every operator is declared

if not _compiled:
    # torchvision refuses to call even a declared operator unless its own library was loaded.
    torchvision.ops.boxes._assert_has_ops = lambda: None

__all__ = ["load_compiled_operators", "nms", "torchvision"]
