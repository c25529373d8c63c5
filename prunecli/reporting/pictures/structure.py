"""The groups of a network as lanes beside the list of its layers, the way version histories are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

from prunecli.reporting.pictures.lanes import carrier, lanes, maker, plus, reader, sign
from prunecli.reporting.pictures.style import COLORS, FAINT, INK, Picture
from prunecli.reporting.row import Row
from prunecli.reporting.structure import Line, Outline, Tied

if TYPE_CHECKING:
    from prunecli.surgery.reasons import Join

STEP = 20  # height of a line, in pixels like everything here
TOP = 84  # legend and headings
CHARACTER = 6.65  # width of one in names
LETTER = 6.4  # width of one in texts, on average
LONGEST = 110  # letters of a text; a tooltip has the rest
ALONE, FIXED = "#5b6875", "#b4bcc6"  # groups of one layer; those that cannot be cut
SIGNS = {"add": "+", "sub": "−", "mul": "×", "div": "÷"}
CAPTION = (
    "Each line is a layer, each lane the channels that go together: what one layer of a lane loses, all of it lose. "
    "Point at a lane for its members."
)


def structures(rows: Sequence[Row]) -> Iterator[Picture]:
    """A picture for every different structure among the checkpoints; those with equal ones share it."""
    shared: dict[Outline, list[str]] = {}
    for row in rows:
        if row.structure:
            shared.setdefault(row.structure, []).append(row.name)
    for number, (outline, names) in enumerate(shared.items()):
        yield _Drawing(outline, f"structure{number}").picture(f"Structure of {', '.join(names)}")


class _Drawing:
    """Where everything is."""

    def __init__(self, outline: Outline, key: str) -> None:
        self.outline, self.key = outline, key
        self.row = {line.name: i for i, line in enumerate(outline.lines)}
        self.fixed = {layer for group in outline.groups if group.reason for layer in group.layers}
        tied = [group.key for group in outline.groups if len(group.layers) > 1 and not group.reason]
        self.color = {name: COLORS[i % 7] for i, name in enumerate(tied)}
        self.lane = lanes({group.key: self._rows(group) for group in outline.groups}, tied)
        count = max(self.lane.values(), default=0) + 1
        self.gap = 16 if count <= 12 else 11 if count <= 24 else 8
        self.name = 4 + count * self.gap + 8
        self.kind = self.name + 16 + CHARACTER * max((len(line.name) for line in outline.lines), default=0)
        self.width = self.kind + 50 + LETTER * max((len(line.kind) for line in outline.lines), default=0)
        self.text = self.width + 18

    def picture(self, title: str) -> Picture:
        """The whole of it."""
        says = {line.name: self.outline.of(line) for line in self.outline.lines}
        across = max(720, self.text + LETTER * min(max(map(len, says.values()), default=0), LONGEST) + 8)
        down = TOP + STEP * len(says) + 8
        caption = f"{self.outline.summary} {CAPTION}"
        parts = [
            f'<svg class="natural" role="img" aria-labelledby="{self.key}-title {self.key}-desc" '
            f'xmlns="http://www.w3.org/2000/svg" width="{across:.0f}" height="{down}" '
            f'viewBox="0 0 {across:.0f} {down}" font-size="12" fill="{INK}">',
            f'<title id="{self.key}-title">{escape(title)}</title>',
            f'<desc id="{self.key}-desc">{escape(caption)}</desc>',
            *self._legend(),
            f'<path d="{self._stripes(across)}" fill="#f5f7fa"/>',
            *(self._line(line, says[line.name]) for line in self.outline.lines),
            *(self._group(group) for group in self.outline.groups),
            "</svg>",
        ]
        return Picture(title, caption, "\n".join(parts))

    def _stripes(self, across: float) -> str:
        return "".join(f"M0 {TOP + STEP * i}h{across:.0f}v{STEP}h-{across:.0f}z" for i in range(0, len(self.row), 2))

    def _rows(self, group: Tied) -> list[int]:
        return sorted({self.row[name] for name in (*group.layers, *group.readers, *group.carriers) if name in self.row})

    def _y(self, name: str) -> float:
        return TOP + STEP * (self.row[name] + 0.5)

    def _below(self, join: Join) -> float:
        """Below the layer that joined others itself, else below the last of them."""
        return max(map(self._y, [join.layer] if join.layer in self.row else join.joined)) + STEP / 2

    def _legend(self) -> Iterator[str]:
        for x, y, draw, color, text in (
            (12, 12, maker, ALONE, "makes channels"), (150, 12, reader, ALONE, "reads them"),
            (258, 12, carrier, ALONE, "hands them on"), (12, 36, plus, ALONE, "joins them: they go together"),
            (258, 36, maker, FIXED, "cannot be cut"),
        ):  # fmt: skip
            yield f'{draw(x, y, color)}<text x="{x + 10}" y="{y + 4}" fill="{FAINT}">{text}</text>'
        yield f'<g fill="{FAINT}" font-weight="600">'
        for left, text, anchor in (
            (self.name, "layer", "start"), (self.kind, "kind", "start"), (self.width, "width", "end"),
            (self.text, "its channels", "start"),
        ):  # fmt: skip
            yield f'<text x="{left:.0f}" y="{TOP - 8}" text-anchor="{anchor}">{text}</text>'
        yield "</g>"

    def _line(self, line: Line, says: str) -> str:
        y = self._y(line.name) + 4
        i = self.row[line.name]
        known = _common(self.outline.lines[i - 1].name if i else "", line.name)
        shade = f' fill="{FAINT}"' if line.name in self.fixed else ""
        return (
            f'<text x="{self.name:.0f}" y="{y:.0f}" class="mono">'
            f'<tspan fill="#8793a0">{escape(line.name[:known])}</tspan>{escape(line.name[known:])}</text>'
            f'<text x="{self.kind:.0f}" y="{y:.0f}" fill="{FAINT}">{escape(line.kind)}</text>'
            f'<text x="{self.width:.0f}" y="{y:.0f}" text-anchor="end">{line.width}</text>'
            f'<text x="{self.text:.0f}" y="{y:.0f}"{shade}><title>{escape(says)}</title>{escape(_fitted(says))}</text>'
        )

    def _group(self, group: Tied) -> str:
        color = FIXED if group.reason else self.color.get(group.key, ALONE)
        x = 4 + self.gap * (self.lane[group.key] + 0.5)
        top, bottom = (TOP + STEP * (row + 0.5) for row in (self._rows(group)[0], self._rows(group)[-1]))
        thick = 3 if len(group.layers) > 1 else 1.6
        signs = {self._below(join): SIGNS.get(join.operation, "=") for join in group.joins}
        readers = [name for name in group.readers if name in self.row and name not in group.layers]
        parts = [
            f'<g class="lane"><title>{escape(_tooltip(group))}</title>',
            f'<path d="M{x:.1f} {top}V{bottom}" stroke="{color}" stroke-width="{thick}"/>',
            *(reader(x, self._y(name), color) for name in readers),
            *(carrier(x, self._y(name), color) for name in group.carriers),
            *(maker(x, self._y(name), color) for name in group.layers),
            *(sign(x, y, text, color) for y, text in signs.items()),
            "</g>",
        ]
        return "".join(parts)


def _tooltip(group: Tied) -> str:
    lines = [f"{group.key}: {group.verdict}" if group.reason else f"{group.key}: {group.units} units"]
    lines += [f"{what} {', '.join(names)}" for what, names in (
        ("made by", group.layers), ("read by", group.readers), ("handed on by", group.carriers),
    ) if names]  # fmt: skip
    lines += [group.verdict] if group.verdict and not group.reason else []
    return "\n".join(lines)


def _fitted(says: str) -> str:
    """As many whole phrases as there is room for."""
    if len(says) <= LONGEST:
        return says
    end = max(says.rfind(mark, 0, LONGEST) for mark in (": ", "; ", ", "))
    return says[: end if end > 0 else LONGEST - 1] + "…"


def _common(before: str, name: str) -> int:
    """How many characters of `name` are modules that the line before is in too."""
    parts = 0
    for a, b in zip(before.split(".")[:-1], name.split(".")[:-1], strict=False):
        if a != b:
            break
        parts += len(a) + 1
    return parts
