"""Surgery side by side with torch-pruning on the classification networks of torchvision: right, and how fast.

    python benchmarks/surgery.py [NAME ...] [--export] [--memory] [--json FILE]

Every network is handled in a process of its own, so that one which crashes or never ends is only that; torch-pruning
(1.6.1, in its default use, see benchmarks/peer.py) has 60 s for each. Both remove half of every layer that they prune.

- Time: trace, scores, plan and cut of the network with 224-pixel images, the two tools in turn, median of three, wall
  clock.
- Right: with random float64 weights (float32 above 400 million) and small images, in eval and in train mode, to 1e-9 of
  the largest output (1e-4 in float32): "masked", cutting equals zeroing what reads the removed units (and what makes
  them, as queries meet keys and no weight reads them), and "dead", removing units that are zero changes nothing. Layer
  norms over channels that are cut are let run over what is left, in either tool's networks, and attention
  divides by the root of as many channels as the cut one's; prunecli must have said of the same groups that the cut
  changes the function ("change"). Its cut networks are also saved and loaded, and must give the same output ("loaded").
- `--export`: the cut networks as ONNX files, run by onnxruntime against PyTorch.
- `--memory`: peak memory of tracing the two largest networks, beyond what the process had before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from prunecli.vision import torchvision

LARGEST = ("regnet_y_128gf", "vit_h_14")
PATIENCE = 1800  # seconds for a network in all
TOTAL, EACH, MEMORY = 1 / 3, 2.0, 1.0  # wanted: share of torch-pruning's total time, of its time on any network; GB
Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: every classification network")
    parser.add_argument("--only", choices=("time", "right"), help="leave out the other part")
    parser.add_argument("--export", action="store_true", help="also as ONNX files: takes an hour for all")
    parser.add_argument("--memory", action="store_true", help="also the memory of tracing the two largest")
    parser.add_argument("--json", metavar="FILE", help="also write all results here")
    options = parser.parse_args()
    parts = [options.only] if options.only else ["time", "right"]
    rows: dict[str, Row] = {}
    print(HEAD)
    for name in options.names or torchvision.models.list_models(module=torchvision.models):
        rows[name] = results(name, [*parts, *["export"] * options.export])
        print(line(name, rows[name]), flush=True)
    passed = [*summary(rows)]
    if options.memory:
        passed += [traced_within_memory(name, results(name, ["memory"])) for name in LARGEST]
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(passed) else 1


def results(name: str, parts: list[str]) -> Row:
    """What the network's process printed, and `failed` if it did not come to its end."""
    command = [sys.executable, str(Path(__file__).with_name("surgery_network.py")), name, *parts]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        output, errors = child.communicate(timeout=PATIENCE)
        failed = errors.strip().splitlines()[-1:] if child.returncode else []
    except subprocess.TimeoutExpired:
        child.kill()
        output, _ = child.communicate()
        failed = [f"not finished in {PATIENCE} s"]
    row: Row = {"failed": failed[0] if failed else ""}
    for printed in output.splitlines():
        row |= json.loads(printed)
    return row


HEAD = f"{'':22}{'ours':>7}{'theirs':>8}{'ratio':>7}  {'our cut':44}their cut"


def line(name: str, row: Row) -> str:
    """A network's row of the table."""
    ours, theirs = row.get("ours"), row.get("theirs")
    times = f"{ours:7.2f}" if ours else f"{'-':>7}"
    both = ours and isinstance(theirs, float)
    times += f"{theirs:8.2f}{ours / theirs:7.2f}" if both else f"{'-':>8}{'-':>7}"
    return f"{name:22}{times}  {ours_said(row):44}{theirs_said(row)}" + f"  {row['failed']}" * bool(row["failed"])


def ours_said(row: Row) -> str:
    cut, tolerance = row.get("our_cut"), row.get("tolerance")
    if not cut:
        return "-"
    wrong = [title for title in ("masked", "dead", "loaded") if max(cut[title]) > tolerance]
    wrong += ["changes " + cut["changes"]] * cut["changes"].startswith("wrong")
    text = f"WRONG ({', '.join(wrong)})" if wrong else "right"
    text += f", {cut['groups']} groups"
    text += f", {cut['changes']} change" if cut["changes"] not in ("0",) and not wrong else ""
    return text + (f", onnx {row['onnx']:.0e}" if isinstance(row.get("onnx"), float) else row.get("onnx", ""))


def right(row: Row) -> bool:
    """Is our cut right by every property?"""
    return ours_said(row).startswith("right")


def theirs_said(row: Row) -> str:
    cut = row.get("their_cut")
    problem = cut.get("problem") if cut else row.get("theirs") if isinstance(row.get("theirs"), str) else "-"
    if problem:
        return problem
    assert cut
    if any(cut["runs"]):
        return "; ".join(f"{mode}: {why}" for mode, why in zip(("eval", "train"), cut["runs"], strict=True) if why)
    wrong = [title for title in ("masked", "dead") if max(cut[title]) > row["tolerance"]]
    return f"WRONG ({', '.join(wrong)})" if wrong else "right"


def summary(rows: dict[str, Row]) -> list[bool]:
    """Print sums and verdicts; whether each target was met."""
    passed = []
    if any("our_cut" in row for row in rows.values()):
        ours = sum(right(row) for row in rows.values())
        cuts = [row["their_cut"] for row in rows.values() if "runs" in row.get("their_cut", {})]
        runs = [sum(not cut["runs"][mode] for cut in cuts) for mode in (0, 1)]
        theirs = sum(theirs_said(row) == "right" for row in rows.values())
        print(f"\nright by both properties: prunecli {ours} of {len(rows)}, torch-pruning {theirs} of {len(rows)}")
        print(f"torch-pruning: {len(cuts)} cut, of which {runs[0]} run in eval and {runs[1]} in train mode")
        passed.append(verdict("every network right", ours == len(rows), f"{ours} of {len(rows)}"))
    timed = {name: row for name, row in rows.items() if "ours" in row}
    both = {name: row for name, row in timed.items() if isinstance(row.get("theirs"), float)}
    if both:
        ours, theirs = (sum(row[who] for row in both.values()) for who in ("ours", "theirs"))
        everything = sum(row["ours"] for row in timed.values())
        print(f"\nseconds for the {len(both)} that torch-pruning cuts: prunecli {ours:.1f}, torch-pruning {theirs:.1f}")
        print(f"seconds for all {len(timed)}: prunecli {everything:.1f}")
        ratios = {name: row["ours"] / row["theirs"] for name, row in both.items()}
        slow = [f"{name} {ratio:.2f}" for name, ratio in ratios.items() if ratio > EACH]
        worst = max(ratios, key=ratios.__getitem__)
        said = f"{ours / theirs:.2f} of its time"
        passed.append(verdict(f"at most {TOTAL:.2f} of its total time", ours <= TOTAL * theirs, said))
        said = f"at most {ratios[worst]:.2f} times, {worst}" if not slow else f"slower on {', '.join(slow)}"
        passed.append(verdict(f"at most {EACH:g} times its time on every network", not slow, said))
    return passed


def traced_within_memory(name: str, row: Row) -> bool:
    for how in ("without weights", "with weights"):
        found = row.get(how, {"beyond": float("inf"), "before": 0.0, "weights": 0.0})
        said = (
            f"{name} {how} ({found['weights']:.2f} GB of them): {found['beyond']:.2f} GB beyond {found['before']:.2f}"
        )
        passed = verdict(f"traced within {MEMORY:g} GB", found["beyond"] <= MEMORY, said)
        if not passed:
            return False
    return True


def verdict(wanted: str, met: bool, said: str) -> bool:
    print(f"{'met   ' if met else 'MISSED'} {wanted}: {said}")
    return met


if __name__ == "__main__":
    sys.exit(main())
