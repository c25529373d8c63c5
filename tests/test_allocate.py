"""Allocation: exact counts, ties by index, budgets met by the largest network that fits."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunecli.allocate import masks, widths
from prunecli.allocate.counts import apportion, keep_floor, prune_floor, round_shares, round_up
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


def test_widths_are_rounded_up_to_multiples() -> None:
    assert [round_up(w, 64, 8) for w in (1, 8, 9, 57, 64)] == [8, 8, 16, 64, 64]
    assert round_up(19, 20, 8) == 20  # no wider than the layer
    assert round_up(3, 6, 8) == 3  # a layer that has no multiple


def test_round_targets() -> None:
    assert round_shares(0.9, 3, "linear") == pytest.approx([0.3, 0.6, 0.9])
    assert round_shares(0.488, 3, "geometric") == pytest.approx([0.2, 0.36, 0.488])
    assert round_shares(0.7, 7, "geometric")[-1] == 0.7


def test_ties_go_by_index() -> None:
    assert widths.select([1.0, 0.0, 1.0, 1.0], 2) == [2, 3]
    assert widths.select([0.0] * 5, 3) == [2, 3, 4]


@given(SCORES, SHARES)
def test_local_removes_exactly_the_share_of_each_layer(scores: dict[str, list[float]], share: float) -> None:
    result = widths.by_share(scores, dict.fromkeys(scores, share), sizes(scores), keep_floor)
    for layer, values in scores.items():
        assert result.widths[layer] == max(1, keep_floor(len(values), share))
        assert (layer in result.guarded) == (keep_floor(len(values), share) == 0)
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
            widths.by_rank(scores, share, sizes(scores), prune_floor)
        return
    result = widths.by_rank(scores, share, sizes(scores), prune_floor)
    assert units - sum(result.widths.values()) == count
    assert min(result.widths.values()) >= 1
    # the lowest go, wherever they are: nothing kept is below anything removed, but for guarded last units
    ranked = {layer: sorted(values) for layer, values in scores.items()}
    gone = [s for layer, v in ranked.items() for s in v[: len(v) - result.widths[layer]]]
    kept = [s for layer, v in ranked.items() if result.widths[layer] > 1 for s in v[len(v) - result.widths[layer] :]]
    assert not gone or not kept or max(gone) <= min(kept)


def test_global_guard_takes_the_next_lowest_instead_and_says_so() -> None:
    result = widths.by_rank({"a": [0.1, 0.2], "b": [1.0, 2.0, 3.0]}, 0.6, {"a": 2, "b": 3}, prune_floor)
    assert result.widths == {"a": 1, "b": 1}
    assert result.guarded == ["a"]


def test_later_rounds_count_from_the_sizes_before_the_first() -> None:
    whole = {"a": 10, "b": 10}
    scores = {"a": [float(i) for i in range(8)], "b": [float(i) for i in range(6)]}
    assert widths.by_share(scores, {"a": 0.5, "b": 0.3}, whole, keep_floor).widths == {"a": 5, "b": 6}
    assert sum(widths.by_rank(scores, 0.5, whole, keep_floor).widths.values()) == 10


@given(SCORES, st.sampled_from(["local", "global"]), st.sampled_from([1, 2, 3, 8]))
def test_a_path_goes_from_everything_to_the_smallest_network(
    scores: dict[str, list[float]], scope: widths.Scope, multiple: int
) -> None:
    current = sizes(scores)
    for step in widths.path(scores, scope, multiple):
        assert current[step.layer] == step.before > step.after
        assert len(scores[step.layer]) < multiple or step.after % multiple == 0
        current[step.layer] = step.after
    assert current == {la: min(n, multiple) if n >= multiple else 1 for la, n in sizes(scores).items()}


def test_local_path_shrinks_layers_in_equal_shares() -> None:
    steps = widths.path({"a": [0.0] * 4, "b": [0.0] * 2}, "local")
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
    found = widths.largest(widths.path(scores, scope, multiple), scores, lambda plan: cost(plan) <= budget)
    if found is None:
        assert cost(smallest) > budget
        return
    assert cost(found) <= budget
    for layer, n in sizes(scores).items():
        wider = round_up(found[layer] + 1, n, multiple) if found[layer] < n else n
        assert found[layer] == n or cost(found | {layer: wider}) > budget


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
    old, _ = masks.by_rank(scores, {}, count // 2)
    new, _ = masks.by_rank(scores, old, count)
    assert sum(int((~m).sum()) for m in new.values()) == count
    assert all(bool((new[n] <= old[n]).all()) for n in new)
    assert all(bool(m.any()) for m in new.values())


def test_masks_by_hand() -> None:
    scores = {"a": torch.tensor([[3.0, 1.0], [1.0, 2.0]]), "b": torch.tensor([0.5, 9.0])}
    local, _ = masks.by_tensor(scores, {}, {"a": 2, "b": 1})
    assert local["a"].tolist() == [[True, False], [False, True]]
    assert local["b"].tolist() == [False, True]
    ranked, _ = masks.by_rank(scores, {}, 2)
    assert ranked["a"].tolist() == [[True, False], [True, True]]
    assert ranked["b"].tolist() == [False, True]


def test_a_mask_never_revives_a_weight() -> None:
    scores = {"a": torch.tensor([5.0, 1.0, 2.0, 3.0])}
    old = {"a": torch.tensor([False, True, False, True])}
    assert masks.by_rank(scores, old, 1)[0]["a"].tolist() == [False, True, False, True]
    assert masks.by_rank(scores, old, 3)[0]["a"].tolist() == [False, False, False, True]


def test_a_tensor_keeps_its_best_weight_and_the_count_stays_exact() -> None:
    scores = {"a": torch.tensor([0.1, 0.2]), "b": torch.tensor([1.0, 2.0, 3.0])}
    new, guarded = masks.by_rank(scores, {}, 2)
    assert guarded == ["a"]
    assert new["a"].tolist() == [False, True]
    assert new["b"].tolist() == [False, True, True]


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


@pytest.mark.parametrize("share", ["1.0", "-0.1", "nan", "inf"])
def test_impossible_shares_are_target_errors(share: str) -> None:
    with pytest.raises(TargetError, match="conv1"):
        parse_ratios(f"conv1={share}")


def test_the_first_pattern_decides_and_a_group_needs_one_share() -> None:
    table = {"layer1.0.*": 0.1, "layer1.*": 0.6}
    assert share_of(["layer1.0.conv1"], table) == 0.1
    assert share_of(["layer1.1.conv1", "layer1.2.conv1"], table) == 0.6
    for producers in product(["layer1.0.conv2"], ["layer1.1.conv2", "conv1"]):
        assert share_of(producers, table) is None


def test_a_pattern_that_names_nothing_says_which_layers_are_near() -> None:
    layers = [f"layer{s}.{b}.conv{c}" for s, b, c in product((1, 2), (0, 1, 2), (1, 2))]
    require_matches(["layer1.*", "*.conv2"], layers, "--only")
    with pytest.raises(TargetError, match=r"layr1\.0\.conv1") as caught:
        require_matches(["layr1.0.conv1"], layers, "--only")
    assert "layer1.0.conv1" in caught.value.hint
