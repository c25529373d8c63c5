"""Where lanes run beside a list of layers, and the marks on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def lanes(rows: Mapping[str, Sequence[int]], first: Sequence[str]) -> dict[str, int]:
    """A lane for each group, given the rows that it is on, in order; those `first` are leftmost, no two overlap."""
    ends: list[list[tuple[int, int]]] = []  # by lane: what is taken
    result = {}
    for key in (*first, *(key for key in rows if key not in first)):
        low, high = rows[key][0], rows[key][-1]
        free = (i for i, taken in enumerate(ends) if all(high < a or low > b for a, b in taken))
        result[key] = next(free, len(ends))
        if result[key] == len(ends):
            ends.append([])
        ends[result[key]].append((low, high))
    return result


def maker(x: float, y: float, color: str) -> str:
    """The mark of a layer that makes channels."""
    return f'<circle cx="{x:.1f}" cy="{y:.0f}" r="4.5" fill="{color}"/>'


def reader(x: float, y: float, color: str) -> str:
    """The mark of a layer that reads them."""
    return f'<circle cx="{x:.1f}" cy="{y:.0f}" r="3" fill="#fff" stroke="{color}" stroke-width="1.5"/>'


def carrier(x: float, y: float, color: str) -> str:
    """The mark of a layer that hands them on."""
    return f'<path d="M{x:.1f} {y - 5:.0f}l5 5l-5 5l-5 -5z" fill="{color}"/>'


def plus(x: float, y: float, color: str) -> str:
    """The mark of an addition."""
    return sign(x, y, "+", color)


def sign(x: float, y: float, text: str, color: str) -> str:
    """The mark of an operation that ties layers."""
    return (
        f'<circle cx="{x:.1f}" cy="{y:.0f}" r="5.5" fill="#fff" stroke="{color}" stroke-width="1.2"/>'
        f'<text x="{x:.1f}" y="{y + 3.6:.1f}" font-size="11" text-anchor="middle">{text}</text>'
    )
