"""A training run in memory: everything that a step changes, made from a checkpoint and turned back into one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from prunecli import measure, surgery, tasks
from prunecli.checkpoint import Checkpoint, build, pack_mask, to_array, to_tensor, unpack_mask
from prunecli.data import Dataset
from prunecli.errors import DamagedError, UsageError
from prunecli.options import Execution
from prunecli.sidecar import Cost, Mask, Method, Metrics, Surgery, Training
from prunecli.training import optimizer as optimizers
from prunecli.training.hook import Hook
from prunecli.training.randomness import derived_seed, random_state, restore_random_state
from prunecli.training.source import check_output


@dataclass
class Run:
    """The live state of a run. `training` holds the position; hooks may read and change all of it between steps."""

    source: Checkpoint
    network: nn.Module
    task: tasks.Task
    data: Dataset
    optimizer: torch.optim.Optimizer
    training: Training
    metrics: Metrics
    masks: dict[str, Tensor]  # by weight name, of the weight's dtype: 1 = kept
    cuts: Surgery
    cost: Cost
    device: torch.device
    hook: Hook

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.data.train.steps(self.training.batch_size)

    @property
    def position(self) -> float:
        """The share of the run's steps that is over, from 0 to 1."""
        done = self.training.epoch * self.steps + self.training.step
        return done / max(self.training.epochs * self.steps, 1)

    def enforce_masks(self) -> None:
        """Zero masked weights and their optimizer state: stale momentum alone would move them again."""
        if self._masked is None:
            parameters = dict(self.network.named_parameters())
            self._masked = [(parameters[name], mask) for name, mask in self.masks.items()]
        tensors, masks = [], []
        for parameter, mask in self._masked:
            state = [t for t in self.optimizer.state.get(parameter, {}).values() if _is_like(t, parameter)]
            tensors += [parameter.data, *state]
            masks += [mask] * (1 + len(state))
        torch._foreach_mul_(tensors, masks)

    def clip(self, norm: float) -> None:
        """Scale the gradients down to this 2-norm where they are longer; those of masked weights do not count."""
        for name, mask in self.masks.items():
            if (gradient := self.network.get_parameter(name).grad) is not None:
                gradient.mul_(mask)
        clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], norm)

    _masked: list[tuple[nn.Parameter, Tensor]] | None = None

    def mask(self, kept: dict[str, Tensor]) -> None:
        """Mask weights by name, beside what is masked already: true (or not 0) stays."""
        parameters = dict(self.network.named_parameters())
        for name, mask in kept.items():
            new = torch.empty_like(parameters[name], requires_grad=False).copy_(mask)
            self.masks[name] = new * self.masks[name] if name in self.masks else new
        self._masked = None
        if self.masks:
            self.enforce_masks()

    def structure(self) -> surgery.Structure:
        """What can be cut from the network as it is now."""
        with self._in_eval_mode():
            return surgery.trace(self.network, self._example(), record=self.cuts)

    def shrink(self, structure: surgery.Structure, plan: surgery.Plan) -> None:
        """Cut the network with its optimizer, masks and the method's tensors, all in place; training goes on.

        Raises `TargetError` for a plan that the network does not follow.
        """
        parameters = dict(self.network.named_parameters())
        kinds = [self.masks, *self.hook.tensors.values()]
        along = [tensors for tensors in kinds if all(_is_like(t, parameters[name]) for name, t in tensors.items())]
        with self._in_eval_mode():
            surgery.verify(self.network, structure, plan, self._example())
            self.cuts = surgery.apply(
                self.network, structure, plan, optimizer=self.optimizer, along=along, record=self.cuts
            )
            self._lay_out()
            self.cost = measure.cost(self.network, self._example())
        self._masked = None

    def take_away(self, modules: Sequence[str]) -> None:
        """Take modules away with their parameters, from optimizer, masks and the method's tensors too."""
        along = [self.masks, *self.hook.tensors.values()]
        self.cuts = surgery.take_away(
            self.network, modules, self.cost.positions, optimizer=self.optimizer, along=along, record=self.cuts
        )
        with self._in_eval_mode():
            self.cost = measure.cost(self.network, self._example())
        self._masked = None

    def _lay_out(self) -> None:
        """Give all tensors the strides of a run that begins with them: rounding errors depend on those."""
        for tensor in [*self.network.parameters(), *self.network.buffers()]:
            tensor.data = _own_memory(tensor.data)
        for name, parameter in self.network.named_parameters():
            state = self.optimizer.state.get(parameter, {})
            along = [(tensors, name) for tensors in (self.masks, *self.hook.tensors.values()) if name in tensors]
            for tensors, key in [*along, *((state, key) for key in state)]:
                if _is_like(tensors[key], parameter):
                    tensors[key] = _laid_out(tensors[key], parameter)

    def sums(self) -> dict[str, float]:
        """Effective MACs and parameters as they are now, and the share of the original parameters that is gone."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self.network.state_dict().items()}
        sums = measure.totals(self.cost, shapes, self._packed(), self.cuts)
        sparsity = 1 - sums.nonzero_params / sums.original_params
        return {"sparsity": sparsity, "macs": sums.effective_macs, "params": sums.nonzero_params}

    def told(self) -> dict[str, float]:
        """What the log of an epoch says of the method at work; empty where none is."""
        return self.sums() | self.hook.numbers(self) if self.training.method.name else {}

    def checkpoint(self) -> Checkpoint:
        """The run as it stands, as a checkpoint from which it can go on."""
        sidecar = copy.copy(self.source.sidecar)
        sidecar.surgery, sidecar.cost, sidecar.masks = self.cuts, self.cost, self._packed()
        sidecar.optimizer = optimizers.capture(self.optimizer, self.network)
        sidecar.training = copy.copy(self.training)
        if self.training.method.name:
            sidecar.training.method = msgspec.structs.replace(
                self.training.method,
                state=msgspec.to_builtins(self.hook.state),
                tensors={
                    kind: {name: to_array(tensor) for name, tensor in tensors.items()}
                    for kind, tensors in self.hook.tensors.items()
                },
            )
        finished = self.training.epoch >= self.training.epochs
        sidecar.training.rng = {} if finished else random_state(self.device)
        sidecar.metrics = copy.deepcopy(self.metrics)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        return Checkpoint(weights=weights, sidecar=sidecar)

    def _packed(self) -> dict[str, Mask]:
        names = [name for name, _ in self.network.named_parameters() if name in self.masks]
        return {name: pack_mask(self.masks[name].bool()) for name in names}

    def examples(self) -> list[tuple[Tensor]]:
        """Inputs that have nothing in common, small and large: what is the same for all of them is a constant."""
        generator = torch.Generator().manual_seed(0)
        shape = (2, *self.cost.input)
        return [((scale * torch.randn(shape, generator=generator)).to(self.device),) for scale in (0.3, 1.0, 3.0)]

    def _example(self) -> Tensor:
        return torch.zeros(2, *self.cost.input, device=self.device)  # two, for batch norms in train mode

    @contextmanager
    def _in_eval_mode(self) -> Iterator[None]:
        modes = {module: module.training for module in self.network.modules()}
        self.network.eval()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


def start(checkpoint: Checkpoint, data: Dataset, execution: Execution, hook: Hook) -> Run:
    """The run that `checkpoint` describes, at its position, with `hook` as the method at work.

    Raises `UsageError` when it describes none, `DamagedError` for a state that is not the method's.
    """
    sidecar = checkpoint.sidecar
    if sidecar.training is None or sidecar.optimizer is None:
        raise UsageError("checkpoint: describes no training run", "begin one: finetune with --epochs")
    device = prepare(execution)
    network = build(checkpoint, device=str(device), trust=execution.trust)
    check_output(network, data.info, device)
    for tensor in [*network.parameters(), *network.buffers()]:
        tensor.data = _own_memory(tensor.data)  # the loaded tensors lie in a mapped file
    run = Run(
        source=checkpoint,
        network=network.train(),
        task=tasks.get(sidecar.task),
        data=data,
        optimizer=optimizers.build(sidecar.optimizer, network),
        training=copy.deepcopy(sidecar.training),
        metrics=copy.deepcopy(sidecar.metrics),
        masks=_live_masks(checkpoint, network),
        cuts=sidecar.surgery,
        cost=sidecar.cost,
        device=device,
        hook=hook,
    )
    _restore(hook, sidecar.training.method, network)
    if not run.training.rng:
        torch.manual_seed(derived_seed(run.training.seed, "run"))
    restore_random_state(run.training.rng, device)
    return run


def _restore(hook: Hook, saved: Method, network: nn.Module) -> None:
    parameters = dict(network.named_parameters())
    hint = "the sidecar was changed by hand, or belongs to other weights"
    try:
        hook.state = msgspec.convert(saved.state if saved.name else {}, hook.State)
    except msgspec.ValidationError as error:
        raise DamagedError(f"training: no state of --method {saved.name}: {error}", hint) from error
    for kind, arrays in saved.tensors.items():
        for name, array in arrays.items():
            if name not in parameters:
                raise DamagedError(f"training: {kind} of {name!r}, which is no parameter of the network", hint)
            parameter, tensor = parameters[name], to_tensor(array)
            if tensor.shape == parameter.shape:  # in the parameter's memory format
                tensor = _laid_out(tensor, parameter)
            hook.tensors.setdefault(kind, {})[name] = tensor.to(parameter.device)


def _own_memory(tensor: Tensor) -> Tensor:
    """A copy in dense memory, channels last where there are four axes, since convolutions are faster so."""
    return tensor.clone(memory_format=torch.channels_last if tensor.dim() == 4 else torch.contiguous_format)


def _laid_out(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A copy with the parameter's strides, on its device."""
    return torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)


def _live_masks(checkpoint: Checkpoint, network: nn.Module) -> dict[str, Tensor]:
    parameters = dict(network.named_parameters())
    masks = {}
    for name, packed in checkpoint.sidecar.masks.items():
        if name not in parameters:
            raise DamagedError(
                f"mask of {name}: not a parameter of the network", "the sidecar belongs to other weights"
            )
        masks[name] = torch.empty_like(parameters[name], requires_grad=False).copy_(unpack_mask(packed))
    return masks


def _is_like(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def prepare(execution: Execution) -> torch.device:
    """Set the number of threads that `execution` asks for and return its device.

    Raises `UsageError` when the device is not there.
    """
    if execution.threads:
        torch.set_num_threads(execution.threads)
    try:
        return torch.empty(0, device=execution.device).device
    except (RuntimeError, AssertionError) as error:  # the latter from a torch built without CUDA
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"--device {execution.device}: {reason}", "use --device cpu") from error
