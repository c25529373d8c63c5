"""What must hold for any network and any plan, on random ones; `benchmarks/random_networks.py` runs more of them."""

from __future__ import annotations

import oracle
import pytest
import random_networks
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from random_checks import check
from random_networks import STARTS, Network, Program, inputs_of


@st.composite
def programs(draw: st.DrawFn, inputs: tuple[str, ...]) -> Program:
    """Programs on these inputs."""
    return random_networks.draw(lambda options: draw(st.sampled_from(options)), inputs)


def few(examples: int) -> settings:
    """So many examples, the same in every run; shrinking a failure would take minutes."""
    return settings(
        max_examples=examples,
        phases=[Phase.generate],
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[*HealthCheck],
    )


@pytest.mark.parametrize("inputs", STARTS, ids="-".join)
def test_any_network_and_any_plan(inputs: tuple[str, ...]) -> None:
    refused = []

    @few(35)
    @given(programs(inputs), st.integers(0, 999))
    def run(program: Program, seed: int) -> None:
        refused.append(check(program, seed).refused is not None)

    run()
    assert refused.count(True) <= len(refused) // 10  # a plan may be refused, with the reason, but not most of them


@few(40)
@given(st.sampled_from(STARTS).flatmap(programs), st.integers(0, 999))
def test_any_cut_network_can_be_saved_and_loaded(program: Program, seed: int) -> None:
    network = Network(program)
    loaded = oracle.check_saved(network, inputs_of(program, 2), seed=seed)
    assert loaded.state_dict().keys() == network.state_dict().keys()
