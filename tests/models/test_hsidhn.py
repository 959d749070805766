"""HSIDHN against its definition, and at any number of ranks, chunk size and choice of its options."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cmh_models import build_method
from cmh_models.artefact import from_pretrained, save_pretrained, tower_fingerprint
from cmh_models.hsidhn import ABLATIONS, HSIDHN, KINDS
from cmh_models.method import SIDES, Batch, Progress
from pipeline.corpus.recipe import DecodeLimits
from pipeline.corpus.schema import Columns
from pipeline.encoding.models import input_recipe
from tests import reference_hsidhn as reference
from tests.models.simulation import START, assert_equal_steps, simulate

WIDTHS = {"image": 5, "text": 4}
LEVELS: dict[str, Any] = {"width": 6, "depth": 3, "windows": (3, 2), "interaction": {"rank": 4}}
FEATURES: dict[str, Any] = {side: {"name": "features", "width": WIDTHS[side], "hidden": 7} for side in SIDES}
PICTURES = {
    "image": {"name": "cnn", "image_size": 16, "channels": [8, 8, 8], "hidden": 8},
    "text": {"name": "bag", "word_buckets": 32, "pair_buckets": 16, "hidden": 8},
}
DESCRIBED = {
    "image": {"name": "descriptor", "image_size": 16, "hidden": 8},
    "text": {"name": "bag", "word_buckets": 32, "pair_buckets": 16, "hidden": 8},
}
TEXTS = ("a red boat", "two houses at night", "fish", "the red house by the sea and a boat")


def small(
    towers: dict[str, Any] | None = None,
    *,
    levels: dict[str, Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> HSIDHN:
    torch.manual_seed(seed)
    levels = LEVELS | (levels or {})
    method = {"name": "hsidhn", "code_length": 8, "feature_rounds": 1, "levels": levels, **options}
    built = build_method(method, towers or FEATURES)
    assert isinstance(built, HSIDHN)
    return built.double()


def draw(method: HSIDHN, rows: int, seed: int, classes: int = 3) -> Batch:
    """Return a global batch that the towers of the method take; some rows have no label."""
    generator = np.random.default_rng(seed)
    labels = torch.from_numpy(generator.random((rows, classes)) < 0.4).double()
    batch: Batch = {"labels": labels}
    for side in SIDES:
        tower = method.spec["towers"][side]["name"]
        if tower == "features":
            batch[side] = torch.from_numpy(generator.normal(size=(rows, WIDTHS[side])))
        elif tower == "bag":
            batch[side] = method.collate(side, [TEXTS[i] for i in generator.integers(0, len(TEXTS), rows)])
        else:
            pixels = generator.integers(0, 256, (rows, 16, 16, 3), dtype=np.uint8)
            batch[side] = method.collate(side, pixels)
    return batch


@settings(max_examples=15)
@given(
    share=st.integers(1, 4),
    seed=st.integers(0, 999),
    rounds=st.integers(0, 2),
    chunk=st.integers(1, 17),
    similarity=st.sampled_from(("dual", "hard", "soft")),
    dual=st.sampled_from(("parallel", "exclusive")),
    pair_means=st.sampled_from(("separate", "all")),
    logit=st.sampled_from(("length", "half", "idhn")),
    quantisation=st.sampled_from(("sign", "absolute")),
    reading=st.sampled_from(("none", "bottom_up", "top_down", "both", "pairs")),
    scale=st.sampled_from(("plain", "rooted")),
    vectors=st.sampled_from(("mlp", "pyramid")),
    multi_scale=st.booleans(),
    dropout=st.sampled_from((0.0, 0.5)),
)
def test_one_two_and_four_ranks_make_the_same_step_with_every_option(
    share: int,
    seed: int,
    rounds: int,
    reading: str,
    scale: str,
    vectors: str,
    multi_scale: bool,
    **options: Any,
) -> None:
    levels = {
        "image_vectors": vectors,
        "multi_scale": multi_scale,
        "dropout": options.pop("dropout"),
        "interaction": {"reading": reading, "rank": 3, "scale": scale},
    }
    method = small(levels=levels, seed=seed, **options)
    for number in range(rounds):
        method = simulate(method, draw(method, 4 * share, seed + number), 1).method  # type: ignore[assignment]
        method.zero_grad()
    batch, progress = draw(method, 4 * share, seed + rounds), Progress(epoch=3, step=7, total_steps=10)
    one = simulate(method, batch, 1, progress=progress)
    for ranks in (2, 4):
        assert_equal_steps(one, simulate(method, batch, ranks, progress=progress))


@pytest.mark.parametrize("towers", [PICTURES, DESCRIBED], ids=["cnn", "descriptor"])
@pytest.mark.parametrize("vectors", ["mlp", "pyramid"])
def test_ranks_make_the_same_step_on_pictures_and_texts_padded_each_on_its_own(
    towers: dict, vectors: str
) -> None:
    method = small(towers, levels={"text_vectors": vectors}, chunk=3)
    batch = draw(method, 8, seed=2)
    one = simulate(method, batch, 1)
    cut = {name: value[:4] for name, value in batch.items()}
    cut["text"] = cut["text"][:, : int((cut["text"] != 0).sum(1).max())]
    half = simulate(method, batch, 2)
    assert_equal_steps(one, half)
    ours, theirs = (method(rows, START)["text_levels"][:4] for rows in (cut, batch))
    assert torch.allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("similarity", ["dual", "hard", "soft"])
@pytest.mark.parametrize("dual", ["parallel", "exclusive"])
@pytest.mark.parametrize("pair_means", ["separate", "all"])
@pytest.mark.parametrize("quantisation", ["sign", "absolute"])
def test_loss_and_gradient_equal_the_all_pairs_definition(
    similarity: str, dual: str, pair_means: str, quantisation: str
) -> None:
    choices: dict[str, Any] = {
        "similarity": similarity,
        "dual": dual,
        "pair_means": pair_means,
        "quantisation": quantisation,
    }
    weights: dict[str, Any] = {
        "inter_weight": 0.7,
        "intra_weight": 0.3,
        "soft_weight": 0.2,
        "level_weight": 0.6,
    }
    method = small(**choices, **weights, class_weights=(0.4, 0.6), logit="idhn", chunk=4)
    batch = draw(method, 6, seed=5, classes=4)
    step = simulate(method, batch, 1)
    expected = oracle_terms(method, batch)
    assert {name for name, value in step.terms.items() if value != 0} == set(expected)
    for name, value in expected.items():
        assert step.terms[name].item() == pytest.approx(value.item(), rel=1e-10), name
    torch.stack(list(expected.values())).sum().backward()
    for name, weight in method.named_parameters():
        assert torch.allclose(step.gradients[name], gradient(weight), rtol=1e-9, atol=1e-13), name


def gradient(weight: nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


def oracle_terms(method: HSIDHN, batch: Batch) -> dict[str, torch.Tensor]:
    """Return the weighted terms from naive loops over all pairs."""
    config, output = method.config, method(batch, START)
    means = reference.pair_means(
        {side: list(output[f"{side}_levels"].unbind(1)) for side in SIDES},
        {side: output[side] for side in SIDES},
        batch["labels"].numpy(),
        kinds=KINDS[config.similarity],
        exclusive=config.dual == "exclusive",
        separate=config.pair_means == "separate",
        scale=5 / config.code_length,
        level_weight=config.level_weight,
    )
    terms = {}
    for (relation, kind, number), value in means.items():
        weight = config.inter_weight if relation == "inter" else config.intra_weight
        weight *= config.soft_weight * config.code_length if kind == "soft" else 1
        name = f"{relation}_{kind}"
        if config.pair_means == "separate":
            weight *= config.class_weights[number]
            name += ("_similar", "_dissimilar")[number]
        terms[name] = weight * value
    absolute = config.quantisation == "absolute"
    error = reference.quantisation(output["image"], output["text"], absolute=absolute)
    terms["quantisation"] = config.quantisation_weight * error
    return terms


def test_logits_scale_as_the_released_codes_do() -> None:
    scales = {logit: small(logit=logit, code_length=64).scale for logit in ("length", "half", "idhn")}
    assert scales == {"length": 0.5, "half": 0.5, "idhn": 5 / 64}
    assert small(code_length=16).scale == 2.0


def test_the_final_code_weighs_level_codes_per_bit() -> None:
    method = small().eval()
    batch = draw(method, 3, seed=1)
    output = method(batch, START)
    for side in SIDES:
        mix = getattr(method, side).heads.mix.detach().numpy()
        for row, levels in zip(output[side], output[f"{side}_levels"].detach().numpy(), strict=True):
            values = reference.final_values(levels, mix)
            assert np.allclose(row.detach().numpy(), np.tanh(values), rtol=1e-12)
        assert torch.equal(method.encode(side, batch[side]), output[side])


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_trains_all_that_it_has(name: str) -> None:
    options = {key: value for key, value in ABLATIONS[name].items() if key != "levels"}
    wide = {side: settings | {"hidden": 32} for side, settings in FEATURES.items()}
    method = small(wide, levels=ABLATIONS[name].get("levels", {}), **options)
    step = simulate(method, draw(method, 16, seed=3), 1)
    assert [name for name, gradient in step.gradients.items() if not gradient.any()] == []
    kinds = {term.split("_")[1] for term in step.terms if term != "quantisation"}
    assert kinds == set(KINDS[options.get("similarity", "dual")])


def test_level_codes_stay_on_their_rank_and_nothing_is_stored_per_row() -> None:
    method = small()
    assert method.gathers == ("image", "text", "labels")
    counts = {name: buffer.numel() for name, buffer in method.named_buffers()}
    assert max(counts.values()) == max(WIDTHS.values())
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in method.modules())


def test_scaling_of_features_stands_still_after_its_rounds() -> None:
    method = small()
    method = simulate(method, draw(method, 8, seed=0), 1).method  # type: ignore[assignment]
    before = method.image.standardiser.mean.clone()
    assert before.any()
    after = simulate(method, draw(method, 8, seed=1), 2).method
    assert torch.equal(after.get_buffer("image.tower.standardiser.mean"), before)


@pytest.mark.parametrize("towers", [FEATURES, PICTURES, DESCRIBED], ids=["features", "cnn", "descriptor"])
@pytest.mark.parametrize("reading", ["both", "pairs"])
@pytest.mark.parametrize("vectors", ["mlp", "pyramid"])
def test_a_model_comes_back_from_its_folder(towers: dict, reading: str, vectors: str, tmp_path: Path) -> None:
    levels = {"interaction": {"reading": reading, "rank": 3}, "text_vectors": vectors}
    method = small(towers, levels=levels).float().eval()
    save_pretrained(method, tmp_path / "m", card={})
    loaded = from_pretrained(tmp_path / "m")
    batch = {
        name: value.float() if value.is_floating_point() else value
        for name, value in draw(method, 3, 1).items()
    }
    for side in SIDES:
        assert torch.equal(loaded.encode(side, batch[side]), method.encode(side, batch[side]))
        assert tower_fingerprint(loaded, side) == tower_fingerprint(method, side)


def test_the_jobs_know_what_its_sides_take() -> None:
    taken = input_recipe(small(), Columns(), DecodeLimits())
    assert (taken.image_size, taken.text_width) == (None, WIDTHS["text"])
    taken = input_recipe(small(PICTURES), Columns(), DecodeLimits())
    assert (taken.image_size, taken.text_width) == (16, None)


def test_the_choice_of_text_levels_is_no_part_of_the_image_side() -> None:
    prints = {
        vectors: tower_fingerprint(small(levels={"text_vectors": vectors}), "image")
        for vectors in ("mlp", "pyramid")
    }
    assert prints["mlp"] == prints["pyramid"]


def test_a_batch_without_labels_is_refused() -> None:
    method = small()
    batch = draw(method, 4, seed=0)
    del batch["labels"]
    with pytest.raises(ValueError, match="hsidhn learns from labels, and the batch has none"):
        method(batch, START)


def test_all_pairs_of_one_level_are_refused_before_anything_is_built() -> None:
    with pytest.raises(ValueError, match="pairs needs two levels or more"):
        small(levels={"use": "last", "interaction": {"reading": "pairs"}})


def test_training_brings_rows_that_share_a_label_together() -> None:
    method = small(code_length=16, seed=1, levels={"dropout": 0.0}).float()
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(24) % 3
    labels = torch.eye(3)[classes]
    batch = {"labels": labels}
    for side in SIDES:
        centres = torch.randn(3, WIDTHS[side], generator=generator)
        batch[side] = centres[classes] + 0.3 * torch.randn(24, WIDTHS[side], generator=generator)
    optimiser = torch.optim.Adam(method.parameters(), 3e-3)
    for _ in range(40):
        optimiser.zero_grad()
        step = simulate(method, batch, 1)
        method.load_state_dict(dict(step.method.named_buffers()), strict=False)
        for name, weight in method.named_parameters():
            weight.grad = step.gradients[name]
        optimiser.step()
    method.eval()
    signs = {side: method.encode(side, batch[side]).detach().sign() for side in SIDES}
    agreement = signs["image"] @ signs["text"].T / 16
    same = labels @ labels.T > 0
    assert agreement[same].mean() > 0.8
    assert agreement[~same].mean() < 0.1
