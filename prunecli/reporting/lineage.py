"""Where a checkpoint comes from: the steps of its history, with the options that matter, and its parents by hash."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from prunecli.sidecar import Sidecar, Step

# What a line of text shows of a step, in this order; between the two, what was set of the method's own settings. JSON
# has every option.
WHAT = ("arch", "preset", "method", "sparsity", "ratios", "max_macs", "max_params")
HOW = (
    "scope", "round_to", "max_layer_sparsity", "heads", "compensate", "recalibrate", "rounds", "finetune_epochs",
    "regime", "shape", "budget", "init", "epochs", "optimizer", "lr", "clip_grad", "schedule", "seed",
)  # fmt: skip
USUAL = {
    "round_to": 1, "rounds": 1, "finetune_epochs": 0, "clip_grad": 0, "schedule": "constant", "seed": 0,
    "shape": "same",
}  # fmt: skip

SHA256 = re.compile("[0-9a-f]{64}")

Identity = tuple[str | None, int]


@dataclass(frozen=True)
class Link:
    """One step: its command and options, and the file it started from, by hash and, if reported on too, by name."""

    command: str
    options: dict[str, Any]
    parent: str | None
    parent_name: str | None
    cost: dict[str, float]
    score: dict[str, float]
    notes: tuple[str, ...]

    def text(self) -> str:
        """`prune(method=l1, sparsity=0.5)`."""
        shown: dict[str, Any] = {}
        for key, value in _shown(self.options):
            shown.setdefault(key, value)  # the run's base rate comes before the optimizer's rate of the moment
        own = _own(self.options.get("settings"), self.options.get("settings_changed"))
        names, shown = dict.fromkeys((*WHAT, *own, *HOW)), shown | own
        return f"{self.command}({', '.join(f'{key}={_short(shown[key])}' for key in names if key in shown)})"

    def data(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "notes": list(self.notes)}


def identity(sidecar: Sidecar) -> Identity:
    """What tells a checkpoint from others: its weights, and how many steps made it, since some leave weights alone."""
    return (sidecar.weights.sha256 if sidecar.weights else None, len(sidecar.history))


def chain(sidecar: Sidecar, known: Mapping[Identity, str]) -> tuple[Link, ...]:
    """The steps that made a checkpoint, first to last; `known` has the names of the reported checkpoints."""
    return tuple(_link(step, known.get((step.parent, i))) for i, step in enumerate(sidecar.history))


def parent(links: tuple[Link, ...]) -> str | None:
    """The nearest ancestor among the reported checkpoints; None when there is none."""
    return next((link.parent_name for link in reversed(links) if link.parent_name), None)


def story(links: tuple[Link, ...], origin: str | None) -> str:
    """A lineage as one line, `[base] → prune(...)`: from the reported ancestor `origin`, if there is one."""
    start = max((i for i, link in enumerate(links) if origin and link.parent_name == origin), default=0)
    steps = [link.text() for link in links[start:]]
    return " → ".join([f"[{origin}]", *steps] if origin else steps) or "no history"


def _link(step: Step, name: str | None) -> Link:
    return Link(step.command, step.options, step.parent, name, step.cost, step.score, tuple(step.notes))


def _own(settings: Any, changed: Any) -> dict[str, Any]:
    """A method's settings that are not at their default."""
    if not (isinstance(settings, dict) and isinstance(changed, list)):
        return {}
    return {key: value for key, value in settings.items() if key in changed}


def _short(value: Any) -> str:
    if isinstance(value, str) and SHA256.fullmatch(value):
        return value[:8]
    if isinstance(value, list | dict):
        parts = [f"{key}:{_short(value[key])}" if isinstance(value, dict) else str(key) for key in value]
        return "+".join(parts[:3]) + "+…" * (len(parts) > 3)
    return f"{float(f'{value:.3g}'):g}" if isinstance(value, float) else str(value)


def _shown(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Options that say something, out of their groups: the run's and the optimizer's are recorded as tables."""
    for key, value in options.items():
        if isinstance(value, dict):
            if "kind" in value or "name" in value:
                yield from _shown({key: value.get("kind", value.get("name"))})
            if "kind" not in value:
                yield from _shown({k: v for k, v in value.items() if k != "name" and k not in options})
        elif value not in (None, False, "", []) and USUAL.get(key) != value:
            yield key, value
