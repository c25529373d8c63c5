"""Damaged, missing, foreign and unreadable checkpoints: an error with a message and a hint, never anything else."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as safetensors_bytes
from small_checkpoint import refused, write

from prunecli.checkpoint import Checkpoint, build, load, save
from prunecli.errors import DamagedError, PruneError, UsageError
from prunecli.sidecar import Arch, Cost, Sidecar

JSON_VALUES = [
    None, -1, 0, 1, 2**63, 10**400, 0.5, 1e308, "", "x", "../../x", "\0", [], {}, [[]], {"x": 1}, True, [-1, 5],
]  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x.safetensors"
    write(path)
    return path


def reseal(path: Path) -> None:
    """Make the sidecar describe the files as they now are, so that only their contents can be found wrong."""
    sidecar = path.with_suffix(".json")
    content = json.loads(sidecar.read_text()) | {"checksum": None}
    for key, file in (("weights", path), ("state", path.with_name("x.state.safetensors"))):
        if content[key]:
            raw = file.read_bytes()
            content[key] |= {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    sidecar.write_text(json.dumps(content))


def edit(path: Path, at: list[Any], value: Any) -> None:
    """Set one value of the sidecar."""
    sidecar = path.with_suffix(".json")
    content = json.loads(sidecar.read_text()) | {"checksum": None}
    place = content
    for key in at[:-1]:
        place = place[key]
    place[at[-1]] = value
    sidecar.write_text(json.dumps(content))


def test_the_example_is_whole(path: Path) -> None:
    assert build(load(path)).conv1.out_channels == 2


def test_missing_files(path: Path) -> None:
    assert "'x.safetensors'" in refused(path.with_name("x2.safetensors"), DamagedError).hint
    refused(path.parent / "nowhere" / "y.safetensors", DamagedError)
    path.rename(path.with_name("y.safetensors"))
    assert "no such file" in refused(path, DamagedError).message
    assert "--init" in refused(path.with_name("y.safetensors"), DamagedError).hint


@pytest.mark.parametrize("name", ["x.json", "x", "x.state.safetensors", "x.pt", ".safetensors", "a/.safetensors", "\0"])
def test_names_that_are_no_checkpoints(name: str) -> None:
    for operation in (load, lambda name: save(Checkpoint({}, Sidecar(arch=Arch(name="a"), cost=Cost(input=[]))), name)):
        with pytest.raises(UsageError) as caught:
            operation(name)
        assert ".safetensors" in caught.value.hint


def test_directories_and_pipes(tmp_path: Path, path: Path) -> None:
    (tmp_path / "d.safetensors").mkdir()
    (tmp_path / "d.json").mkdir()
    refused(tmp_path / "d.safetensors")
    with pytest.raises(PruneError, match=r"d\.safetensors"):
        save(load(path), tmp_path / "d.safetensors")
    assert not list(tmp_path.glob("*.pending"))
    path.unlink()
    os.mkfifo(path)
    refused(path, DamagedError)


def test_sidecar_of_other_weights_says_which_file_is_older(path: Path) -> None:
    other = path.with_name("other.safetensors")
    write(other)
    shutil.copy(other, path)
    os.utime(path, (10, 10))
    assert "x.safetensors is the older" in refused(path, DamagedError).hint
    os.utime(path.with_suffix(".json"), (5, 5))
    assert "x.json is the older" in refused(path, DamagedError).hint


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_truncation(path: Path, suffix: str, share: float) -> None:
    file = path.with_suffix(suffix)
    os.truncate(file, int(file.stat().st_size * share))
    refused(path, DamagedError)
    if suffix == ".safetensors":
        reseal(path)
        assert "not a whole safetensors file" in refused(path, DamagedError).message


def test_unknown_format_version_is_named(path: Path) -> None:
    edit(path, ["format"], 7)
    assert "format 7" in refused(path, DamagedError).message


def test_values_that_are_not_finite(path: Path) -> None:
    weights = dict(load(path).weights)
    weights["fc1.bias"] = torch.full((84,), float("nan"))
    path.write_bytes(safetensors_bytes(weights))
    reseal(path)
    assert "'fc1.bias'" in refused(path, DamagedError).message


@pytest.mark.parametrize(
    ("at", "value", "word"),
    [
        (["masks", "nothing"], {"shape": [1], "bits": "AA=="}, "nothing"),
        (["masks", "fc1.weight"], {"shape": [1], "bits": "AA=="}, "mask of 'fc1.weight'"),
        (["surgery", "index", 0, "kept"], [0], "conv1"),
        (["surgery", "axes", "conv1.bias"], {"3": 0}, "conv1.bias"),
        (["surgery", "axes", "nowhere"], {"0": 0}, "nowhere"),
        (["surgery", "index", 0, "of"], 7, "conv1"),
        (["surgery", "attributes"], {"conv1": {"forward": 1}}, "forward"),
        (["surgery", "attributes"], {"conv1": {"__class__": 1}}, "__class__"),
        (["cost", "positions"], {"nothing": 1}, "nothing"),
        (["optimizer", "groups", 0, "params"], ["nothing"], "nothing"),
        (["optimizer", "groups", 0, "params"], ["conv1.bias", "conv1.bias"], "twice"),
        (["optimizer", "groups", 0, "params"], ["conv2.bias"], "conv1.bias"),
        (["optimizer", "state", "conv1.bias", "momentum_buffer"],
         {"dtype": "float32", "shape": [3], "data": "AAAAAAAAAAAAAAAA"}, "momentum_buffer"),
        (["optimizer", "state", "conv1.bias", "momentum_buffer", "data"], None, "momentum_buffer"),
        (["optimizer", "state", "conv1.bias", "momentum_buffer", "data"], "AADAfwAAwH8=", "momentum_buffer"),  # NaN
        (["arch", "name"], "lenet6", "lenet6"),
        (["arch", "args"], {"num_classes": 11}, "fc2"),
        (["weights"], None, "weights"),
        (["history", 0, "options", "seed"], [[[]] * 3] * 3, ""),
    ],
)  # fmt: skip
def test_sidecars_that_disagree_with_their_weights(path: Path, at: list[Any], value: Any, word: str) -> None:
    edit(path, at, value)
    if word:
        assert word in refused(path, DamagedError).message
    else:
        load(path)


def test_an_edit_by_hand_is_only_taken_with_the_checksum_null(path: Path) -> None:
    sidecar = path.with_suffix(".json")
    sidecar.write_text(sidecar.read_text().replace('"lr": 0.1', '"lr": 0.2'))
    assert "checksum" in refused(path, DamagedError).message
    edit(path, ["training", "lr"], 0.2)
    training = load(path).sidecar.training
    assert training is not None
    assert training.lr == 0.2


def test_deep_nesting(path: Path) -> None:
    path.with_suffix(".json").write_bytes(b'{"format":1,"arch":{"name":"a","args":' + b'{"a":' * 10**5)
    refused(path, DamagedError)


@pytest.mark.parametrize(
    "header",
    [
        b"{}", b"[]", b"nonsense", b'{"a":1}', b'{"a":{"dtype":"F32"}}', b'{"a":' * 10**4,
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        b'{"a":{"dtype":"F9","shape":[2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[0,1099511627776,1099511627776],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    ],
)  # fmt: skip
def test_headers_that_lie(path: Path, header: bytes) -> None:
    for length in (len(header), 2**63, 99_999_999):
        path.write_bytes(length.to_bytes(8, "little") + header + bytes(8))
        reseal(path)
        assert "not a whole safetensors file" in refused(path, DamagedError).message


def test_sizes_are_refused_before_memory_is_taken(path: Path) -> None:
    os.truncate(path.with_suffix(".json"), 2**40)  # sparse
    refused(path, DamagedError)


def mutate(draw: random.Random, raw: bytes) -> bytes:
    """Some bytes flipped, cut out, doubled or cut off."""
    start = draw.randrange(len(raw))
    stop = min(len(raw), start + draw.choice([1, 2, 8, 100]))
    match draw.randrange(4):
        case 0:
            return raw[:start] + bytes(byte ^ (1 << draw.randrange(8)) for byte in raw[start:stop]) + raw[stop:]
        case 1:
            return raw[:start] + raw[stop:]
        case 2:
            return raw[:stop] + raw[start:]
        case _:
            return raw[:start]


def places(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value of a JSON document."""
    yield at
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from places(value, (*at, key))


def survives(path: Path) -> bool:
    """Whether a damaged checkpoint loads; anything but our errors is a failure."""
    try:
        build(load(path))
    except PruneError as error:
        if error.hint and ("x." in error.message or "--trust" in error.hint):
            return False
        raise
    return True


@pytest.mark.parametrize("file", ["x.safetensors", "x.state.safetensors", "x.json"])
def test_flipped_bits_never_escape(tmp_path: Path, file: str) -> None:
    path, draw = tmp_path / "x.safetensors", random.Random(file)
    write(path, inline_limit=0)
    originals = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    for _ in range(120):
        for name, raw in originals.items():
            (tmp_path / name).write_bytes(raw)
        raw = originals[file]
        damaged = mutate(draw, raw[: draw.choice([600, len(raw)])]) + raw[len(raw) :]
        (tmp_path / file).write_bytes(damaged)
        assert not survives(path) or damaged == raw
        if file != "x.json":
            reseal(path)
            survives(path)


def test_wrong_types_and_values_never_escape(path: Path) -> None:
    draw, sidecar = random.Random(0), path.with_suffix(".json")
    original = json.loads(sidecar.read_text()) | {"checksum": None}
    everywhere = list(places(original))
    for _ in range(400):
        content = copy.deepcopy(original)
        place, value = draw.choice(everywhere), draw.choice(JSON_VALUES)
        if not place:
            content = value
        else:
            parent = content
            for key in place[:-1]:
                parent = parent[key]
            if draw.random() < 0.2:
                del parent[place[-1]]
            else:
                parent[place[-1]] = value
        sidecar.write_text(json.dumps(content))
        survives(path)


def test_unreadable_files(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", denied)
    error = refused(path)
    assert "Permission denied" in error.message
    assert "permissions" in error.hint
    assert error.exit_code == 1
