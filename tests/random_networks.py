"""Random small networks as programs: steps over a pool of live tensors, drawn so that every step fits.

A program prints as Python that makes it again, `Program(inputs=('image',), steps=(Step('Conv', (0,), ...), ...), ...)`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import random_attention
import random_blocks
import random_joins
import random_kernels
import random_moves
import random_pieces
import torch
from random_pieces import Live, Pick, Piece
from torch import Tensor, nn

INPUTS = {
    "image": (3, 6, 6), "signal": (3, 8), "volume": (2, 4, 4, 4), "tokens": (4, 6), "vector": (8,), "words": (5,),
}  # fmt: skip
PIECES: dict[str, type[Piece]] = {
    name: piece
    for module in (random_pieces, random_kernels, random_moves, random_blocks, random_attention, random_joins)
    for name, piece in vars(module).items()
    if isinstance(piece, type)
    and issubclass(piece, Piece)
    and piece.__module__ == module.__name__
    and piece is not Piece
}
OFTEN = ["Conv", "Linear", "Move", "Join"] * 4 + ["Activation", "Norm", "Attention"] * 2
SHARED = {"Conv", "Linear", "Depthwise", "Attention", "Norm", "Embedding", "Excite", "Gated"}  # may be called twice
STARTS = [
    ("image",), ("tokens",), ("vector",), ("signal",), ("words",), ("volume",), ("image", "vector"),
    ("tokens", "tokens"), ("image", "image"),
]  # fmt: skip
PER_CALL = 2  # of the batch that networks are drawn for
LARGEST = 4000  # elements of a tensor


@dataclass(frozen=True)
class Step:
    """A piece and the live tensors that it takes, by number; `Again` calls the module of an earlier step."""

    piece: str
    sources: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Step({self.piece!r}, {self.sources!r}, {self.options!r})"


@dataclass(frozen=True)
class Program:
    """A network: its inputs' kinds, its steps, the live tensors that heads read, and what the output is made of."""

    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    heads: tuple[int, ...]
    output: str = "sum"  # "sum", "dict", "tuple", or "auxiliary": the first head is there in train mode only
    named: bool = False  # are its inputs one dictionary?

    @property
    def pieces(self) -> list[str]:
        """What the network is made of, for counting."""
        return [f"{s.piece}:{s.options['which']}" if "which" in s.options else s.piece for s in self.steps]

    @property
    def silent(self) -> bool:
        """Does a unit of zeros stay one of zeros?"""
        makers = [step for step in self.steps if step.piece != "Again"]
        return all(PIECES[s.piece].silent and s.options.get("which") != "over channels" for s in makers)

    @property
    def counts(self) -> bool:
        """Does it compute with numbers of channels, as attention does that divides by the root of a head's width?"""
        return any(_counts(step.piece, step.options) for step in self.steps)


def _counts(piece: str, options: dict[str, Any]) -> bool:
    if piece == "Move":
        return options["which"] in random_moves.COUNTING
    which = options["which"] if piece == "Attention" else ""
    return which in ("torch", "encoder") or (which in ("fused", "sizes in attributes") and options["scale"] is None)


class Head(nn.Module):
    """The mean over positions, and three outputs."""

    def __init__(self, x: Live) -> None:
        super().__init__()
        self.positions = {"tokens": [1], "vector": []}.get(x.kind, [*range(2, len(x.shape))])
        self.fc = nn.Linear(x.channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean(self.positions) if self.positions else x)


class Network(nn.Module):
    """Runs a program."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        live = [Live(kind, (PER_CALL, *INPUTS[kind])) for kind in program.inputs]
        self.steps = nn.ModuleList()
        for step in program.steps:
            module, result = run_step(step, self.steps, live)
            self.steps.append(module)
            live.append(result)
        self.heads = nn.ModuleList(Head(live[i]) for i in program.heads)

    def forward(self, *inputs: Any) -> Any:
        live = [inputs[0][name] for name in sorted(inputs[0])] if self.program.named else list(inputs)
        for step, module in zip(self.program.steps, self.steps, strict=True):
            live.append(module(*(live[i] for i in step.sources)))
        last = len(self.heads) - 1
        ends = [
            head(live[i]) for n, (i, head) in enumerate(zip(self.program.heads, self.heads, strict=True))
            if self.training or n == last or self.program.output != "auxiliary"
        ]  # fmt: skip
        match self.program.output:
            case "dict":
                return {"heads": ends, "first": ends[0]}
            case "tuple" | "auxiliary":
                return tuple(ends)
        return sum(ends)


def run_step(step: Step, modules: Any, live: list[Live]) -> tuple[nn.Module, Live]:
    """The module of a step and the tensor that it gives, found by running it on zeros."""
    sources = [live[i] for i in step.sources]
    module = modules[step.options["step"]] if step.piece == "Again" else PIECES[step.piece](*sources, **step.options)
    zeros = [torch.zeros(x.shape, dtype=torch.int64 if x.kind == "words" else None) for x in sources]
    with torch.no_grad():
        shape = tuple(module.train()(*zeros).shape)
    kind = getattr(module, "kind", None) or module.gives or sources[0].kind
    return module, Live(kind, shape)


def draw(pick: Pick, inputs: tuple[str, ...], most: int = 10) -> Program:
    """A program of up to `most` steps on these inputs; `pick` chooses one of a sequence, as `random.choice` does."""
    live = [Live(kind, (PER_CALL, *INPUTS[kind])) for kind in inputs]
    steps: list[Step] = []
    modules: list[nn.Module] = []
    for _ in range(pick(range(2, most + 1))):
        step = _draw_step(pick, live, steps)
        if step is not None:
            module, result = run_step(step, modules, live)
            if result.channels >= 2 and min(result.shape) > 0 and torch.Size(result.shape).numel() <= LARGEST:
                steps.append(step)
                modules.append(module)
                live.append(result)
    usable = [i for i, x in enumerate(live) if x.kind != "words" and i >= len(inputs)] or [
        i for i, x in enumerate(live) if x.kind != "words"
    ]
    used = {i for step in steps for i in step.sources}
    loose = [i for i in usable if i not in used] or usable[-1:]
    heads = tuple(loose) if pick([True, False]) else (usable[-1],)
    if pick([False, False, True]):
        heads = (pick(usable), *heads)
    return Program(inputs, tuple(steps), heads, pick(["sum", "dict", "tuple", "auxiliary"]), pick([False, False, True]))


def _draw_step(pick: Pick, live: list[Live], steps: list[Step]) -> Step | None:
    source = pick([len(live) - 1] * 3 + [*range(len(live))])
    x = live[source]
    again = [
        i for i, step in enumerate(steps)
        if step.piece in SHARED and live[step.sources[0]] == x
    ]  # fmt: skip
    if again and pick([False] * 7 + [True]):
        return Step("Again", (source,), {"step": pick(again)})
    fitting = [name for name in (*OFTEN, *PIECES) if x.kind in PIECES[name].takes]
    name = pick(fitting)
    sources = (source, *(pick(range(len(live))) for _ in range(PIECES[name].sources - 1)))
    options = PIECES[name].options(pick, *(live[i] for i in sources))
    return None if options is None else Step(name, sources, options)


def inputs_of(program: Program, batch: int, seed: int = 0) -> tuple[Any, ...]:
    """Inputs for a program, float64 where they are not words."""
    generator = torch.Generator().manual_seed(seed)
    inputs = tuple(
        torch.randint(10, (batch, *INPUTS[kind]), generator=generator)
        if kind == "words"
        else torch.randn(batch, *INPUTS[kind], generator=generator, dtype=torch.float64)
        for kind in program.inputs
    )
    return ({f"input {n}": x for n, x in enumerate(inputs)},) if program.named else inputs
