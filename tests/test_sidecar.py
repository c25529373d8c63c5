"""The sidecar's schema: everything described, everything checked, and real sidecars valid under the JSON Schema."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import jsonschema
import msgspec
import pytest

from prunecli.encoding import arrays, decode, encode, with_arrays
from prunecli.sidecar import (
    Arch,
    Array,
    Cost,
    Data,
    EpochLog,
    FileRef,
    IndexSet,
    Mask,
    Metrics,
    Optimizer,
    ParamGroup,
    Schedule,
    Score,
    Sidecar,
    Step,
    Surgery,
    Training,
    json_schema,
)  # fmt: skip

SHA = "0" * 64


def full() -> Sidecar:
    """A sidecar in which every part is there."""
    array = Array(dtype="float32", shape=[2], data=b"12345678")
    return Sidecar(
        weights=FileRef(file="x.safetensors", size=100, sha256=SHA),
        arch=Arch(name="lenet5", args={"num_classes": 3}),
        data=Data(name="mnist", classes=3, shape=[1, 32, 32], mean=[0.1], std=[0.3], train_size=9, test_size=3),
        cost=Cost(input=[1, 32, 32], positions={"w": 100}, other_macs=3, buffers=["b"]),
        surgery=Surgery(index=[IndexSet(of=4, kept=[0, 2])], axes={"w": {"0": 0}}, attributes={"conv": {"groups": 2}}),
        masks={"w": Mask(shape=[2], bits=b"\x01")},
        optimizer=Optimizer(
            name="SGD", groups=[ParamGroup(params=["w"], options={"lr": 0.1})], state={"w": {"momentum_buffer": array}}
        ),
        training=Training(
            epochs=3, batch_size=2, seed=1, lr=0.1, schedule=Schedule(kind="multistep", milestones=[1, 2.5]),
            rng={"cpu": Array(dtype="uint8", shape=[0], data=b"")},
        ),
        metrics=Metrics(
            last=Score(epoch=1, values={"top1": 0.5}), curve=[EpochLog(epoch=1, lr=0.1, train={"loss": 2.0})]
        ),
        history=[Step(command="train", options={"epochs": 3}, versions={"prunecli": "0.1.0"}, cost={"macs": 5.0})],
    )  # fmt: skip


def test_encoding_is_read_back_and_is_plain_indented_json() -> None:
    raw = b"".join(encode(full()))
    assert decode(raw) == full()
    content = json.loads(raw)
    assert raw == msgspec.json.format(raw, indent=1) + b"\n"
    assert content["optimizer"]["state"]["w"]["momentum_buffer"]["data"] == "MTIzNDU2Nzg="
    checksum = content.pop("checksum")
    assert checksum == hashlib.sha256(raw[: raw.index(b' "checksum"')]).hexdigest()
    assert content == {k: v for k, v in json.loads(msgspec.json.encode(full())).items() if k != "checksum"}


def test_arrays_are_listed_and_replaced_by_path() -> None:
    sidecar = full()
    assert [path for path, _ in arrays(sidecar)] == ["optimizer/w/momentum_buffer", "rng/cpu"]
    emptied = with_arrays(sidecar, lambda _, array: Array(dtype=array.dtype, shape=array.shape))
    assert all(array.data is None for _, array in arrays(emptied))
    assert sidecar == full()
    assert emptied.history == sidecar.history


def described(schema: dict[str, Any]) -> dict[str, list[str]]:
    """Every struct's and field's description, by struct."""
    return {
        name: [part.get("description", "") for part in (definition, *definition["properties"].values())]
        for name, definition in schema["$defs"].items()
    }


def test_every_field_is_described() -> None:
    texts = described(json_schema())
    assert len(texts) >= 17
    for name, descriptions in texts.items():
        assert all(text.endswith(".") for text in descriptions), (name, descriptions)
        assert len(set(descriptions)) == len(descriptions), name


def test_sidecars_are_valid_under_the_json_schema() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for sidecar in (full(), Sidecar(arch=Arch(name="a"), cost=Cost(input=[1]))):
        validator.validate(json.loads(b"".join(encode(sidecar))))
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({"format": 2})


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (["format"], 2), (["unknown"], 1), (["weights", "sha256"], "abc"), (["weights", "size"], -1),
        (["weights", "file"], "../x"), (["weights", "file"], ""), (["arch", "name"], ""), (["arch", "args"], [1]),
        (["data", "shape"], [1, 32]), (["data", "std"], [0]), (["data", "classes"], 0), (["cost", "input"], [-1]),
        (["cost", "input"], [0, 32, 32]), (["cost", "input"], [3, 2**20, 2**20]), (["training", "totals"], [1.0]),
        (["cost", "positions", "w"], 1.5), (["cost", "positions", "w"], 10**30), (["masks", "w", "shape"], [9]),
        (["masks", "w", "bits"], "/w=="), (["masks", "w", "bits"], "*"), (["masks", "w", "shape"], [10**6] * 9),
        (["surgery", "index", 0, "kept"], [2, 0]), (["surgery", "index", 0, "kept"], [0, 4]),
        (["surgery", "index", 0, "kept"], []), (["surgery", "axes", "w", "0"], 1),
        (["surgery", "axes", "w"], {"10": 0}),
        (["surgery", "attributes", "conv", "groups"], "2"), (["optimizer", "name"], "Lion"),
        (["optimizer", "state", "w", "momentum_buffer", "shape"], [3]),
        (["optimizer", "state", "w", "momentum_buffer", "shape"], [2**40] * 16),
        (["training", "rng", "cpu", "shape"], [0, 2**40, 2**40]),
        (["optimizer", "state", "w", "momentum_buffer", "dtype"], "float8"), (["training", "lr"], 0),
        (["training", "lr"], math.nan), (["training", "seed"], 2**70), (["training", "schedule", "kind"], "sine"),
        (["history", 0, "parent"], "x"), (["metrics", "last", "values", "top1"], None),
    ],
)  # fmt: skip
def test_wrong_values_are_refused(at: list[Any], value: Any) -> None:
    raw = json.loads(b"".join(encode(full()))) | {"checksum": None}
    place = raw
    for key in at[:-1]:
        place = place[key]
    place[at[-1]] = value
    with pytest.raises(msgspec.DecodeError):  # which is a ValueError
        decode(json.dumps(raw).encode())


def test_what_could_not_be_read_back_is_not_encoded() -> None:
    sidecar = full()
    sidecar.metrics.last = Score(epoch=1, values={"loss": math.nan})
    with pytest.raises(msgspec.ValidationError, match="metrics"):
        list(encode(sidecar))


def test_mask_counts_what_it_keeps() -> None:
    assert Mask(shape=[3, 4], bits=b"\xff\x07").kept == 11
