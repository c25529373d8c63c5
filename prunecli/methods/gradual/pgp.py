"""Progressive gradient pruning: after every epoch a few filters are cut, and others zeroed that may come back.

Nguyen-Meidine et al. 2019, *Progressive Gradient Pruning for Classification, Detection and Domain Adaptation*. After
epoch t of T a layer of n0 filters is to have n0 p_t, p_t = (1 - t_prune)^(t/T) (equation 1). Of the n - n0 p_t weakest
(equation 2, with n0 in the target alone, as in the authors' code) the share r is removed, with its momentum, and the
rest zeroed; in the last epoch all go, so that ceil(n0 p_T) stay. Optimizer and schedule go on (in the code the schedule
loses its optimizer), and of a zeroed filter its weights alone are (the code also clears what makes it come back).

PGP takes the scores in a further pass over the training examples after each epoch: in the files' order, without
augmentation, in eval mode, so that batch-norm statistics stay. In a residual stage the projection's scores or, where
there is none, the first layer's choose for all layers.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Literal

import torch
from msgspec import Meta, field
from torch import Tensor

from prunecli.allocate.counts import GUARD
from prunecli.errors import DamagedError, TargetError, UsageError
from prunecli.methods.gradual.filters import Filters, filters, slices, zero
from prunecli.methods.gradual.gathered import Criterion, Gathered
from prunecli.methods.gradual.saved import HINT
from prunecli.methods.gradual.settings import Target
from prunecli.progress import Say, silent
from prunecli.surgery import Member, Plan
from prunecli.training import Hook, Run, State
from prunecli.training.evaluate import autocast


class Settings(Target, frozen=True, kw_only=True):
    """`sparsity` is the paper's t_prune."""

    criterion: Annotated[Criterion, Meta(description="what is weak: gn_g, gn_s, tw, taylor, l1 or l2")] = "gn_g"
    r: Annotated[float, Meta(ge=0, le=1, description="share of the weak filters that is removed at once")] = 0.5
    exponent: Annotated[
        Literal["paper", "code"], Meta(description="of p_t: t / T as in the paper, or (t + 1) / T as in the code")
    ] = "paper"
    reset: Annotated[
        Literal["weights", "code"], Meta(description="what is zeroed: weights, or biases and batch norms too, as code")
    ] = "weights"
    residual: Annotated[
        Literal["shared", "no-downsample"],
        Meta(description="shared, or no-downsample: outputs behind projections, or with appended channels, stay whole"),
    ] = "shared"


class Before(State):
    """Of the network before the first cut, by group: units, and the projection that chooses, where there is one."""

    units: dict[str, int] = field(default_factory=dict)
    projections: dict[str, str] = field(default_factory=dict)


class Method(Hook):
    """Convolutions, what belongs to their filters, and their readers; linear layers only where they are named."""

    State = Before

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.log: dict[str, float] = {}

    def begin(self, run: Run, say: Say) -> None:
        self.say = say
        if not run.training.epochs:
            raise UsageError("--epochs 0: filters go after each epoch", "give a number of epochs, such as 40")
        first = (run.training.epoch, run.training.step) == (0, 0)
        found = filters(run, self.settings, say, structure=None if first else run.structure())
        if first:
            whole = self.settings.residual == "no-downsample"
            wanted = {key: f for key, f in found.items() if not (whole and (f.projection or f.appended))}
            self.state.units = {key: f.group.units for key, f in wanted.items()}
            self.state.projections = {key: f.projection for key, f in wanted.items() if f.projection}
        if not first and not self.state.units:
            raise DamagedError("training: no units of --method " + str(run.training.method.name), HINT)
        if not self.state.units:
            raise TargetError("nothing to prune: all layers are residual outputs", "add --method-arg residual=shared")
        found = self._as_before(found)
        names = [m.tensor for f in found.values() for m in f.scorers]
        self.gathered = Gathered(self.settings.criterion, run.network, names, self.tensors.setdefault("scores", {}))

    def after_epoch(self, run: Run) -> None:
        self.gather(run)
        epoch, epochs = run.training.epoch + 1, run.training.epochs
        exponent = (epoch + (self.settings.exponent == "code")) / epochs
        structure, plan = run.structure(), Plan()
        softened: list[tuple[list[Member], Tensor]] = []
        for key, f in self._as_before(filters(run, self.settings, silent, structure=structure)).items():
            scores = self.gathered.scores(f)
            needed = f.group.needed(scores.tolist())
            scores[needed] = torch.inf
            order = torch.argsort(scores, stable=True)
            left = self.state.units[key] * (1 - f.share) ** exponent
            weak = max(0, min(math.floor(len(order) - left + GUARD), len(order) - len(needed)))
            hard = weak if epoch == epochs else math.floor(weak * self.settings.r + GUARD)
            plan.kept[key] = sorted(order[hard:].tolist())
            softened.append((self._softened(f), order[hard:weak]))
        zero(run, slices(softened))
        self.log = {f"filters/{key}": len(plan.kept.get(key, [0])) for key in self.state.units}
        self.log["zeroed"] = sum(len(units) for _, units in softened) / sum(self.log.values())
        self.gathered.sums.clear()
        if any(len(kept) < structure.by_key[key].units for key, kept in plan.kept.items()):
            run.shrink(structure, plan)

    def gather(self, run: Run) -> None:
        """The scores of the epoch, from a pass over all training examples."""
        if not self.gathered.of_gradients:
            return
        run.network.eval()
        with self.gathered.listening(run.network):
            batches = run.data.train.batches(run.training.batch_size, device=str(run.device))
            for step, (x, y) in enumerate(batches, 1):
                run.optimizer.zero_grad()  # of the last step first
                with autocast(run.training.precision, str(run.device)):
                    loss = run.task.loss(run.network(x), y)
                loss.backward()
                self.gathered.add()
                place = f"epoch {run.training.epoch + 1}/{run.training.epochs}  scores of filters"
                self.say.status(f"{place}  step {step}/{run.steps}")
        run.optimizer.zero_grad()
        run.network.train()

    def numbers(self, run: Run) -> dict[str, float]:
        return self.log

    def _as_before(self, found: dict[str, Filters]) -> dict[str, Filters]:
        """These of a cut network, with the projections that were found before."""
        projections = self.state.projections
        return {key: replace(f, projection=projections.get(key)) for key, f in found.items() if key in self.state.units}

    def _softened(self, f: Filters) -> list[Member]:
        """The axes whose slices are zeroed with a weak unit."""
        return f.producers if self.settings.reset == "weights" else [m for m in f.group.members if m.role != "in"]
