"""What must hold for any network and any plan, on random ones; `benchmarks/random_networks.py` runs more of them."""

from __future__ import annotations

import pytest
import random_networks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_checks import check
from random_networks import STARTS, Program


@st.composite
def programs(draw: st.DrawFn, inputs: tuple[str, ...]) -> Program:
    """Programs on these inputs."""
    return random_networks.draw(lambda options: draw(st.sampled_from(options)), inputs)


@pytest.mark.parametrize("inputs", STARTS, ids="-".join)
def test_any_network_and_any_plan(inputs: tuple[str, ...]) -> None:
    @settings(
        max_examples=35, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck]
    )  # fmt: skip
    @given(programs(inputs), st.integers(0, 999))
    def run(program: Program, seed: int) -> None:
        check(program, seed)

    run()
