"""DSCMH against its all-pairs definition, at any number of ranks and chunk size, with every option."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmh_models import build_method, method_class
from cmh_models.artefact import from_pretrained, save_pretrained, tower_fingerprint
from cmh_models.dscmh import DSCMH
from cmh_models.method import SIDES, Batch, Progress
from tests import reference
from tests.models.simulation import START, Step, assert_equal_steps, simulate

WIDTHS, CLASSES = {"image": 5, "text": 4}, 4
PAIR_LOSSES = ("likelihood", "soft_likelihood", "divergence")
WEIGHTS = {
    "inter_weight": 0.9,
    "intra_weight": 0.8,
    "label_weight": 0.7,
    "label_head_weight": 0.6,
    "align_weight": 0.5,
    "quantisation_weight": 0.4,
    "balance_weight": 0.3,
    "correlation_weight": 0.2,
    "read_out_weight": 0.1,
}


def small_dscmh(seed: int = 0, **options: Any) -> DSCMH:
    torch.manual_seed(seed)
    method = {
        "name": "dscmh",
        "code_length": 8,
        "classes": CLASSES,
        "label_hidden": [6],
        "feature_rounds": 1,
        "spread_rounds": 1,
        "label_rounds": 2,
        "label_steps": 3,
        **options,
    }
    towers = {side: {"name": "features", "width": WIDTHS[side], "hidden": 6} for side in SIDES}
    built = build_method(method, towers).double()
    assert isinstance(built, DSCMH)
    return built


def draw(rows: int, seed: int) -> Batch:
    """Return a global batch in which label sets repeat and some are empty."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(rows, CLASSES, generator=generator) < 0.35).double()
    batch: Batch = {"labels": labels}
    for side in SIDES:
        mixing = torch.randn(CLASSES, WIDTHS[side], generator=generator, dtype=torch.float64)
        noise = torch.randn(rows, WIDTHS[side], generator=generator, dtype=torch.float64)
        batch[side] = labels @ mixing + noise
    return batch


def warmed_up(method: DSCMH, rounds: int | None = None) -> DSCMH:
    for number in range(method.statistics_rounds if rounds is None else rounds):
        method = simulate(method, draw(12, 100 + number), 1).method  # type: ignore[assignment]
        method.zero_grad()
    return method


@settings(max_examples=25)
@given(
    share=st.integers(1, 4),
    seed=st.integers(0, 999),
    rounds=st.integers(0, 3),
    chunk=st.integers(1, 20),
    label_network=st.sampled_from(("trained", "frozen", "none")),
    label_head=st.sampled_from(("code", "hidden")),
    pair_loss=st.sampled_from(PAIR_LOSSES),
    pair_means=st.sampled_from(("separate", "all")),
    align=st.sampled_from(("pairs", "bits")),
    read_out_of=st.sampled_from(("relaxed", "binary")),
    moment_memory=st.sampled_from((0.0, 0.8)),
    scale_fn=st.sampled_from(("fixed", "schedule", "linear", "asinh")),
    dropped=st.sets(st.sampled_from(tuple(WEIGHTS))),
)
def test_one_two_and_four_ranks_and_any_chunk_make_the_same_step_with_every_option(
    share: int, seed: int, rounds: int, chunk: int, scale_fn: str, dropped: set[str], **options: Any
) -> None:
    weights = {name: 0.0 if name in dropped else value for name, value in WEIGHTS.items()}
    activation = {"scale_fn": scale_fn, "start": "spread"}
    method = warmed_up(small_dscmh(seed, activation=activation, **weights, **options), rounds)
    batch, progress = draw(4 * share, seed), Progress(epoch=3, step=7, total_steps=10)
    one = simulate(method, batch, 1, progress=progress)
    chunked = copy.deepcopy(method)
    chunked.config = method.config.model_copy(update={"chunk": chunk})
    for ranks in (1, 2, 4):
        assert_equal_steps(one, simulate(chunked, batch, ranks, progress=progress))


@pytest.mark.parametrize("pair_loss", PAIR_LOSSES)
@pytest.mark.parametrize("pair_means", ["separate", "all"])
@pytest.mark.parametrize("network", ["trained", "none"])
def test_loss_and_gradient_equal_the_all_pairs_definition(
    pair_loss: str, pair_means: str, network: str
) -> None:
    options = {"pair_loss": pair_loss, "pair_means": pair_means, "label_network": network, **WEIGHTS}
    method = warmed_up(small_dscmh(1, chunk=3, class_weights=[0.3, 0.7], **options))
    check_step(method, draw(9, 4))


@pytest.mark.parametrize(
    "options",
    [
        {"align": "bits", "label_share": 0.5},
        {"label_head": "hidden", "read_out_of": "binary"},
        {"theta": "length", "code_length": 16},
        {"label_network": "frozen", "align": "bits", "inter_weight": 0, "intra_weight": 0},
        {"label_network": "none", "read_out_of": "binary"},
    ],
)
def test_each_variant_equals_its_definition(options: dict[str, Any]) -> None:
    check_step(warmed_up(small_dscmh(2, **{**WEIGHTS, **options})), draw(7, 8))


def check_step(method: DSCMH, batch: Batch) -> None:
    step = simulate(method, batch, 1)
    expected = {name: value for name, value in oracle_terms(method, batch).items() if value is not None}
    assert set(step.terms) - {"slope"} == set(expected)
    for name, value in expected.items():
        assert step.terms[name].item() == pytest.approx(value.item(), rel=1e-9, abs=1e-12), name
    torch.stack(list(expected.values())).sum().backward()
    for name, weight in method.named_parameters():
        if weight.grad is None:
            assert not step.gradients[name].any(), name
        else:
            assert torch.allclose(step.gradients[name], weight.grad, rtol=1e-8, atol=1e-12), name


def oracle_terms(method: DSCMH, batch: Batch) -> dict[str, torch.Tensor]:
    """Return the weighted terms from naive loops over rows and pairs, label codes row by row."""
    config, labels = method.config, batch["labels"]
    values = {side: getattr(method, side)(batch[side]) for side in SIDES}
    codes = {side: torch.tanh(value) for side, value in values.items()}
    f, g = codes["image"], codes["text"]
    h, terms = torch.zeros_like(f), {}
    trained = config.label_network == "trained"
    matrices = [("image_text", f, g, config.inter_weight)]
    matrices += [("image_image", f, f, config.intra_weight), ("text_text", g, g, config.intra_weight)]
    if method.label is not None:
        by_row = [method.label(row[None]) for row in labels]
        h, logits = (torch.cat(parts) for parts in zip(*by_row, strict=True))
        if config.align == "pairs":
            matrices += [
                ("image_label", f, h, config.align_weight),
                ("text_label", g, h, config.align_weight),
            ]
        else:
            for side in SIDES:
                terms[f"{side}_bits"] = config.align_weight * bit_surprise(values[side], h)
        if trained:
            matrices.append(("label_label", h, h, config.label_weight))
            chance = 1 / (1 + (-logits).exp())
            entropy = -(labels * chance.log() + (1 - labels) * (1 - chance).log())
            terms["label_classes"] = config.label_head_weight * entropy.mean()
    scale = 0.5 if config.theta == "half" else 32 / config.code_length
    for name, a, b, weight in matrices:
        means = reference.label_pair_losses(a, b, labels, kind=config.pair_loss, scale=scale)
        if weight and config.pair_means == "all":
            terms[name] = weight * means["all"]
        elif weight:
            terms[f"{name}_similar"] = weight * config.class_weights[0] * means["similar"]
            terms[f"{name}_dissimilar"] = weight * config.class_weights[1] * means["dissimilar"]
    share = config.label_share if method.label is not None else 0.0
    apart = reference.binarisation_error(f, g, h, share=share, with_label=trained)
    terms["quantisation"] = config.quantisation_weight * apart
    for side, own in codes.items():
        terms[f"{side}_balance"] = config.balance_weight * (sum(own) / len(own)).square().sum() / own.shape[1]
        terms[f"{side}_correlation"] = config.correlation_weight * reference.bit_correlation(own)
    read, wanted = torch.cat([f, g]), torch.cat([labels, labels])
    if config.read_out_of == "binary":
        mean = (f + g + share * h) / (2 + share)
        read, wanted = torch.where(mean >= 0, 1.0, -1.0) + mean - mean.detach(), labels
    terms["read_out"] = config.read_out_weight * reference.read_out_error(read, wanted, config.read_out_ridge)
    return terms


def bit_surprise(values: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Return the mean -log p(bit of the label code), the logistic probability of each bit spelt out."""
    chance = 1 / (1 + (-2 * values).exp())
    return -torch.where(label >= 0, chance, 1 - chance).log().mean()


def test_the_label_code_decides_bits_that_the_two_sides_leave_open() -> None:
    """Binarisation is sign(F + G + omega H): with opposite sides it is the sign of H."""
    method = small_dscmh(quantisation_weight=1.0, label_share=0.5)
    codes = torch.tensor([[0.25, -0.25]], dtype=torch.float64)
    output = {"image": codes, "text": -codes, "label": torch.tensor([[0.5, -0.5]], dtype=torch.float64)}
    apart = (1 - 0.25) ** 2 + (1 + 0.25) ** 2 + (1 - 0.5) ** 2
    assert float(method._quantisation(output)) == pytest.approx(apart)
    method.label = None
    apart = ((1 - 0.25) ** 2 + (1 + 0.25) ** 2) / 1
    assert float(method._quantisation(output)) == pytest.approx(apart), "sign(0) = +1 without H"


def test_the_label_network_is_asked_once_for_each_distinct_label_set() -> None:
    method, asked = small_dscmh(), []
    assert method.label is not None
    method.label.register_forward_hook(lambda module, inputs, output: asked.append(len(inputs[0])))
    batch = draw(4, 0)
    batch["labels"] = torch.eye(CLASSES, dtype=torch.float64)[[2, 0, 2, 2]]
    simulate(method, batch, 1)
    assert asked == [2, 2], "for the local rows, then for the columns of the global batch"


def test_running_moments_are_the_weighted_mean_of_all_batches_seen() -> None:
    memory = 0.75
    method = small_dscmh(balance_weight=1.0, moment_memory=memory)
    means = []
    for number in range(5):
        step = simulate(method, draw(8, number), 2)
        method = step.method  # type: ignore[assignment]
        method.zero_grad()
        means.append(method(draw(8, number), START)["image"].mean(0).detach() if number >= 1 else None)
    weights = [memory ** (4 - number) for number in range(1, 5)]
    first = small_dscmh(balance_weight=1.0, moment_memory=memory)
    with torch.no_grad():
        start = first(draw(8, 0), START)["image"].mean(0)
    weights, means = [memory**4, *weights], [start, *means[1:]]
    expected = sum(w * m for w, m in zip(weights, means, strict=True)) / sum(weights)
    assert torch.allclose(method.image_moments.mean / method.image_moments.weight, expected, rtol=1e-9)
    assert float(step.terms["image_balance"]) == pytest.approx(float(expected.square().mean()), rel=1e-9)


def two_phases(seed: int = 0, **options: Any) -> DSCMH:
    chosen = {"label_network": "frozen", "align": "bits", "inter_weight": 0, "intra_weight": 0}
    return small_dscmh(seed, **{**chosen, **options})


def test_with_two_phases_no_code_is_gathered_and_no_optimiser_knows_the_label_network() -> None:
    method = two_phases()
    assert method.gathers == ("labels",)
    assert not any(name.startswith("label.") for name, _ in method.named_parameters())
    assert any(name.startswith("label.") for name, _ in method.named_buffers())


def test_frozen_label_codes_learn_which_sets_are_alike_and_then_stand_still() -> None:
    method = two_phases(label_rounds=3, label_steps=60, label_rate=0.01, code_length=16)
    sets = torch.eye(CLASSES, dtype=torch.float64)
    sets = torch.cat([sets, sets[:1] + sets[1:2]])
    batches = [draw(5, seed) | {"labels": sets} for seed in range(5)]
    for batch in batches[:3]:
        method = simulate(method, batch, 1).method  # type: ignore[assignment]
    assert method.label is not None
    codes = torch.where(method.label(sets)[0] >= 0, 1.0, -1.0)
    products = (codes @ codes.T / 16).fill_diagonal_(0)
    assert products[4, :2].min() > products[4, 2:4].max(), "a set of two labels is nearer to its own labels"
    weights = {name: value.clone() for name, value in method.label.named_buffers()}
    later = simulate(method, batches[4], 1).method
    assert isinstance(later, DSCMH)
    assert later.label is not None
    for name, value in later.label.named_buffers():
        assert torch.equal(value, weights[name])


def test_frozen_label_codes_are_the_same_on_any_number_of_ranks() -> None:
    found: list[Step] = []
    for ranks in (1, 2, 4):
        method = two_phases(5, chunk=ranks + 1)
        for number in range(3):
            step = simulate(method, draw(8, number), ranks)
            method = step.method  # type: ignore[assignment]
            method.zero_grad()
        found.append(step)
    for other in found[1:]:
        assert_equal_steps(found[0], other)


def test_a_step_needs_labels_of_the_right_width_and_a_model_their_number() -> None:
    assert method_class("dscmh").needs_labels
    with pytest.raises(ValueError, match=r"method.classes is not set: give the number of labels"):
        small_dscmh(classes=None)
    assert small_dscmh(classes=None, label_network="none").label is None
    batch = draw(4, 1)
    with pytest.raises(ValueError, match=r"method.classes is 3, label vectors have 4 entries"):
        small_dscmh(classes=3)(batch, START)
    del batch["labels"]
    with pytest.raises(ValueError, match=r"learns from labels, and the batch has none"):
        small_dscmh()(batch, START)


@pytest.mark.parametrize("network", ["trained", "frozen"])
def test_the_label_network_stays_in_the_artefact_but_is_no_part_of_a_side(
    network: str, tmp_path: Path
) -> None:
    method = warmed_up(small_dscmh(label_network=network)).float()
    before = {side: tower_fingerprint(method, side) for side in SIDES}
    assert method.label is not None
    with torch.no_grad():
        method.label.code.bias += 1
    assert {side: tower_fingerprint(method, side) for side in SIDES} == before
    save_pretrained(method, tmp_path / "model", card={})
    loaded = from_pretrained(tmp_path / "model")
    assert isinstance(loaded, DSCMH)
    assert loaded.label is not None
    sets = torch.eye(CLASSES)
    assert torch.equal(loaded.label(sets)[0], method.label(sets)[0])
    for side in SIDES:
        rows = method.collate(side, np.ones((3, WIDTHS[side])))
        assert torch.equal(loaded.encode(side, rows), method.encode(side, rows))
