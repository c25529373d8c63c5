"""Training: one loop, schedules and optimizers as plain data, scores."""

from prunecli.training.evaluate import evaluate
from prunecli.training.fit import fit
from prunecli.training.hook import Hook, State
from prunecli.training.randomness import derived_seed
from prunecli.training.recalibrate import recalibrate
from prunecli.training.recipe import begin, begin_again, describe, recall
from prunecli.training.run import Run, prepare
from prunecli.training.saving import Saving
from prunecli.training.source import check_output, image_size, open_data

__all__ = [
    "Hook", "Run", "Saving", "State", "begin", "begin_again", "check_output", "derived_seed", "describe", "evaluate",
    "fit", "image_size", "open_data", "prepare", "recalibrate", "recall",
]  # fmt: skip
