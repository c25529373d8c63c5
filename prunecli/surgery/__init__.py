"""Structural pruning of any network that runs: trace what goes together, plan, cut."""

from __future__ import annotations

from prunecli.surgery.absence import take_away
from prunecli.surgery.branches import Branch, branches
from prunecli.surgery.record import apply_record, replay
from prunecli.surgery.shrink import apply
from prunecli.surgery.structure import Group, Member, Plan, Structure
from prunecli.surgery.trace import trace, verify

__all__ = [
    "Branch", "Group", "Member", "Plan", "Structure", "apply", "apply_record", "branches", "replay", "take_away",
    "trace", "verify",
]  # fmt: skip
