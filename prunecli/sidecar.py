"""The sidecar: what `X.json` beside `X.safetensors` may contain, as a typed schema.

Everything here is plain data and imports neither torch nor numpy, so that `report --json` starts fast. A sidecar is
untrusted input: decoding checks every type, range and name, and no path in it is ever opened. Cross-checks against the
weights (shapes, index ranges) are in `prunecli.checkpoint`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import msgspec
import msgspec.structs
from msgspec import Meta, Struct, field

FORMAT = 1

Count = Annotated[int, Meta(ge=0, le=2**53)]
Name = Annotated[str, Meta(min_length=1, max_length=1024)]
FileName = Annotated[str, Meta(pattern=r"^[^/\\\x00]{1,255}$")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
Shape = Annotated[list[Annotated[int, Meta(ge=0, le=2**40)]], Meta(max_length=16)]
DType = Literal["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
ITEM_BYTES = {
    "float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2,
    "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip


class Strict(Struct, forbid_unknown_fields=True):
    """Base of every part: an unknown field is an error, not noise."""


class Array(Strict, kw_only=True):
    """A tensor: little-endian, C-contiguous bytes (base64 in the file).

    `data` is null in the file when the bytes are in `X.state.safetensors`, under this array's path in the sidecar.
    """

    dtype: DType
    shape: Shape
    data: bytes | None = None

    def __post_init__(self) -> None:
        expected = math.prod(self.shape) * ITEM_BYTES[self.dtype]
        if self.data is not None and len(self.data) != expected:
            raise ValueError(f"{len(self.data)} bytes for {self.dtype} of shape {self.shape}, expected {expected}")


class FileRef(Strict, kw_only=True):
    """A file of this checkpoint, known by its content. `file` is for people; readers derive the name from the sidecar's."""

    file: FileName
    size: Count
    sha256: Sha256


class Arch(Strict, kw_only=True):
    """How the *dense* network is built: a registered name, `torchvision:NAME` or `package.module:function`."""

    name: Name
    args: dict[str, Any] = field(default_factory=dict)


class Data(Strict, kw_only=True):
    """What the network was trained on: source, classes, and how pixels become inputs, (x / 255 - mean) / std."""

    name: Name
    dir: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    classes: Annotated[int, Meta(ge=1, le=10**7)]
    class_names: list[str] | None = None
    shape: Annotated[list[Annotated[int, Meta(ge=1, le=2**20)]], Meta(min_length=3, max_length=3)]
    mean: list[float]
    std: list[Annotated[float, Meta(gt=0)]]
    train_size: Count
    test_size: Count
    val: Annotated[float, Meta(ge=0, lt=1)] = 0.0  # share of the training split held out, by a fixed seed


class IndexSet(Strict, kw_only=True):
    """Which of `of` slices of the dense network an axis still has, ascending."""

    of: Annotated[int, Meta(ge=1, le=2**31)]
    kept: Annotated[list[Count], Meta(min_length=1)]

    def __post_init__(self) -> None:
        if any(b <= a for a, b in zip(self.kept, self.kept[1:], strict=False)) or self.kept[-1] >= self.of:
            raise ValueError(f"kept indices must be ascending and below {self.of}")


class Surgery(Strict, kw_only=True):
    """What was cut off: `axes[tensor][axis]` numbers an entry of `index`; `attributes[module]` holds changed attributes."""

    index: list[IndexSet] = field(default_factory=list)
    axes: dict[Name, dict[Annotated[str, Meta(pattern=r"^[0-9]$")], Count]] = field(default_factory=dict)
    attributes: dict[str, dict[Name, int | list[int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, axes in self.axes.items():
            for axis, number in axes.items():
                if number >= len(self.index):
                    raise ValueError(f"axis {axis} of {name} names index set {number} of {len(self.index)}")


class Mask(Strict, kw_only=True):
    """A mask of one weight tensor, bit-packed in C order, least significant bit first; 1 = kept."""

    shape: Shape
    bits: bytes

    def __post_init__(self) -> None:
        size = math.prod(self.shape)
        if len(self.bits) != (size + 7) // 8:
            raise ValueError(f"{len(self.bits)} bytes for a mask of shape {self.shape}")
        if size % 8 and self.bits[-1] >> (size % 8):
            raise ValueError("bits set beyond the end of the mask")

    @property
    def kept(self) -> int:
        """How many weights are kept."""
        return int.from_bytes(self.bits, "little").bit_count()


class ParamGroup(Strict, kw_only=True):
    """One parameter group: the names of its parameters and its options (lr, momentum, weight_decay, ...)."""

    params: list[Name]
    options: dict[str, float | int | bool | list[float] | None] = field(default_factory=dict)


class Optimizer(Strict, kw_only=True):
    """The optimizer: class name in `torch.optim`, groups, and state tensors by parameter name."""

    name: Literal["SGD", "Adam", "AdamW"]
    groups: list[ParamGroup]
    state: dict[Name, dict[Name, Array]] = field(default_factory=dict)


class Schedule(Strict, kw_only=True):
    """The learning rate over a run, as a factor of the base rate; all positions in epochs (fractions allowed)."""

    kind: Literal["constant", "step", "multistep", "cosine", "exponential"] = "constant"
    milestones: list[Annotated[float, Meta(ge=0)]] = field(default_factory=list)
    step_size: Annotated[float, Meta(gt=0)] | None = None
    gamma: Annotated[float, Meta(gt=0, le=1)] = 0.1
    period: Annotated[float, Meta(gt=0)] | None = None
    min_factor: Annotated[float, Meta(ge=0, le=1)] = 0.0
    warmup: Annotated[float, Meta(ge=0)] = 0.0


class Training(Strict, kw_only=True):
    """A run and the position in it: `step` batches into epoch `epoch` of `epochs`."""

    epochs: Count
    epoch: Count = 0
    step: Count = 0
    batch_size: Annotated[int, Meta(ge=1)]
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    lr: Annotated[float, Meta(gt=0)]
    schedule: Schedule
    augment: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    totals: list[float] = field(default_factory=list)  # running sums of the unfinished epoch: loss, correct, seen
    rng: dict[Name, Array] = field(default_factory=dict)
    method: dict[str, Any] = field(default_factory=dict)


class Score(Strict, kw_only=True):
    """A measurement on a named split. `top1` and `loss` for classification."""

    epoch: Count
    values: dict[str, float]


class EpochLog(Strict, kw_only=True):
    """One epoch of a learning curve."""

    epoch: Count
    lr: float
    train: dict[str, float]
    test: dict[str, float] | None = None


class Metrics(Strict, kw_only=True):
    """Scores of the weights in this file (`last`) and of the best epoch, both on `split`; `curve` has an entry an epoch."""

    split: Literal["test", "val"] = "test"
    last: Score | None = None
    best: Score | None = None
    curve: list[EpochLog] = field(default_factory=list)


class Step(Strict, kw_only=True):
    """One step of the pipeline that made this checkpoint."""

    command: Name
    options: dict[str, Any]
    versions: dict[str, str]
    parent: Sha256 | None = None
    cost: dict[str, float] = field(default_factory=dict)  # params, macs and the like right after the step
    score: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Cost(Strict, kw_only=True):
    """What turns shapes into MACs: a weight tensor's MACs are its elements times `positions` (outputs an element serves).

    `other_macs` counts products of activations with each other. `buffers` are the tensors that are not parameters.
    `layers` is the order in which weights act. All for one example of shape `input`.
    """

    input: Shape
    positions: dict[Name, Count] = field(default_factory=dict)
    other_macs: Count = 0
    buffers: list[Name] = field(default_factory=list)


class Sidecar(Strict, kw_only=True):
    """The whole of `X.json`."""

    format: Literal[1] = FORMAT
    weights: FileRef | None = None
    state: FileRef | None = None
    arch: Arch
    task: Name = "classification"
    data: Data | None = None
    cost: Cost
    surgery: Surgery = field(default_factory=Surgery)
    masks: dict[Name, Mask] = field(default_factory=dict)
    optimizer: Optimizer | None = None
    training: Training | None = None
    metrics: Metrics = field(default_factory=Metrics)
    history: list[Step] = field(default_factory=list)


def arrays(sidecar: Sidecar) -> Iterator[tuple[str, Array]]:
    """Every tensor inside a sidecar with its path there, which is its name in `X.state.safetensors`."""
    if sidecar.optimizer:
        for parameter, state in sidecar.optimizer.state.items():
            for key, array in state.items():
                yield f"optimizer/{parameter}/{key}", array
    if sidecar.training:
        for key, array in sidecar.training.rng.items():
            yield f"rng/{key}", array


def with_arrays(sidecar: Sidecar, replace: Callable[[str, Array], Array]) -> Sidecar:
    """A copy of a sidecar in which each array is `replace(path, array)`; everything else is shared with the original."""
    optimizer, training = sidecar.optimizer, sidecar.training
    if optimizer:
        state = {
            parameter: {key: replace(f"optimizer/{parameter}/{key}", array) for key, array in state.items()}
            for parameter, state in optimizer.state.items()
        }
        optimizer = msgspec.structs.replace(optimizer, state=state)
    if training:
        rng = {key: replace(f"rng/{key}", array) for key, array in training.rng.items()}
        training = msgspec.structs.replace(training, rng=rng)
    return msgspec.structs.replace(sidecar, optimizer=optimizer, training=training)


def decode(raw: bytes | memoryview) -> Sidecar:
    """Read a sidecar. Raises `msgspec.ValidationError` or `msgspec.DecodeError` with the path of what is wrong."""
    return msgspec.json.decode(raw, type=Sidecar)


def encode(sidecar: Sidecar) -> bytes:
    """The bytes of a sidecar: keys in the schema's order, indented for people and `diff`."""
    return msgspec.json.format(msgspec.json.encode(sidecar), indent=1) + b"\n"


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a sidecar (`report --schema`)."""
    return msgspec.json.schema(Sidecar)
