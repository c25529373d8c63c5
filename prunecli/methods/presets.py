"""Published configurations by name: which layers of which network lose what share. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prunecli.errors import UsageError
from prunecli.methods import li2017


@dataclass(frozen=True)
class Preset:
    """One configuration. `shares`: the share that a convolution loses, by its number.

    Convolutions are numbered from 1 in network order, the stem first, projections (`downsample`) uncounted.
    """

    arch: str
    convs: int
    shares: dict[int, float]
    method: str = "l1"

    def ratios(self, name: str, arch: str, convs: Sequence[str]) -> dict[str, float]:
        """The shares by layer name, given the convolutions of the network in order.

        Raises `UsageError` for another architecture than the configuration was published for.
        """
        counted = [layer for layer in convs if "downsample" not in layer]
        if arch != self.arch or len(counted) != self.convs:
            raise UsageError(
                f"--preset {name}: made for {self.arch}, this checkpoint is a {arch}",
                f"train --arch {self.arch}, or give your own table with --ratios 'layer1.*.conv1=0.5'",
            )
        return {counted[number - 1]: share for number, share in self.shares.items()}


PRESETS = {
    f"li2017:{name}": Preset(arch, convs, shares) for name, (arch, convs, shares) in li2017.CONFIGURATIONS.items()
}
