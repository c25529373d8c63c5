"""A training run in memory: everything that a step changes, made from a checkpoint and turned back into one."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunecli import tasks
from prunecli.checkpoint import Checkpoint, build, to_array, to_tensor, unpack_mask
from prunecli.data import Dataset
from prunecli.errors import DamagedError, UsageError
from prunecli.options import Execution
from prunecli.sidecar import Metrics, Training
from prunecli.training import optimizer as optimizers
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
    device: torch.device

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

    _masked: list[tuple[nn.Parameter, Tensor]] | None = None

    def checkpoint(self) -> Checkpoint:
        """The run as it stands, as a checkpoint from which it can go on."""
        sidecar = copy.copy(self.source.sidecar)
        sidecar.optimizer = optimizers.capture(self.optimizer, self.network)
        sidecar.training = copy.copy(self.training)
        finished = self.training.epoch >= self.training.epochs
        sidecar.training.rng = {} if finished else random_state(self.device)
        sidecar.metrics = copy.deepcopy(self.metrics)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        return Checkpoint(weights=weights, sidecar=sidecar)


def start(checkpoint: Checkpoint, data: Dataset, execution: Execution) -> Run:
    """The run that `checkpoint` describes, at its position. Raises `UsageError` when it describes none."""
    sidecar = checkpoint.sidecar
    if sidecar.training is None or sidecar.optimizer is None:
        raise UsageError("checkpoint: describes no training run", "begin one: finetune with --epochs")
    device = prepare(execution)
    network = build(checkpoint, device=str(device), trust=execution.trust)
    check_output(network, data.info, device)
    for tensor in [*network.parameters(), *network.buffers()]:
        # own memory, since the loaded tensors lie in a mapped file; channels last, since convolutions are faster so
        format = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
        tensor.data = tensor.data.clone(memory_format=format)
    run = Run(
        source=checkpoint,
        network=network.train(),
        task=tasks.get(sidecar.task),
        data=data,
        optimizer=optimizers.build(sidecar.optimizer, network),
        training=copy.deepcopy(sidecar.training),
        metrics=copy.deepcopy(sidecar.metrics),
        masks=_live_masks(checkpoint, network),
        device=device,
    )
    if not run.training.rng:
        torch.manual_seed(derived_seed(run.training.seed, "run"))
    restore_random_state(run.training.rng, device)
    return run


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


def derived_seed(seed: int, *purpose: object) -> int:
    """A seed for one purpose, independent of the seeds for others."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of torch's random generators (dropout draws from them)."""
    states = {"cpu": to_array(torch.get_rng_state())}
    if device.type == "cuda":
        states["cuda"] = to_array(torch.cuda.get_rng_state(device))
    return states


def restore_random_state(states: dict[str, Any], device: torch.device) -> None:
    """Put the generators where `random_state` saw them. Raises `DamagedError` for what is no state of theirs."""
    try:
        if "cpu" in states:
            torch.set_rng_state(to_tensor(states["cpu"]))
        if "cuda" in states and device.type == "cuda":
            torch.cuda.set_rng_state(to_tensor(states["cuda"]), device)
    except (RuntimeError, TypeError) as error:
        raise DamagedError(
            f"training: its random state is none of this torch's: {error}", "begin the run again"
        ) from error
