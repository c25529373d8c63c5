"""Checkpoints: the file pair as tensors, the only code that reads or writes them (the file protocol is in `files`)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from prunecli import encoding, files, models
from prunecli.errors import DamagedError, PruneError, UsageError
from prunecli.models.absent import Nothing, check_absent, leave_out
from prunecli.models.unfilled import unfilled
from prunecli.sidecar import Arch, Array, DType, Mask, Sidecar
from prunecli.tensorfile import CODES, RawTensor

DTYPES: dict[torch.dtype, DType] = {getattr(torch, name): name for name in CODES}
INLINE_LIMIT = 256 * 2**20  # bytes of arrays that the sidecar holds itself


@dataclass
class Checkpoint:
    """A network's `state_dict` and its sidecar; `path` and `sha256` (of the weights file) say where it came from."""

    weights: dict[str, Tensor]
    sidecar: Sidecar
    path: Path | None = None
    sha256: str | None = None

    @property
    def trained(self) -> list[str]:
        """The names of the weights that are trained: those of the optimizer, else all that are no buffers."""
        if self.sidecar.optimizer:
            return [name for group in self.sidecar.optimizer.groups for name in group.params]
        buffers = set(self.sidecar.cost.buffers)
        return [name for name in self.weights if name not in buffers]


def save(checkpoint: Checkpoint, path: str | Path, *, inline_limit: int = INLINE_LIMIT) -> str:
    """Replace the checkpoint `path` as a whole, or leave it untouched; returns the SHA-256 of its weights file.

    Arrays of more than `inline_limit` bytes in all go to X.state.safetensors. Nothing of `checkpoint` is changed.
    Raises `PruneError` when the system refuses to write, or for values that no checkpoint may hold (NaN).
    """
    sidecar = checkpoint.sidecar
    weights = {key: _raw(tensor, f"{path}: tensor {key!r}") for key, tensor in checkpoint.weights.items()}
    _finite(_tensors(checkpoint.weights, sidecar), sidecar.cost.buffers, path)
    state: dict[str, RawTensor] = {}
    arrays = dict(encoding.arrays(sidecar))
    if sum(len(array.data or b"") for array in arrays.values()) > min(inline_limit, files.MAX_SIDECAR // 2):
        state = {
            key: RawTensor(array.dtype, tuple(array.shape), memoryview(array.data or b""))
            for key, array in arrays.items()
        }
        sidecar = encoding.with_arrays(sidecar, lambda _, array: Array(dtype=array.dtype, shape=array.shape))
    return files.write_pair(path, sidecar, weights, state)


def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint; its weights are views of the mapped file, which writing to them does not change.

    Raises `DamagedError` when a file is missing, damaged, or holds values that no checkpoint may hold (NaN).
    """
    pair = files.open_pair(path)
    sidecar, state = pair.sidecar, pair.state or {}
    if state:
        sidecar = encoding.with_arrays(sidecar, lambda key, array: _filled(array, state[key]))
    weights = {name: _tensor(tensor) for name, tensor in pair.weights.items()}
    _finite(_tensors(weights, sidecar), sidecar.cost.buffers, path)
    return Checkpoint(weights, sidecar, pair.paths.weights, pair.sha256)


def _filled(array: Array, stored: RawTensor) -> Array:
    return Array(dtype=array.dtype, shape=array.shape, data=bytes(stored.data))


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The weights of a checkpoint, of a plain safetensors file, or of a `.pt`/`.pth` file of nothing but tensors.

    A `.pt` file may hold them under `state_dict`, `model_state_dict` or `model`, their names beginning with `module.`.
    Raises `DamagedError` for anything else, such as a pickle of objects, which is never unpickled.
    """
    path = Path(path)
    if path.suffix in (".pt", ".pth"):
        weights = _unwrapped(_torch_load(path), path)
    elif files.exists(path):
        return load(path).weights
    else:
        weights = {name: _tensor(tensor) for name, tensor in files.read_tensors(path).items()}
    _finite(weights.items(), (), path)
    return weights


def _torch_load(path: Path) -> object:
    if not path.is_file():
        raise DamagedError(f"{path}: no such file", "check the path")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no class of error of its own
        hint = "save its state_dict() alone: torch.save(model.state_dict(), path)"
        # its text speaks of options of torch.load, or is a number
        raise DamagedError(f"{path}: damaged, or not a file of nothing but weights", hint) from error


def _unwrapped(content: object, path: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise DamagedError(f"{path}: holds no weights", "save a state_dict(): torch.save(model.state_dict(), path)")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.dtype not in DTYPES:
            message = f"{path}: {name!r} is no tensor that a checkpoint can hold"
            raise DamagedError(message, "save a state_dict() of plain tensors: torch.save(model.state_dict(), path)")
    wrapped = all(name.startswith("module.") for name in content)  # by DataParallel
    return {name.removeprefix("module.") if wrapped else name: tensor for name, tensor in content.items()}


def to_array(tensor: Tensor) -> Array:
    """A copy of a tensor as plain data. Raises `PruneError` for a dtype that checkpoints do not hold."""
    raw = _raw(tensor, "a tensor")
    return Array(dtype=raw.dtype, shape=list(raw.shape), data=bytes(raw.data))


def to_tensor(array: Array) -> Tensor:
    """A tensor of its own memory from plain data."""
    data = memoryview(bytearray(array.data or b""))
    return _tensor(RawTensor(array.dtype, tuple(array.shape), data))


def pack_mask(mask: Tensor) -> Mask:
    """A boolean tensor as bits, least significant first, C order."""
    bits = numpy.packbits(mask.detach().cpu().contiguous().numpy(), axis=None, bitorder="little")
    return Mask(shape=list(mask.shape), bits=bits.tobytes())


def unpack_mask(mask: Mask) -> Tensor:
    """The boolean tensor of a bit-packed mask."""
    shape = tuple(mask.shape)
    bits = numpy.frombuffer(mask.bits, dtype=numpy.uint8)
    flat = numpy.unpackbits(bits, count=int(numpy.prod(shape, dtype=numpy.int64)), bitorder="little")
    return torch.from_numpy(flat).view(torch.bool).reshape(shape)


def _raw(tensor: Tensor, what: str) -> RawTensor:
    dtype = DTYPES.get(tensor.dtype) if isinstance(tensor, Tensor) and tensor.layout == torch.strided else None
    if dtype is None:
        kind = f"{tensor.dtype}, {tensor.layout}" if isinstance(tensor, Tensor) else type(tensor).__name__
        hint = f"convert it to a plain tensor of one of {', '.join(CODES)}"
        raise PruneError(f"{what} is of a kind that checkpoints do not hold: {kind}", hint)
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return RawTensor(dtype, tuple(tensor.shape), flat.view(torch.uint8).numpy().data)


def _tensor(raw: RawTensor) -> Tensor:
    dtype = getattr(torch, raw.dtype)
    if not raw.data.nbytes:
        return torch.empty(raw.shape, dtype=dtype)
    return torch.frombuffer(raw.data, dtype=dtype).reshape(raw.shape)


def _tensors(weights: Mapping[str, Tensor], sidecar: Sidecar) -> Iterator[tuple[str, Tensor]]:
    """Everything with values in a checkpoint, one tensor at a time."""
    yield from weights.items()
    for key, array in encoding.arrays(sidecar):
        if array.dtype.startswith(("float", "bfloat")):
            yield key, to_tensor(array)


def _finite(tensors: Iterable[tuple[str, Tensor]], buffers: Collection[str], path: str | Path) -> None:
    """Raise `DamagedError` for a NaN, or for an infinity outside of `buffers` (causal masks hold some)."""
    for name, tensor in tensors:
        if not tensor.is_floating_point():
            continue
        # One cheap pass: a sum of finite values that overflows is looked at again, a sum over a NaN is never finite.
        total = tensor.sum(dtype=torch.float32 if tensor.element_size() < 4 else tensor.dtype)
        if math.isfinite(total.item()):
            continue
        bad = tensor.isnan() if name in buffers else ~tensor.isfinite()
        if bad.any():
            hint = "go back to an earlier checkpoint, and train it with a lower learning rate"
            raise DamagedError(f"{path}: tensor {name!r} has {int(bad.sum())} values that are not finite", hint)


def build(checkpoint: Checkpoint, *, device: str | torch.device = "cpu", trust: Collection[str] = ()) -> nn.Module:
    """The network of a checkpoint, in eval mode; on the CPU its tensors have the checkpoint's memory, not copies.

    Raises `DamagedError` when the weights are not those of the architecture that the sidecar names, and what
    `models.build` raises for a name that is not known or not trusted.
    """
    arch, path = checkpoint.sidecar.arch, checkpoint.path or "checkpoint"
    network = _dense(arch, trust, path)
    if checkpoint.sidecar.surgery.absent:
        _take_away(network.eval(), checkpoint, path)
    _set_attributes(network, checkpoint.sidecar.surgery.attributes, path)
    _assign(network, checkpoint, path)
    _cut_unstored(network, checkpoint, path)
    return network.to(device).eval()


def _take_away(network: nn.Module, checkpoint: Checkpoint, path: str | Path) -> None:
    """Leave out the modules that the sidecar says are absent. Untrusted: the network must still put something out."""
    absent = checkpoint.sidecar.surgery.absent
    check_absent(network, checkpoint.sidecar.surgery)
    device = next((tensor.device for tensor in network.parameters()), None)
    example = torch.zeros(1, *checkpoint.sidecar.cost.input, device=device)
    before = _output(network, example)
    leave_out(network, absent)
    after = _output(network, example)
    if isinstance(after, Exception) and isinstance(before, Exception):
        return  # it asks for values, which there are none of yet
    if isinstance(after, Exception | Nothing):
        why = f"does not run: {type(after).__name__}: {after}" if isinstance(after, Exception) else "has no output"
        message = f"{path}: without {', '.join([*absent][:3])} the network {why.partition(chr(10))[0]}"
        raise DamagedError(message, "the sidecar was changed by hand")


def _output(network: nn.Module, example: Tensor) -> Any:
    """What the network puts out, or the error that it raises."""
    with torch.no_grad():
        try:
            return network(example)
        except Exception as error:  # of any kind: it is the network's own code that runs
            return error


def _dense(arch: Arch, trust: Collection[str], path: str | Path) -> nn.Module:
    """The dense network, without memory or initialisation of what the checkpoint will fill."""
    with contextlib.suppress(Exception), unfilled():  # a constructor that computes with values cannot
        network = models.build(arch.name, arch.args, trust)
        if not any(tensor.is_meta for tensor in _unstored(network)):
            return network
    try:
        with torch.random.fork_rng(devices=[]):
            return models.build(arch.name, arch.args, trust)
    except UsageError as error:
        if ":" in arch.name and not arch.name.startswith(("torchvision:", "timm:")):
            raise  # the user's own code, or the user's trust in it
        raise DamagedError(f"{path}: {error.message}", error.hint) from error


def _unstored(network: nn.Module) -> Iterator[Tensor]:
    """Tensors of a network that its `state_dict` lacks: buffers that are not persistent, plain attributes."""
    for module in network.modules():
        for name, tensor in module.named_buffers(recurse=False):
            if name in module._non_persistent_buffers_set:
                yield tensor
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))


def _set_attributes(
    network: nn.Module, attributes: Mapping[str, Mapping[str, int | list[int]]], path: str | Path
) -> None:
    """Set what surgery changed.

    Untrusted: only numbers that a module keeps as its own public attributes are set, and to less than they are, as
    cutting does: a larger padding, say, would take any amount of memory.
    """
    modules = dict(network.named_modules(remove_duplicate=False))
    for module_name, values in attributes.items():
        for name, value in values.items():
            old = vars(modules[module_name]).get(name) if module_name in modules else None
            known = not name.startswith("_") and isinstance(value, list) == isinstance(old, (list, tuple))
            if not known or not _is_cut(_listed(value), _listed(old)):
                message = f"{path}: surgery sets {module_name}.{name} to {value}, the network has {old!r} there"
                raise DamagedError(message, "the sidecar was written for another architecture")
            setattr(modules[module_name], name, tuple(_listed(value)) if isinstance(old, tuple) else value)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _is_cut(new: list[int], old: list[Any]) -> bool:
    """Whether `new` are the numbers `old` or smaller ones that are not zero."""
    return len(new) == len(old) and all(type(b) is int and 1 <= a <= b for a, b in zip(new, old, strict=True))


@dataclass(frozen=True)
class _Slot:
    """Where a tensor of the `state_dict` lives, and the tensor that is there now."""

    module: nn.Module
    attribute: str
    old: Tensor


def _assign(network: nn.Module, checkpoint: Checkpoint, path: str | Path) -> None:
    """Replace every parameter and stored buffer by the checkpoint's tensor; what was tied stays tied."""
    slots = dict(_slots(network))
    missing, unexpected = slots.keys() - checkpoint.weights.keys(), checkpoint.weights.keys() - slots.keys()
    for names, what in ((missing, "lack"), (unexpected, "have")):
        if names:
            listed = ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
            message = f"{path}: the weights {what} {listed}, unlike {checkpoint.sidecar.arch.name}"
            raise DamagedError(message, "the weights are of another architecture than the sidecar's")
    assigned: dict[int, Tensor] = {}  # by id of the old tensor
    for name, slot in slots.items():
        tensor = checkpoint.weights[name]
        _check_slot(name, slot.old, tensor, checkpoint.sidecar, path)
        new = assigned.get(id(slot.old))
        if new is None:
            # an object of its own, with the same memory: what is cut from the network stays in the checkpoint
            trainable = isinstance(slot.old, nn.Parameter)
            new = nn.Parameter(tensor, slot.old.requires_grad) if trainable else tensor.detach()
            assigned[id(slot.old)] = new
        elif not torch.equal(new, tensor):
            raise DamagedError(f"{path}: {name} differs from the tensor that it is tied to", "restore the weights")
        setattr(slot.module, slot.attribute, new)


def _slots(network: nn.Module) -> Iterator[tuple[str, _Slot]]:
    """The tensors of the `state_dict`, those of shared modules under each of their names."""
    for prefix, module in network.named_modules(remove_duplicate=False):
        stored = dict(module._parameters)
        stored |= {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}
        for name, tensor in stored.items():
            if tensor is not None:
                yield f"{prefix}.{name}" if prefix else name, _Slot(module, name, tensor)


def _check_slot(name: str, old: Tensor, tensor: Tensor, sidecar: Sidecar, path: str | Path) -> None:
    expected = list(old.shape)
    for axis, number in sidecar.surgery.axes.get(name, {}).items():
        index = sidecar.surgery.index[number]
        if int(axis) < len(expected) and expected[int(axis)] == index.of:
            expected[int(axis)] = len(index.kept)
    if list(tensor.shape) != expected or tensor.is_floating_point() != old.is_floating_point():
        message = f"{path}: {name} is {tensor.dtype} of shape {list(tensor.shape)}, expected {old.dtype} of {expected}"
        raise DamagedError(message, f"the weights are of another architecture than {sidecar.arch.name}")


def _cut_unstored(network: nn.Module, checkpoint: Checkpoint, path: str | Path) -> None:
    """Cut the buffers that surgery cut and that the weights file lacks, as they are not persistent."""
    surgery = checkpoint.sidecar.surgery
    for name in surgery.axes.keys() - checkpoint.weights.keys():
        buffer = dict(network.named_buffers()).get(name)
        for axis, number in surgery.axes[name].items():
            index = surgery.index[number]
            if buffer is None or buffer.shape[int(axis) : int(axis) + 1] != (index.of,):
                message = f"{path}: surgery cuts axis {axis} of {name!r}, which the network has not"
                raise DamagedError(message, "the sidecar was written for another architecture")
            buffer = buffer.index_select(int(axis), torch.tensor(index.kept))
        if buffer is not None:
            module, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(module), attribute, buffer)
