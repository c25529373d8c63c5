"""The pictures of the HTML report: each a function of rows that gives an SVG, or None where there is nothing to see."""

from prunecli.reporting.pictures.curves import curves
from prunecli.reporting.pictures.layers import layers
from prunecli.reporting.pictures.logged import numbers
from prunecli.reporting.pictures.pruning import pruning
from prunecli.reporting.pictures.structure import structures
from prunecli.reporting.pictures.style import Picture
from prunecli.reporting.pictures.tradeoff import tradeoff
from prunecli.reporting.pictures.weights import weights

__all__ = ["Picture", "curves", "layers", "numbers", "pruning", "structures", "tradeoff", "weights"]
