"""Classification: cross-entropy, top-1 accuracy."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

AUXILIARY = 0.3  # weight of auxiliary classifiers (Szegedy et al. 2015)


class Classification:
    """Outputs are logits [N, classes], or a tuple of logits whose first is the main head; targets int64 [N]."""

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Cross-entropy, plus 0.3 times that of every auxiliary head."""
        main, *auxiliary = heads(output)
        loss = F.cross_entropy(main, target)
        for head in auxiliary:
            loss = loss + AUXILIARY * F.cross_entropy(head, target)
        return loss

    def totals(self, output: Any, target: Tensor) -> Tensor:
        """[summed loss, correct, examples] of a batch, float64."""
        logits = heads(output)[0].float()
        loss = F.cross_entropy(logits, target, reduction="sum").double()
        correct = (logits.argmax(1) == target).sum().double()
        return torch.stack([loss, correct, torch.full_like(loss, len(target))])

    def scores(self, totals: list[float]) -> dict[str, float]:
        """`loss` (mean) and `top1` (share of correct examples, 0 to 1)."""
        loss, correct, examples = totals
        return {"loss": loss / max(examples, 1), "top1": correct / max(examples, 1)}

    def better(self, scores: dict[str, float], than: dict[str, float]) -> bool:
        """Whether `scores` beat those of another epoch: by top-1, then by loss."""
        return (scores["top1"], -scores["loss"]) > (than["top1"], -than["loss"])


def heads(output: Any) -> list[Tensor]:
    """The logits of every head: torchvision's GoogLeNet and Inception return named tuples in train mode."""
    if isinstance(output, Tensor):
        return [output]
    return [head for head in output if head is not None]
