"""Allocation: exact counts, ties by index, budgets met by the largest network that fits."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunecli.allocate import masks, widths
from prunecli.allocate.counts import apportion, keep_at_least, keep_floor, prune_floor, round_shares
from prunecli.allocate.patterns import parse_ratios, require_matches, share_of
from prunecli.errors import TargetError, UsageError

SHARES = st.floats(0, 0.999)
SCORES = st.dictionaries(
    st.text("abc", min_size=1, max_size=3),
    st.lists(st.integers(0, 4).map(float), min_size=1, max_size=12),
    min_size=1,
    max_size=5,
)


def sizes(scores: widths.Scores) -> dict[str, int]:
    return {layer: len(values) for layer, values in scores.items()}


def test_rounding_is_guarded_against_binary_fractions() -> None:
    assert keep_floor(10, 0.9) == 1
    assert keep_floor(64, 0.1) == 57  # Li et al., ResNet-56-B, stage 3
    assert prune_floor(10, 0.7) == 3
    assert (keep_floor(5, 0.5), prune_floor(5, 0.5)) == (2, 3)


@given(st.integers(1, 10**7), st.integers(1, 1000))
def test_rounding_is_exact_for_every_share_that_is_a_count(n: int, part: int) -> None:
    gone = n * part // 1000
    assert keep_floor(n, gone / n) == prune_floor(n, gone / n) == n - gone


def any_width(scores: widths.Scores, multiple: int = 1) -> dict[str, list[int]]:
    return {layer: widths.allowed(values, 1, multiple) for layer, values in scores.items()}


def test_widths_that_a_layer_may_have() -> None:
    assert widths.allowed([0.0] * 4) == [1, 2, 3, 4]
    assert widths.allowed([0.0] * 20, 1, 8) == [8, 16, 20]  # what there is needs no rounding
    assert widths.allowed([0.0] * 6, 1, 8) == [6]  # a layer that has no multiple stays whole
    assert widths.allowed([0.0] * 20, 9, 8) == [16, 20]
    assert widths.allowed([0.0] * 5, 3) == [3, 4, 5]
    assert widths.allowed([0.0] * 5, 9) == [5]


def test_widths_are_counted_in_channels() -> None:
    """In a grouped convolution a unit is a channel of each group, or a whole group; two tensors may differ in that."""
    assert widths.allowed([0.0] * 4, 1, 8, [[32] * 4]) == [1, 2, 3, 4]
    assert widths.allowed([0.0] * 32, 1, 8, [[4] * 32])[:3] == [2, 4, 6]
    assert widths.allowed([0.0] * 12, 1, 6, [[1] * 12, [4] * 12]) == [6, 12]
    # the units go in the order 0, 1, 2: what stays has 3, 3 + 1, 3 + 1 + 2 channels
    assert widths.allowed([0.1, 0.2, 0.3], 1, 2, [[2, 1, 3]]) == [2, 3]


def test_a_limit_is_rounded_towards_keeping() -> None:
    assert keep_at_least(5, 0.5) == 3
    assert keep_at_least(10, 0.9) == 1
    assert keep_at_least(10, 0.99) == 1
    assert keep_at_least(7, None) == 1
    assert keep_at_least(7, 0.0) == 7


def test_round_targets() -> None:
    assert round_shares(0.9, 3, "linear") == pytest.approx([0.3, 0.6, 0.9])
    assert round_shares(0.488, 3, "geometric") == pytest.approx([0.2, 0.36, 0.488])
    assert round_shares(0.7, 7, "geometric")[-1] == 0.7


def test_ties_go_by_index() -> None:
    assert widths.select([1.0, 0.0, 1.0, 1.0], 2) == [2, 3]
    assert widths.select([0.0] * 5, 3) == [2, 3, 4]


@given(SCORES, SHARES)
def test_local_removes_exactly_the_share_of_each_layer(scores: dict[str, list[float]], share: float) -> None:
    result = widths.by_share(scores, dict.fromkeys(scores, share), sizes(scores), keep_floor, any_width(scores))
    for layer, values in scores.items():
        assert result.widths[layer] == max(1, keep_floor(len(values), share))
        assert (layer in result.held) == (keep_floor(len(values), share) == 0)
        kept = widths.select(values, result.widths[layer])
        assert kept == sorted(set(kept))
        assert len(kept) == result.widths[layer]
        gone = set(range(len(values))) - set(kept)
        assert all((values[g], g) < (values[k], k) for g in gone for k in kept)


@given(SCORES, SHARES)
def test_global_removes_exactly_the_share_of_all_units(scores: dict[str, list[float]], share: float) -> None:
    units = sum(sizes(scores).values())
    count = units - prune_floor(units, share)
    if count > units - len(scores):
        with pytest.raises(TargetError):
            widths.by_rank(scores, share, sizes(scores), prune_floor, any_width(scores))
        return
    result = widths.by_rank(scores, share, sizes(scores), prune_floor, any_width(scores))
    assert units - sum(result.widths.values()) == count
    assert min(result.widths.values()) >= 1
    # the lowest go, wherever they are: nothing kept is below anything removed, but for guarded last units
    ranked = {layer: sorted(values) for layer, values in scores.items()}
    gone = [s for layer, v in ranked.items() for s in v[: len(v) - result.widths[layer]]]
    kept = [s for layer, v in ranked.items() if result.widths[layer] > 1 for s in v[len(v) - result.widths[layer] :]]
    assert not gone or not kept or max(gone) <= min(kept)


def test_global_guard_takes_the_next_lowest_instead_and_says_so() -> None:
    scores = {"a": [0.1, 0.2], "b": [1.0, 2.0, 3.0]}
    result = widths.by_rank(scores, 0.6, {"a": 2, "b": 3}, prune_floor, any_width(scores))
    assert result.widths == {"a": 1, "b": 1}
    assert result.held == ["a"]


def test_later_rounds_count_from_the_sizes_before_the_first() -> None:
    whole = {"a": 10, "b": 10}
    scores = {"a": [float(i) for i in range(8)], "b": [float(i) for i in range(6)]}
    choices = any_width(scores)
    assert widths.by_share(scores, {"a": 0.5, "b": 0.3}, whole, keep_floor, choices).widths == {"a": 5, "b": 6}
    assert sum(widths.by_rank(scores, 0.5, whole, keep_floor, choices).widths.values()) == 10


@given(SCORES, SHARES, st.sampled_from([1, 2, 3, 8]), st.sampled_from([None, 0.5, 0.8]))
def test_global_ends_within_one_step_of_what_was_asked(
    scores: dict[str, list[float]], share: float, multiple: int, limit: float | None
) -> None:
    whole = sizes(scores)
    choices = {la: widths.allowed(v, keep_at_least(whole[la], limit), multiple) for la, v in scores.items()}
    asked = sum(whole.values()) - prune_floor(sum(whole.values()), share)
    most = sum(whole.values()) - sum(least[0] for least in choices.values())
    if asked > most:
        with pytest.raises(TargetError, match=f"only {most} of"):
            widths.by_rank(scores, share, whole, prune_floor, choices)
        return
    result = widths.by_rank(scores, share, whole, prune_floor, choices)
    assert result.asked == asked
    gone = sum(whole.values()) - sum(result.widths.values())
    assert gone <= asked
    for layer, width in result.widths.items():
        assert width in choices[layer]
        assert limit is None or width >= whole[layer] * (1 - limit)
        smaller = [w for w in choices[layer] if w < width]
        assert not smaller or gone + width - smaller[-1] > asked


@given(SCORES, SHARES, st.sampled_from([1, 2, 3, 8]))
def test_local_takes_the_next_width_above_and_counts_what_was_asked(
    scores: dict[str, list[float]], share: float, multiple: int
) -> None:
    choices = any_width(scores, multiple)
    result = widths.by_share(scores, dict.fromkeys(scores, share), sizes(scores), keep_floor, choices)
    wanted = {layer: max(1, keep_floor(n, share)) for layer, n in sizes(scores).items()}
    assert result.widths == {la: min(w for w in choices[la] if w >= wanted[la]) for la in scores}
    assert result.asked == sum(n - wanted[layer] for layer, n in sizes(scores).items())


@given(SCORES, st.sampled_from(["local", "global"]), st.sampled_from([1, 2, 3, 8]))
def test_a_path_goes_from_everything_to_the_smallest_network(
    scores: dict[str, list[float]], scope: widths.Scope, multiple: int
) -> None:
    current = sizes(scores)
    for step in widths.path(scores, scope, any_width(scores, multiple)):
        assert current[step.layer] == step.before > step.after
        assert step.after % multiple == 0
        current[step.layer] = step.after
    assert current == {layer: min(n, multiple) for layer, n in sizes(scores).items()}


def test_local_path_shrinks_layers_in_equal_shares() -> None:
    scores = {"a": [0.0] * 4, "b": [0.0] * 2}
    steps = widths.path(scores, "local", any_width(scores))
    assert [(s.layer, s.after) for s in steps] == [("a", 3), ("a", 2), ("b", 1), ("a", 1)]


@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
    st.integers(0, 300),
    st.sampled_from(["local", "global"]),
    st.sampled_from([1, 2]),
)
def test_a_budget_is_met_and_nothing_more_could_be_kept(
    layers: list[int], budget: int, scope: widths.Scope, multiple: int
) -> None:
    scores = {f"layer{i}": [float((j * 7 + i) % 5) for j in range(n)] for i, n in enumerate(layers)}

    def cost(plan: dict[str, int]) -> int:
        chain = [3, *plan.values(), 2]
        return sum(a * b for a, b in pairwise(chain))

    smallest = {layer: min(n, multiple) for layer, n in sizes(scores).items()}
    choices = any_width(scores, multiple)
    found = widths.largest(widths.path(scores, scope, choices), scores, lambda plan: cost(plan) <= budget)
    if found is None:
        assert cost(smallest) > budget
        return
    assert cost(found) <= budget
    for layer, n in sizes(scores).items():
        wider = [width for width in choices[layer] if width > found[layer]]
        assert found[layer] == n or cost(found | {layer: wider[0]}) > budget


@given(st.lists(st.integers(0, 3).map(float), min_size=1, max_size=40), st.data())
def test_lowest_is_an_exact_stable_selection(scores: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(scores)))
    chosen = masks.lowest(torch.tensor(scores), count)
    assert chosen.nonzero().flatten().tolist() == sorted(widths.removal_order(scores)[:count])


@given(st.dictionaries(st.text("abc", min_size=1), st.integers(0, 50), min_size=1), st.data())
def test_apportioned_counts_add_up_and_are_proportional(sizes: dict[str, int], data: st.DataObject) -> None:
    whole = sum(sizes.values())
    if whole:
        count = data.draw(st.integers(0, whole))
        parts = apportion(count, sizes)
        assert sum(parts.values()) == count
        assert all(abs(parts[n] - count * sizes[n] / whole) < 1 and parts[n] <= sizes[n] for n in sizes)


@given(st.integers(0, 2**31), st.integers(0, 76))
def test_global_masks_hold_exactly_the_count_and_only_ever_grow(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (3, 5), "b": (4, 2, 3), "c": (40,)}
    scores = {n: torch.randint(0, 9, shape, generator=generator).float() for n, shape in shapes.items()}
    old, _ = masks.by_rank(scores, {}, count // 2, one_of(scores))
    new, _ = masks.by_rank(scores, old, count, one_of(scores))
    assert sum(int((~m).sum()) for m in new.values()) == count
    assert all(bool((new[n] <= old[n]).all()) for n in new)
    assert all(bool(m.any()) for m in new.values())


def one_of(scores: masks.Named) -> dict[str, int]:
    return dict.fromkeys(scores, 1)


def test_masks_by_hand() -> None:
    scores = {"a": torch.tensor([[3.0, 1.0], [1.0, 2.0]]), "b": torch.tensor([0.5, 9.0])}
    local, _ = masks.by_tensor(scores, {}, {"a": 2, "b": 1}, one_of(scores))
    assert local["a"].tolist() == [[True, False], [False, True]]
    assert local["b"].tolist() == [False, True]
    ranked, _ = masks.by_rank(scores, {}, 2, one_of(scores))
    assert ranked["a"].tolist() == [[True, False], [True, True]]
    assert ranked["b"].tolist() == [False, True]


def test_a_mask_never_revives_a_weight() -> None:
    scores = {"a": torch.tensor([5.0, 1.0, 2.0, 3.0])}
    old = {"a": torch.tensor([False, True, False, True])}
    assert masks.by_rank(scores, old, 1, one_of(scores))[0]["a"].tolist() == [False, True, False, True]
    assert masks.by_rank(scores, old, 3, one_of(scores))[0]["a"].tolist() == [False, False, False, True]


def test_a_tensor_keeps_its_best_weight_and_the_count_stays_exact() -> None:
    scores = {"a": torch.tensor([0.1, 0.2]), "b": torch.tensor([1.0, 2.0, 3.0])}
    new, guarded = masks.by_rank(scores, {}, 2, one_of(scores))
    assert guarded == ["a"]
    assert new["a"].tolist() == [False, True]
    assert new["b"].tolist() == [False, True, True]


def test_a_tensor_keeps_what_a_limit_says_and_others_lose_more() -> None:
    scores = {"a": torch.tensor([0.1, 0.2, 0.3, 0.4]), "b": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    new, held = masks.by_rank(scores, {}, 4, {"a": 2, "b": 1})
    assert held == ["a"]
    assert new["a"].tolist() == new["b"].tolist() == [False, False, True, True]
    assert masks.by_tensor(scores, {}, {"a": 3, "b": 1}, {"a": 2, "b": 1})[1] == ["a"]


def test_ratio_tables(tmp_path: Path) -> None:
    assert parse_ratios("layer1.*=0.6, layer2.*=0.3") == {"layer1.*": 0.6, "layer2.*": 0.3}
    (tmp_path / "r.toml").write_text('"layer1.*" = 0.6\nconv1 = 0\n')
    (tmp_path / "r.json").write_text('{"layer1.*": 0.6, "conv1": 0}')
    for name in ("r.toml", "r.json"):
        assert parse_ratios(str(tmp_path / name)) == {"layer1.*": 0.6, "conv1": 0}


@pytest.mark.parametrize("text", ["layer1", "=0.5", "a=b", "", "no/such.toml"])
def test_what_is_no_ratio_table_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="--ratios"):
        parse_ratios(text)


@pytest.mark.parametrize("content", ["[1, 2]", "{", '{"a": {"b": 1}}', '{"a": null}'])
def test_damaged_ratio_files_are_usage_errors(content: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(UsageError, match="--ratios"):
        parse_ratios(str(tmp_path / "r.json"))


def test_shares_are_fractions_or_percent() -> None:
    assert parse_ratios("conv1=60%,conv2=0.6") == {"conv1": 0.6, "conv2": 0.6}
    with pytest.raises(TargetError, match="conv1=1"):
        parse_ratios("conv1=1.0")


@pytest.mark.parametrize("share", ["-0.1", "nan", "inf", "60", "150%", "half"])
def test_what_is_no_share_is_a_usage_error(share: str) -> None:
    with pytest.raises(UsageError, match="conv1") as caught:
        parse_ratios(f"conv1={share}")
    assert ("60% is 0.6" in caught.value.hint) == (share == "60")


def test_the_first_pattern_decides_and_a_group_needs_one_share() -> None:
    table = {"layer1.0.*": 0.1, "layer1.*": 0.6}
    assert share_of(["layer1.0.conv1"], table) == 0.1
    assert share_of(["layer1.1.conv1", "layer1.2.conv1"], table) == 0.6
    for producers in product(["layer1.0.conv2"], ["layer1.1.conv2", "conv1"]):
        assert share_of(producers, table) is None


def test_a_pattern_that_names_nothing_says_which_layers_are_near() -> None:
    layers = [f"layer{s}.{b}.conv{c}" for s, b, c in product((1, 2), (0, 1, 2), (1, 2))]
    require_matches(["layer1.*", "*.conv2"], layers, "--only")
    with pytest.raises(UsageError, match=r"layr1\.0\.conv1") as caught:
        require_matches(["layr1.0.conv1"], layers, "--only")
    assert "layer1.0.conv1" in caught.value.hint
