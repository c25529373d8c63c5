"""Random networks of every piece that surgery knows, random plans: how many can be cut, and whether every cut is right.

    python benchmarks/random_networks.py [--networks 2000] [--first 0]

Each network is checked as in tests/test_surgery_random.py: the cut network must compute what the whole one does with
its removed slices missing, in eval and train mode, and where that differs from zeros in their place the group must say
so; removing dead units must change nothing; the record must make the same cut of the dense network; gradients, momentum
and scores must follow. Number 1234 is the same network in every run. What fails is printed as the program
that makes it, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import random_networks
from random_checks import Outcome, check
from random_networks import STARTS, Program

HEADS = "heads."
_DETAILS = re.compile(r" in (steps|heads)\.[\w.]+|[\[(][-\d, *]+[\])]|\b\d+\b")  # of reasons: layers and sizes


class Tally:
    """Counts over all networks."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.pieces: Counter[str] = Counter()

    def add(self, program: Program, outcome: Outcome) -> None:
        """Count a network; heads, which make its outputs, are left out."""
        groups = [group for group in outcome.structure.groups if not group.key.startswith(HEADS)]
        for group in groups:
            self.counts["groups"] += 1
            self.counts["prunable groups"] += group.prunable
            self.counts["units of prunable groups"] += group.units
            self.counts["units removed"] += group.units - len(outcome.plan.kept.get(group.key, range(group.units)))
            self.counts["groups whose cut changes the function"] += group.changes_function is not None
            if group.reason:
                self.reasons[_DETAILS.sub("", group.reason)[:90]] += 1
        self.counts["units of every layer"] += sum(outcome.structure.dense[t][a] for g in groups for t, a in g.outputs)
        self.counts["plans that verify refused"] += outcome.refused is not None
        self.pieces.update(program.pieces)

    def print(self) -> None:
        """Everything, the most frequent first."""
        for title, counter in (("", self.counts), ("not prunable because", self.reasons), ("pieces", self.pieces)):
            print(f"\n{title}" if title else "")
            for name, count in counter.most_common():
                print(f"{count:8}  {name}")


def main() -> int:
    """Run and print; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--networks", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    tally, failed, start = Tally(), 0, time.perf_counter()
    for number in range(options.first, options.first + options.networks):
        draw = random.Random(number).choice
        program = random_networks.draw(draw, draw(STARTS))
        try:
            tally.add(program, check(program, number))
        except Exception:  # of any kind: each is a finding
            failed += 1
            print(f"\nnetwork {number} fails\n{program}\n{traceback.format_exc(limit=-3)}", flush=True)
    seconds = time.perf_counter() - start
    tally.print()
    print(f"\n{options.networks} networks in {seconds:.0f} s, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
