"""JDSH against its definition, and at any number of ranks, chunk size and phase of its statistics."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmh_models import build_method
from cmh_models.jdsh import JDSH
from cmh_models.method import SIDES, Batch, Progress
from tests import reference
from tests.models.simulation import assert_equal_steps, simulate

WIDTHS = {"image": 5, "text": 4}
FORMS = ("released", "fused", "centred")


def small_jdsh(similarity: dict[str, Any] | None = None, seed: int = 0, **options: Any) -> JDSH:
    torch.manual_seed(seed)
    method = {
        "name": "jdsh",
        "code_length": 8,
        "feature_rounds": 1,
        "moment_rounds": 2,
        "threshold_rounds": 1,
        "similarity": {"left_scales": 1.0, "right_scales": 1.0, "extreme": 0.05, **(similarity or {})},
        **options,
    }
    towers = {side: {"name": "features", "width": WIDTHS[side], "hidden": 6} for side in SIDES}
    built = build_method(method, towers).double()
    assert isinstance(built, JDSH)
    return built


def draw(rows: int, seed: int) -> Batch:
    """Return a global batch whose sides have something in common."""
    generator = torch.Generator().manual_seed(seed)
    topic = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    batch = {}
    for side in SIDES:
        mixing = torch.randn(3, WIDTHS[side], generator=generator, dtype=torch.float64)
        noise = torch.randn(rows, WIDTHS[side], generator=generator, dtype=torch.float64)
        batch[side] = topic @ mixing + noise + 0.5
    return batch


def warmed_up(method: JDSH, rows: int, seed: int, ranks: int = 1) -> JDSH:
    """Return the method after the rounds that its statistics take."""
    for number in range(method.statistics_rounds):
        method = simulate(method, draw(rows, seed + number), ranks).method  # type: ignore[assignment]
        method.zero_grad()
    return method


@settings(max_examples=25)
@given(
    share=st.integers(2, 5),
    seed=st.integers(0, 999),
    rounds=st.integers(0, 4),
    chunk=st.integers(1, 24),
    form=st.sampled_from(FORMS),
    moments=st.sampled_from(("population", "batch")),
    pair_means=st.sampled_from(("all", "separate")),
    slope=st.sampled_from(("sqrt", "constant")),
    tell_rows=st.booleans(),
    dsdw=st.booleans(),
    cross_weight=st.sampled_from((0.0, 0.3)),
)
def test_one_two_and_four_ranks_make_the_same_step_in_every_phase_with_every_option(
    share: int, seed: int, rounds: int, chunk: int, cross_weight: float, tell_rows: bool, **options: Any
) -> None:
    names = ("form", "moments", "dsdw")
    similarity = {name: options.pop(name) for name in names} | {"cross_weight": cross_weight}
    method = small_jdsh(similarity, seed, chunk=chunk, **options)
    for number in range(rounds):
        method = simulate(method, draw(4 * share, seed + number), 1).method  # type: ignore[assignment]
        method.zero_grad()
    batch, progress = draw(4 * share, seed + rounds), Progress(epoch=3, step=7, total_steps=10)
    one = simulate(method, batch, 1, progress=progress, tell_rows=False)
    for ranks in (1, 2, 4):
        assert_equal_steps(one, simulate(method, batch, ranks, progress=progress, tell_rows=tell_rows))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pair_means", ["all", "separate"])
def test_loss_and_gradient_equal_the_all_pairs_definition_over_the_batch(form: str, pair_means: str) -> None:
    weights = {"image_weight": 0.3, "text_weight": 0.2, "cross_weight": 0.5}
    similarity = {"form": form, "moments": "batch", "left_gain": 0.3, "right_gain": 0.4, **weights}
    method = warmed_up(small_jdsh(similarity, pair_means=pair_means, chunk=5), 12, seed=3)
    batch, progress = draw(12, seed=8), Progress(epoch=2, step=5, total_steps=10)
    step = simulate(method, batch, 1, progress=progress)
    rows = scaled(method, batch)
    fused = reference.jdsh_similarity(*rows, rows, form=form, weights=tuple(weights.values()))
    expected = oracle_terms(method, batch, fused, progress=progress)
    assert set(step.terms) == set(expected)
    for name, value in expected.items():
        assert step.terms[name].item() == pytest.approx(value.item(), rel=1e-10), name
    torch.stack(list(expected.values())).sum().backward()
    for name, weight in method.named_parameters():
        assert torch.allclose(step.gradients[name], weight.grad, rtol=1e-9, atol=1e-13), name


@pytest.mark.parametrize("form", FORMS)
def test_population_moments_give_the_cross_product_term_over_all_rows_seen(form: str) -> None:
    method = small_jdsh({"form": form, "dsdw": False, "scale": 1.0}, moment_rounds=3)
    seen = []
    for number in range(method.statistics_rounds):
        batch = draw(10, seed=number)
        if 1 <= number < 4:
            seen.append(scaled(method, batch))
        method = simulate(method, batch, 1).method
        method.zero_grad()
    population = tuple(np.concatenate([rows[side] for rows in seen]) for side in (0, 1))
    batch = draw(7, seed=20)
    fused = reference.jdsh_similarity(*scaled(method, batch), population, form=form, weights=(0.1, 0.5, 0.4))
    ours = method.similarity
    rows = ours.rows(*(torch.from_numpy(side) for side in scaled(method, batch)), ours.population())
    assert np.allclose(ours.fuse(rows, rows).numpy(), fused, rtol=1e-10, atol=1e-12)


def test_published_moments_of_the_released_form_are_those_of_the_batch() -> None:
    """The one option under which the target is the released code's, to the last digit it defines."""
    method = small_jdsh({"form": "released", "moments": "batch", "dsdw": False})
    batch = draw(9, seed=4)
    rows = scaled(method, batch)
    f, g = (2 * side @ side.T - 1 for side in rows)
    a, b = (s / np.linalg.norm(s, axis=1, keepdims=True) for s in (f, g))
    published = 0.1 * f + 0.5 * g + 0.4 * (a @ b.T + (a @ b.T).T) / 2
    assert np.allclose(
        reference.jdsh_similarity(*rows, rows, form="released", weights=(0.1, 0.5, 0.4)), published
    )


def test_statistics_stand_still_after_their_rounds() -> None:
    method = warmed_up(small_jdsh(), 12, seed=1)
    before = {name: buffer.clone() for name, buffer in method.named_buffers() if name != "rounds"}
    after = simulate(method, draw(12, seed=77), 2).method
    assert all(torch.equal(after.get_buffer(name), value) for name, value in before.items())
    assert method.similarity.thresholds.isfinite().all()


def test_an_untrained_method_has_thresholds_that_decide_nothing() -> None:
    similarity = small_jdsh().similarity
    fused = torch.linspace(-1, 1, 9, dtype=torch.float64)
    assert torch.equal(similarity.decide(fused, similarity.limits()), 1.4 * fused)
    assert similarity.classes(fused)[0].all()


def test_codes_of_a_model_that_is_cast_to_half_keep_their_statistics() -> None:
    method = warmed_up(small_jdsh(), 12, seed=1)
    kept = {name: buffer.clone() for name, buffer in method.named_buffers()}
    method.bfloat16()
    assert method.image.head[0].weight.dtype == torch.bfloat16
    assert all(torch.equal(method.get_buffer(name), value) for name, value in kept.items())


def scaled(method: JDSH, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Return the unit features of a batch as the method scales them now."""
    f, g = (getattr(method, side).standardise(batch[side]).numpy() for side in SIDES)
    return tuple(side / np.linalg.norm(side, axis=1, keepdims=True) for side in (f, g))  # type: ignore


def oracle_terms(
    method: JDSH, batch: Batch, fused: np.ndarray, *, progress: Progress
) -> dict[str, torch.Tensor]:
    """Return the weighted terms from naive loops over all pairs."""
    config = method.config
    thresholds = method.similarity.thresholds.tolist()
    gains = config.similarity.left_gain, config.similarity.right_gain
    target = reference.jdsh_target(fused, thresholds, gains, config.similarity.scale)
    classes = np.where(fused < thresholds[0], 1, np.where(fused > thresholds[1], 2, 0))
    slope = (progress.epoch + 1) ** 0.5
    codes = [torch.tanh(slope * getattr(method, side)(batch[side])) for side in SIDES]
    separate = config.pair_means == "separate"
    terms = {}
    for name, value in reference.jdsh_terms(*codes, target, classes if separate else None).items():
        if isinstance(name, tuple):
            matrix, kind = name
            weight = config.cross_weight if matrix == "image_text" else config.intra_weight
            label = f"{matrix}_{('bulk', 'left', 'right')[kind]}" if separate else matrix
            terms[label] = weight * (config.class_weights[kind] if separate else 1) * value
        else:
            weight = config.paired_weight if name == "paired" else config.coherence_weight
            terms[name] = weight * value
    return terms
