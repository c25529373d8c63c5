"""Start-up time: `prunecli --help` and `prunecli report --json` of one checkpoint, against their targets.

    python benchmarks/startup.py [CHECKPOINT] [--runs 20]

Each command runs in a fresh process, the two in turn; the median counts. Where a target is missed, the slowest imports
of that command are listed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

TARGETS = {"--help": 0.25, "report --json": 0.40}  # seconds
SAMPLES = Path(__file__).parent.parent / "sample_checkpoints"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", help="default: the first of sample_checkpoints/")
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    checkpoint = options.checkpoint or next(map(str, sorted(SAMPLES.glob("*.safetensors"))), None)
    if checkpoint is None:
        parser.error(f"no checkpoint in {SAMPLES}; name one")
    commands = {"--help": ["--help"], "report --json": ["report", checkpoint, "--json"]}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for run in range(options.runs + 1):
        for name, arguments in commands.items():
            taken = timed([sys.executable, "-m", "prunecli", *arguments])
            if run:  # the first one fills the caches of the disk
                times[name].append(taken)
    missed = [name for name in commands if statistics.median(times[name]) > TARGETS[name]]
    for name, taken in times.items():
        q1, median, q3 = statistics.quantiles(taken, n=4)
        verdict = "missed" if name in missed else "met"
        print(
            f"prunecli {name:<14} {median:.3f} s (quartiles {q1:.3f} to {q3:.3f}); target {TARGETS[name]} s {verdict}"
        )
    for name in missed:
        print(f"\nslowest imports of prunecli {name}, cumulated:")
        print("\n".join(slowest_imports(commands[name])))
    return 1 if missed else 0


def timed(command: list[str]) -> float:
    """Seconds from start to end of a process, which must succeed."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def slowest_imports(arguments: list[str], shown: int = 20) -> list[str]:
    """Lines of Python's import profile, the longest last."""
    command = [sys.executable, "-X", "importtime", "-m", "prunecli", *arguments]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stderr.splitlines()
    rows = [line for line in lines if line.startswith("import time:") and "cumulative" not in line]
    return sorted(rows, key=lambda line: int(line.split("|")[1]))[-shown:]


if __name__ == "__main__":
    sys.exit(main())
