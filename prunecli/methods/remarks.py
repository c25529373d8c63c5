"""What `prune` has to say about a cut: layers that stay whole, widths that were held, what folding left."""

from __future__ import annotations

from collections.abc import Mapping

from prunecli.allocate.patterns import share_of
from prunecli.allocate.widths import Allocation
from prunecli.criteria import CRITERIA
from prunecli.methods import METHODS
from prunecli.methods.outcome import by_reason, listed
from prunecli.methods.reach import Candidates
from prunecli.methods.targets import Target, Units
from prunecli.surgery import Group
from prunecli.surgery.compensate import Folded


def left_whole(
    found: Candidates, groups: Mapping[str, Group], target: Target, allocation: Allocation, how: Units
) -> dict[str, str]:
    """Why groups that may be pruned keep all their units, by key; nothing of those that were given the share 0."""
    reasons = {}
    for key, group in groups.items():
        if key not in found.choices:
            reasons[key] = _unscored(how.method)
        elif len(found.choices[key]) == 1 and group.units > 1:
            reasons[key] = f"{how.limits} leaves it no width below its {group.units} units"
        elif allocation.widths[key] == group.units and share_of(group.layers, target.ratios) != 0.0:
            reasons[key] = f"the target leaves it all its {group.units} units"
    return reasons


def _unscored(method: str) -> str:
    """Why a group has nothing that the criterion reads."""
    reads_scales = CRITERIA[METHODS[method].criterion].reads == "norm"
    return "no batch norm behind it" if reads_scales else "no weights make its channels"


def remarks(found: Candidates, allocation: Allocation, how: Units) -> list[str]:
    """Layers that were held, and cuts that are more than removals."""
    notes, single, held = [], [], []
    for key in allocation.held:
        if (least := found.choices[key][0]) == 1:
            single.append(key)
        elif len(found.choices[key]) > 1:
            held.append(f"{key} ({least} of {found.sizes[key]} units)")
    if single:
        notes.append(f"kept, as a layer never loses all: one unit of {listed(single)}")
    if held:
        notes.append(f"held at the least that {how.limits} allows: {listed(held)}")
    for key, group in found.groups.items():
        if group.changes_function and allocation.widths.get(key, group.units) < group.units:
            notes.append(f"{key}: the cut changes the function, {group.changes_function}")
    return notes


def shortfall(found: Candidates, allocation: Allocation, how: Units) -> str | None:
    """What widths that are not allowed kept of a share that was asked for."""
    whole = sum(found.sizes.values())
    gone = whole - sum(allocation.widths.values())
    if gone >= allocation.asked:
        return None
    asked = f"{allocation.asked:,} were asked for ({allocation.asked / whole:.1%})"
    return f"{gone:,} of {whole:,} units go ({gone / whole:.1%}), {asked}: {how.limits} keeps the others"


def caveats(folded: Folded) -> list[str]:
    """Where folding is not exact, and where there was none."""
    refused = by_reason(folded.refused).items()
    notes = [f"constants are not folded into {listed(layers)}: {why}" for why, layers in refused]
    if folded.approximate:
        shown = [f"{layer} ({error:.0%})" for layer, error in folded.approximate.items()]
        notes.append(
            f"folded constants are approximate at the borders of what these read, with padding: {listed(shown)}; by at "
            "most so much of what was folded"
        )
    return notes
