"""The README's commands do what it says: every `$` line of its console blocks runs, in order, and its program.

Blocks without `<!-- output varies -->` above them must print exactly what the README shows. `UPDATE_README=1` writes
what they print into the README instead.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(?P<above>[^\n]*\n)```console\n(?P<body>.*?)```", re.DOTALL)


def commands(body: str) -> list[tuple[str, str]]:
    """The commands of a console block, each with the output shown below it."""
    parts = re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]
    return [(part.partition("\n")[0], part.partition("\n")[2]) for part in parts]


def execute(command: str, folder: Path) -> str:
    """What `command` prints on stdout, and on stderr where it fails."""
    environment = dict(os.environ, COLUMNS="110", NO_COLOR="1", OMP_NUM_THREADS="1")
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    errors = "".join(line + "\n" for line in done.stderr.splitlines() if line.startswith(("error:", "hint:")))
    return done.stdout + errors


def test_the_readmes_commands_print_what_it_shows(tmp_path: Path) -> None:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    shutil.copytree(ROOT / "sample_checkpoints", tmp_path / "sample_checkpoints")
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) >= 5
    changed = text
    for block in blocks:
        actual = ""
        for command, _ in commands(block["body"]):
            actual += f"$ {command}\n" + "".join(
                line.rstrip() + "\n" for line in execute(command, tmp_path).splitlines()
            )
        if "output varies" not in block["above"]:
            changed = changed.replace(block["body"], actual)
    ends = ["Score(epoch=8, values=", "384 torch.Size([1, 1000])"]
    for program, end in zip(re.findall(r"```python\n(.*?)```", text, re.DOTALL), ends, strict=True):
        (tmp_path / "program.py").write_text(program)
        assert execute(f"{sys.executable} program.py", tmp_path).splitlines()[-1].startswith(end)
    if os.environ.get("UPDATE_README"):
        readme.write_text(changed, encoding="utf-8")
    assert changed == readme.read_text(encoding="utf-8")
