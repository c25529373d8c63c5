"""Batches: every example once, the same from any entry point, augmented by shifts and mirrors, normalised as told."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunecli.data import Order
from prunecli.data.base import Augment, Fit, InMemory
from prunecli.data.images import augmented, resized, statistics, with_channels
from prunecli.data.memory import MemorySplit
from prunecli.data.randomness import generator, stratified, visiting_order

COUNT = 50


def numbered(augment: Augment = Augment()) -> MemorySplit:
    """Image i has the value i everywhere and the label i; x comes out as it is."""
    images = torch.arange(COUNT, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 6).contiguous()
    return MemorySplit(InMemory(images, torch.arange(COUNT)), [0.0], [1 / 255], augment, Fit((8, 6)))


def collect(split: MemorySplit, batch: int, order: Order | None, start: int = 0) -> list[tuple[Tensor, Tensor]]:
    return list(split.batches(batch, order=order, start=start))


def same(left: list[tuple[Tensor, Tensor]], right: list[tuple[Tensor, Tensor]]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(x1, x2) and torch.equal(y1, y2) for (x1, y1), (x2, y2) in zip(left, right, strict=True)
    )


def test_without_an_order_batches_are_in_file_order() -> None:
    split = numbered()
    batches = collect(split, 16, None)
    assert [len(y) for _, y in batches] == [16, 16, 16, 2]
    assert split.steps(16) == 4
    assert split.steps(50) == 1
    assert torch.equal(torch.cat([y for _, y in batches]), torch.arange(COUNT))
    assert batches[0][0].dtype == torch.float32
    assert batches[0][1].dtype == torch.int64


@pytest.mark.parametrize(
    ("batch", "sizes"), [(7, [7] * 6 + [8]), (49, [50]), (1, [1] * 50), (48, [48, 2]), (51, [50]), (24, [24, 24, 2])]
)
def test_no_batch_of_one_is_left_over(batch: int, sizes: list[int]) -> None:
    split = numbered()
    for order in (None, Order(1, 2)):
        assert [len(y) for _, y in collect(split, batch, order)] == sizes
    assert split.steps(batch) == len(sizes)


def test_a_split_of_one_example_is_one_batch() -> None:
    split = MemorySplit(
        InMemory(torch.zeros(1, 1, 8, 6, dtype=torch.uint8), torch.zeros(1)), [0.0], [1.0], Augment(), Fit((8, 6))
    )
    assert [len(y) for batch in (1, 2) for _, y in collect(split, batch, None)] == [1, 1]


@given(batch=st.integers(1, 60), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_an_epoch_shows_every_example_once_with_its_label(batch: int, seed: int, epoch: int) -> None:
    batches = collect(numbered(), batch, Order(seed, epoch))
    labels = torch.cat([y for _, y in batches])
    assert torch.equal(labels.sort().values, torch.arange(COUNT))
    assert torch.equal(torch.cat([x[:, 0, 0, 0] for x, _ in batches]), labels.float())


@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_entering_an_epoch_later_gives_the_same_batches(start: int) -> None:
    split = numbered(Augment(pad=2, flip=True))
    order = Order(7, 3, augment=True)
    assert same(collect(split, 16, order, start), collect(split, 16, order)[start:])


def test_global_random_state_is_neither_read_nor_moved() -> None:
    split = numbered(Augment(pad=2, flip=True))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = collect(split, 16, Order(7, 3, augment=True))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert same(first, collect(split, 16, Order(7, 3, augment=True)))


def test_epochs_seeds_and_augmentations_differ() -> None:
    orders = [visiting_order(COUNT, Order(seed, epoch)).tolist() for seed in range(4) for epoch in range(4)]
    assert len({tuple(order) for order in orders}) == 16
    image = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(32, 1, 8, 8)
    augment = Augment(pad=2, flip=True)
    results = [augmented(image, augment, generator(0, 0, step)) for step in range(2)]
    assert not torch.equal(*results)


@given(seed=st.integers(0, 2**32), pad=st.integers(0, 4), flip=st.booleans())
@settings(max_examples=25, deadline=None)
def test_augmentation_is_a_shift_and_a_mirror_of_each_image(seed: int, pad: int, flip: bool) -> None:
    images = torch.randint(1, 256, (6, 3, 7, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    result = augmented(images, Augment(pad, flip), generator(seed))
    for original, image in zip(images, result, strict=True):
        candidates = []
        for mirrored in (original, original.flip(2)) if flip else (original,):
            canvas = torch.zeros(3, 7 + 2 * pad, 5 + 2 * pad, dtype=torch.uint8)
            canvas[:, pad : pad + 7, pad : pad + 5] = mirrored
            candidates += [
                canvas[:, y : y + 7, x : x + 5] for y in range(2 * pad + 1) for x in range(2 * pad + 1)
            ]  # fmt: skip
        assert any(torch.equal(image, candidate) for candidate in candidates)


def test_augmentation_reaches_every_shift_and_mirrors_half() -> None:
    image = torch.zeros(4000, 1, 5, 5, dtype=torch.uint8)
    image[:, 0, 2, 1] = 1
    result = augmented(image, Augment(pad=1, flip=True), generator(0))
    places = result.flatten(1).long().argmax(1)
    counts = torch.stack([(places == place).sum() for place in range(25)]).view(5, 5)[1:4]
    assert counts.sum() == 4000
    # the pixel lies in column 1 or, mirrored, 3; shifted by -1, 0, 1: column 2 is reached from both
    expected = 4000 / 18 * torch.tensor([1, 1, 2, 1, 1]).expand(3, 5)
    assert ((counts - expected).abs() < 5 * expected.sqrt()).all()


def test_training_without_augment_leaves_images_alone() -> None:
    x, y = collect(numbered(Augment(pad=2, flip=True)), COUNT, Order(0, 0, augment=False))[0]
    assert torch.equal(x, y.float().view(-1, 1, 1, 1).expand(-1, 1, 8, 6))


def test_normalisation_is_the_published_formula() -> None:
    images = torch.randint(0, 256, (9, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = [0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]
    split = MemorySplit(InMemory(images, torch.zeros(9, dtype=torch.int64)), mean, std, Augment(), Fit((4, 4)))
    ((x, _),) = split.batches(9)
    expected = (images.double() / 255 - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    torch.testing.assert_close(x, expected.float(), rtol=0, atol=2e-6)


def test_batches_do_not_share_memory_with_the_split() -> None:
    images = torch.ones(4, 1, 2, 2)
    split = MemorySplit(InMemory(images, torch.zeros(4, dtype=torch.int64)), [0.0], [1 / 255], Augment(), Fit((2, 2)))
    for x, y in split.batches(4):
        x.zero_()
        y.fill_(5)
    assert torch.equal(split.images, torch.ones(4, 1, 2, 2))
    assert torch.equal(split.labels, torch.zeros(4, dtype=torch.int64))


def test_statistics_of_known_pixels() -> None:
    images = torch.zeros(2, 2, 1, 2, dtype=torch.uint8)
    images[0, 0] = 255  # channel 0: half black, half white; channel 1 is black
    assert statistics(images) == ([0.5, 0.0], [0.5, 1.0])


def test_images_resized_in_each_batch_equal_images_resized_before() -> None:
    images = torch.randint(0, 256, (7, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    fit = Fit((9, 11))
    labels = torch.arange(7)
    lazily = MemorySplit(InMemory(images, labels), [0.3], [0.2], Augment(1, True), fit)
    at_once = MemorySplit(InMemory(resized(images, fit), labels), [0.3], [0.2], Augment(1, True), fit)
    order = Order(1, 2, augment=True)
    assert same(collect(lazily, 3, order), collect(at_once, 3, order))


def test_resize_pads_within_the_border_and_interpolates_beyond() -> None:
    images = torch.full((1, 1, 4, 4), 200, dtype=torch.uint8)
    padded = resized(images, Fit((7, 8), border=2))
    assert padded.shape == (1, 1, 7, 8)
    assert torch.equal(padded[:, :, 1:5, 2:6], images)  # the odd row goes below
    assert int(padded.sum()) == int(images.sum())
    assert torch.equal(resized(images, Fit((9, 9), border=2)), torch.full((1, 1, 9, 9), 200, dtype=torch.uint8))
    assert torch.equal(resized(images, Fit((2, 2), border=2)), torch.full((1, 1, 2, 2), 200, dtype=torch.uint8))


def test_channels_are_repeated_or_reduced_to_luma() -> None:
    grey = torch.tensor([10, 250], dtype=torch.uint8).view(2, 1, 1, 1)
    assert with_channels(grey, 3)[:, :, 0, 0].tolist() == [[10, 10, 10], [250, 250, 250]]
    colour = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], dtype=torch.uint8)
    assert with_channels(colour.view(4, 3, 1, 1), 1).flatten().tolist() == [76, 150, 29, 255]


@given(
    labels=st.lists(st.integers(0, 4), min_size=2, max_size=80), share=st.floats(0.01, 0.99), seed=st.integers(0, 99)
)
@settings(max_examples=60, deadline=None)
def test_stratified_split_is_a_partition_with_each_class_its_share(labels: list[int], share: float, seed: int) -> None:
    tensor = torch.tensor(labels)
    count = round(share * len(labels))
    kept, held = stratified(tensor, count, seed)
    assert len(held) == count
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(len(labels)))
    assert torch.equal(held, held.sort().values)
    assert torch.equal(kept, kept.sort().values)
    for label in range(5):
        size = labels.count(label)
        assert abs(int((tensor[held] == label).sum()) - count * size / len(labels)) < 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_batches_equal_cpu_batches() -> None:
    order = Order(3, 1, augment=True)
    expected = collect(numbered(Augment(2, True)), 16, order)
    split = numbered(Augment(2, True))
    got = list(split.batches(16, order=order, device="cuda"))
    assert all(x.is_cuda and y.is_cuda for x, y in got)
    assert same(expected, [(x.cpu(), y.cpu()) for x, y in got])
