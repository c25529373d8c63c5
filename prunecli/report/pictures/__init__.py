"""The pictures of the HTML report: each a function of rows that gives an SVG, or None where there is nothing to see."""

from prunecli.report.pictures.curves import curves
from prunecli.report.pictures.layers import layers
from prunecli.report.pictures.style import Picture
from prunecli.report.pictures.tradeoff import tradeoff
from prunecli.report.pictures.weights import weights

__all__ = ["Picture", "curves", "layers", "tradeoff", "weights"]
