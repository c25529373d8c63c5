"""The sidecar: what `X.json` beside `X.safetensors` may contain, as a typed schema.

Everything here is plain data and imports neither torch nor numpy, so that `report --json` starts fast. A sidecar is
untrusted input: decoding (in `prunecli.encoding`) checks every type, range and name, and no path in it is ever opened.
Cross-checks against the weights (shapes, index ranges) are in `prunecli.consistency`. The descriptions of fields in the
docstrings are part of the JSON Schema.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, field

from prunecli.cuts import Count as Count
from prunecli.cuts import Gone as Gone
from prunecli.cuts import IndexSet as IndexSet
from prunecli.cuts import Name, Strict
from prunecli.cuts import Shape as Shape
from prunecli.cuts import Surgery as Surgery
from prunecli.cuts import elements as elements

FORMAT: Final = 1
MAX_EXAMPLE: Final = 2**28  # elements: examples are made of this shape, so it bounds what a sidecar can ask for

FileName = Annotated[str, Meta(pattern=r"^[^/\\\x00]{1,255}$")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
DType = Literal["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
ITEM_BYTES = {
    "float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2,
    "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip


class Array(Strict, kw_only=True):
    """A tensor: little-endian, C-contiguous bytes.

    dtype: Type of its elements, as torch calls it.
    shape: Lengths of its axes; empty for a single number.
    data: Its bytes in base64; null when they are in `X.state.safetensors`, under this array's path in the sidecar.
    """

    dtype: DType
    shape: Shape
    data: bytes | None = None

    def __post_init__(self) -> None:
        expected = elements(self.shape) * ITEM_BYTES[self.dtype]
        if self.data is not None and len(self.data) != expected:
            raise ValueError(f"{len(self.data)} bytes for {self.dtype} of shape {self.shape}, expected {expected}")


class FileRef(Strict, kw_only=True):
    """A file of this checkpoint, known by its content.

    file: Its name, for people: readers derive the name from the sidecar's.
    size: Its length in bytes.
    sha256: SHA-256 of its content, in hexadecimal.
    """

    file: FileName
    size: Count
    sha256: Sha256


class Arch(Strict, kw_only=True):
    """How the *dense* network is built.

    name: A built-in network, `torchvision:NAME`, `timm:NAME` or, imported only if trusted, `package.module:function`.
    args: Keyword arguments of its constructor.
    """

    name: Name
    args: dict[str, Any] = field(default_factory=dict)


class Data(Strict, kw_only=True):
    """What the network was trained on, and how pixels become inputs: (x / 255 - mean) / std.

    name: A known data set, or `package.module:function`, which is only imported when trusted.
    dir: Folder that the data was read from, as it was given; null for data that is built in.
    args: Arguments of the data set.
    classes: Number of classes.
    class_names: A name for each class, in the order of the outputs; null when unknown.
    shape: Channels, height and width of an input.
    mean: Mean of each channel that is subtracted from x / 255.
    std: Standard deviation of each channel that x / 255 - mean is divided by.
    train_size: Number of training examples.
    test_size: Number of test examples.
    val: Share of the training split that is held out for validation, by a fixed seed.
    """

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
    val: Annotated[float, Meta(ge=0, lt=1)] = 0.0


class Mask(Strict, kw_only=True):
    """A mask of one weight tensor, which is authoritative: a live weight may be zero.

    shape: Shape of the tensor.
    bits: One bit a weight in C order, 1 = kept, least significant bit first, in base64.
    """

    shape: Shape
    bits: bytes

    def __post_init__(self) -> None:
        size = elements(self.shape)
        if len(self.bits) != (size + 7) // 8:
            raise ValueError(f"{len(self.bits)} bytes for a mask of shape {self.shape}")
        if size % 8 and self.bits[-1] >> (size % 8):
            raise ValueError("bits set beyond the end of the mask")

    @property
    def kept(self) -> int:
        """How many weights are kept."""
        return int.from_bytes(self.bits, "little").bit_count()


class ParamGroup(Strict, kw_only=True):
    """One parameter group of the optimizer.

    params: Names of its parameters.
    options: Its options: lr, momentum, weight_decay, ...
    """

    params: list[Name]
    options: dict[str, float | int | bool | list[float] | None] = field(default_factory=dict)


class Optimizer(Strict, kw_only=True):
    """The optimizer.

    name: Its class in `torch.optim`.
    groups: Its parameter groups.
    state: For each parameter: its state tensors (momentum_buffer, exp_avg, ...) by name.
    """

    name: Literal["SGD", "Adam", "AdamW"]
    groups: list[ParamGroup]
    state: dict[Name, dict[Name, Array]] = field(default_factory=dict)


class Schedule(Strict, kw_only=True):
    """The learning rate over a run, as a factor of the base rate; lengths are in epochs, fractions allowed.

    kind: Which curve it follows.
    milestones: multistep: epochs at which the rate is multiplied by gamma.
    step_size: step: epochs between two multiplications by gamma.
    gamma: step, multistep, exponential (each epoch): what the rate is multiplied by.
    period: cosine: length of a cycle, after which it restarts; null for one cycle over the run.
    min_factor: cosine: factor at the end of a cycle.
    warmup: Length of the linear rise from zero at the start of the run.
    """

    kind: Literal["constant", "step", "multistep", "cosine", "exponential"] = "constant"
    milestones: list[Annotated[float, Meta(ge=0)]] = field(default_factory=list)
    step_size: Annotated[float, Meta(gt=0)] | None = None
    gamma: Annotated[float, Meta(gt=0, le=1)] = 0.1
    period: Annotated[float, Meta(gt=0)] | None = None
    min_factor: Annotated[float, Meta(ge=0, le=1)] = 0.0
    warmup: Annotated[float, Meta(ge=0)] = 0.0


class Method(Strict, kw_only=True):
    """A pruning method at work in a run.

    name: Its name, as `--method` takes it; null where none is at work.
    settings: Its settings by name.
    state: Numbers that it keeps from step to step.
    tensors: What it keeps of parameters (accumulated scores, penalty factors): kind to parameter to tensor.
    """

    name: Name | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    tensors: dict[Name, dict[Name, Array]] = field(default_factory=dict)


class Training(Strict, kw_only=True):
    """A run and the position in it.

    epochs: Length of the run.
    epoch: Epochs that are over.
    step: Batches of the current epoch that are over.
    batch_size: Examples in a batch.
    seed: Seed of the order, the augmentation and what else is random.
    lr: Base learning rate.
    schedule: Curve of the learning rate.
    augment: Whether training images are augmented.
    precision: Number format of the forward pass.
    clip_grad: Largest 2-norm of the loss' gradient; 0 for any.
    totals: Running sums of the current epoch: loss times examples, examples.
    rng: States of torch's random generators by device; empty when the run is over.
    method: The pruning method that is at work in the run, with its state.
    """

    epochs: Count
    epoch: Count = 0
    step: Count = 0
    batch_size: Annotated[int, Meta(ge=1)]
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    lr: Annotated[float, Meta(gt=0)]
    schedule: Schedule
    augment: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    clip_grad: Annotated[float, Meta(ge=0)] = 0.0
    totals: list[float] = field(default_factory=list)
    rng: dict[Name, Array] = field(default_factory=dict)
    method: Method = field(default_factory=Method)

    def __post_init__(self) -> None:
        if len(self.totals) not in (0, 2):
            raise ValueError(f"{len(self.totals)} totals, expected a loss and a number of examples, or none")


class Score(Strict, kw_only=True):
    """A measurement.

    epoch: Epochs trained when it was taken.
    values: Name to value: `top1` (share of correct answers) and `loss` for classification.
    """

    epoch: Count
    values: dict[str, float]


class EpochLog(Strict, kw_only=True):
    """One epoch of a learning curve.

    epoch: Its number, from 1.
    lr: Learning rate of its last step.
    train: Running values on the training split (`loss`).
    score: Scores after the epoch on the split that `metrics.split` names.
    method: What the method at work had to tell: the share pruned, MACs, its penalty; `name/layer` for single layers.
    """

    epoch: Count
    lr: float
    train: dict[str, float]
    score: dict[str, float] | None = None
    method: dict[str, float] = field(default_factory=dict)


class Metrics(Strict, kw_only=True):
    """Scores of the run that made these weights.

    split: Split on which `last`, `best` and the curve's scores were measured.
    last: Scores of the weights in this file; null when they were not measured.
    best: Scores of the best epoch, whose weights are not kept unless it is the last; null when there was none.
    test: Scores on the test split of the weights in this file, where `split` is another; null when not measured.
    curve: An entry for each epoch of the run.
    """

    split: Literal["test", "val"] = "test"
    last: Score | None = None
    best: Score | None = None
    test: Score | None = None
    curve: list[EpochLog] = field(default_factory=list)


class Step(Strict, kw_only=True):
    """One step of the pipeline that made this checkpoint.

    command: The subcommand.
    options: Its resolved options, without output paths.
    versions: Versions of prunecli and torch that ran it.
    parent: SHA-256 of the weights that it started from; null at the start of a pipeline.
    cost: Parameters and multiply-adds right after the step.
    score: Scores right after the step.
    notes: What it had to say.
    """

    command: Name
    options: dict[str, Any]
    versions: dict[str, str]
    parent: Sha256 | None = None
    cost: dict[str, float] = field(default_factory=dict)
    score: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Cost(Strict, kw_only=True):
    """What turns shapes into multiply-adds (MACs) of one example.

    input: Shape of the example that it was measured with.
    positions: For each weight tensor, in the order in which they act: its MACs are its elements times this number.
    other_macs: Multiply-adds of activations with each other.
    buffers: Names of the tensors that are not parameters.
    """

    input: Shape
    positions: dict[Name, Count] = field(default_factory=dict)
    other_macs: Count = 0
    buffers: list[Name] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 1 <= math.prod(self.input) <= MAX_EXAMPLE:
            raise ValueError(f"an example of shape {self.input} has no elements, or more than {MAX_EXAMPLE}")


class Sidecar(Strict, kw_only=True):
    """The sidecar of a checkpoint, `X.json`: everything but the weights.

    format: Version of this format.
    weights: The file `X.safetensors` that it belongs to.
    state: The file `X.state.safetensors` with the arrays whose data is null here; null when there is none.
    arch: How the dense network is built.
    task: What the network does.
    data: What it was trained on; null when unknown.
    cost: What its multiply-adds are computed from.
    surgery: What was cut off the dense network.
    masks: For each masked weight tensor: which weights are kept.
    optimizer: The optimizer's state; null when nothing was trained yet.
    training: The run and the position in it; null when nothing was trained yet.
    metrics: How good it is.
    history: The steps of the pipeline that made it, first to last.
    checksum: SHA-256 of all bytes before this line; null after an edit by hand, and in memory.
    """

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
    checksum: Sha256 | None = None


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a sidecar (`report --schema`), with a description of every field."""
    schema = msgspec.json.schema(Sidecar)
    for name, definition in schema["$defs"].items():
        summary, _, fields = (globals()[name].__doc__ or "").partition("\n\n")
        definition["description"] = summary
        for key, text in re.findall(r"^    (\w+): (.+)$", fields, re.MULTILINE):
            definition["properties"][key]["description"] = text
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "prunecli sidecar"} | schema
