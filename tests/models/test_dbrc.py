"""DBRC against its definition, and at any number of ranks in every phase of its statistics."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmh_models import build_method
from cmh_models.artefact import from_pretrained, save_pretrained, tower_fingerprint
from cmh_models.dbrc import DBRC
from cmh_models.method import SIDES, Batch, Progress, binarize
from tests import reference
from tests.models.simulation import START, assert_equal_steps, simulate

WIDTHS = {"image": 5, "text": 4}
DATA = ("dense", "tags", "counts")
FORMS = ("joint", "image", "text")


def small_dbrc(seed: int = 0, **options: Any) -> DBRC:
    torch.manual_seed(seed)
    method = {
        "name": "dbrc",
        "code_length": 8,
        "decoder_hidden": 6,
        "feature_rounds": 1,
        "spread_rounds": 1,
        **options,
    }
    towers = {side: {"name": "features", "width": WIDTHS[side], "hidden": 6} for side in SIDES}
    built = build_method(method, towers).double()
    assert isinstance(built, DBRC)
    return built


def draw(rows: int, seed: int) -> Batch:
    """Return a global batch of counts whose sides have something in common."""
    generator = torch.Generator().manual_seed(seed)
    topic = torch.rand(rows, 3, generator=generator, dtype=torch.float64)
    batch = {}
    for side in SIDES:
        mixing = 3 * torch.rand(3, WIDTHS[side], generator=generator, dtype=torch.float64)
        noise = torch.rand(rows, WIDTHS[side], generator=generator, dtype=torch.float64)
        batch[side] = (topic @ mixing - 1 + noise).clamp_min(0).round()
        batch[side][:, 0] += 1  # no row without any count
    return batch


def warmed_up(method: DBRC, rows: int = 12, rounds: int = 2) -> DBRC:
    for number in range(rounds):
        method = simulate(method, draw(rows, 100 + number), 1).method  # type: ignore[assignment]
        method.zero_grad()
    return method


@settings(max_examples=25)
@given(
    share=st.integers(1, 5),
    seed=st.integers(0, 999),
    rounds=st.integers(0, 3),
    form=st.sampled_from(("fixed", "schedule", "linear", "power", "cubic", "asinh")),
    per_bit=st.booleans(),
    start=st.sampled_from(("spread", "one")),
    presentations=st.lists(st.sampled_from(FORMS), min_size=1, unique=True),
    joint=st.sampled_from(("sum", "mean")),
    image_data=st.sampled_from((None, *DATA)),
    text_data=st.sampled_from((None, *DATA)),
    error_unit=st.sampled_from(("width", "constant")),
    balance_weight=st.sampled_from((0.0, 0.3)),
    decoder_hidden=st.sampled_from((0, 6)),
)
def test_one_two_and_four_ranks_make_the_same_step_in_every_phase_with_every_option(
    share: int, seed: int, rounds: int, form: str, per_bit: bool, start: str, **options: Any
) -> None:
    activation = {"scale_fn": form, "per_bit": per_bit, "start": start}
    method = warmed_up(small_dbrc(seed, activation=activation, **options), rounds=rounds)
    batch, progress = draw(4 * share, seed), Progress(epoch=3, step=7, total_steps=10)
    one = simulate(method, batch, 1, progress=progress)
    for ranks in (2, 4):
        assert_equal_steps(one, simulate(method, batch, ranks, progress=progress))


@pytest.mark.parametrize("image_data", DATA)
@pytest.mark.parametrize("text_data", DATA)
@pytest.mark.parametrize(
    ("presentations", "joint"), [(FORMS, "mean"), (("image", "text"), "mean"), (("joint",), "sum")]
)
def test_loss_and_gradient_equal_the_definition(
    image_data: str, text_data: str, presentations: tuple[str, ...], joint: str
) -> None:
    weights = {"image_weight": 0.7, "text_weight": 1.3, "pull_weight": 0.9, "balance_weight": 0.4}
    data = {"image_data": image_data, "text_data": text_data, "error_unit": "width"}
    method = warmed_up(small_dbrc(3, presentations=presentations, joint=joint, **data, **weights))
    batch = draw(7, 5)
    step = simulate(method, batch, 1)
    expected = oracle_terms(method, batch)
    assert set(step.terms) == set(expected)
    for name, value in expected.items():
        assert step.terms[name].item() == pytest.approx(value.item(), rel=1e-10), name
    torch.stack(list(expected.values())).sum().backward()
    for name, weight in method.named_parameters():
        assert torch.allclose(step.gradients[name], weight.grad, rtol=1e-9, atol=1e-13), name


def oracle_terms(method: DBRC, batch: Batch) -> dict[str, torch.Tensor]:
    """Return the weighted terms, one row after the other."""
    config = method.config
    weights = {"image": config.image_weight, "text": config.text_weight}
    rows = len(batch["image"])
    terms = {f"{side}_rebuilt": torch.zeros((), dtype=torch.float64) for side in SIDES}
    codes: dict[str, list] = {side: [] for side in SIDES}
    pull = torch.zeros((), dtype=torch.float64)
    for row in range(rows):
        own = {side: batch[side][row : row + 1] for side in SIDES}
        values = {side: getattr(method, side)(own[side]) for side in SIDES}
        share = 2 if config.joint == "mean" else 1
        values["joint"] = (values["image"] + values["text"]) / share
        code = {form: method.activation(value, START)[0] for form, value in values.items()}
        for form in config.presentations:
            for side in SIDES:
                error = reference.reconstruction_error(
                    method.data[side],
                    method.decoders[side](code[form]),
                    own[side][0],
                    getattr(method, side).standardise(own[side])[0],
                )
                terms[f"{side}_rebuilt"] = terms[f"{side}_rebuilt"] + weights[side] * error / rows
        distance = sum((a - b) ** 2 for a, b in zip(code["image"], code["text"], strict=True))
        pull = pull + config.pull_weight * distance / method.code_length / rows
        for side in SIDES:
            codes[side].append(code[side])
    for side in SIDES:
        means = sum(codes[side]) / rows
        uneven = sum(mean**2 for mean in means) / method.code_length
        terms[f"{side}_balance"] = config.balance_weight * uneven
    slopes = method.activation.slope()
    penalty = config.activation.penalty * sum(slope**-2 for slope in slopes)
    return terms | {"pull": pull, "slope": penalty}


@pytest.mark.parametrize("data", DATA)
def test_errors_as_shares_of_the_best_constant_are_about_one_for_a_decoder_that_says_the_mean(
    data: str,
) -> None:
    method = small_dbrc(text_data=data, error_unit="constant", decoder_hidden=0, presentations=("text",))
    batch = draw(40, 1)
    method = simulate(method, batch, 1).method  # type: ignore[assignment]
    seen = batch["text"]
    shares = (seen > 0).double().mean(0)
    constant = {
        "dense": torch.zeros(4),
        "tags": (shares / (1 - shares)).log().clamp(-30, 30),
        "counts": seen.mean(0).log().clamp_min(-30),
    }
    with torch.no_grad():
        method.decoders["text"].weight.zero_()
        method.decoders["text"].bias.copy_(constant[data])
    share = float(simulate(method, batch, 1).terms["text_rebuilt"])
    assert share == pytest.approx(1, abs=1e-6 if data != "counts" else 0.15)


def test_without_balance_nothing_is_exchanged_and_rows_do_not_see_each_other() -> None:
    method = warmed_up(small_dbrc(balance_weight=0))
    assert method.gathers == ()
    batch = draw(6, 2)
    assert method.sums(method(batch, START)) == {}
    whole = simulate(method, batch, 1)
    parts = [simulate(method, {k: v[i : i + 1] for k, v in batch.items()}, 1) for i in range(6)]
    assert float(whole.loss) == pytest.approx(sum(float(part.loss) for part in parts) / 6, rel=1e-12)


@pytest.mark.parametrize("form", ["linear", "power", "cubic", "asinh"])
def test_a_code_at_test_time_is_the_sign_of_its_side_alone_and_that_of_training(form: str) -> None:
    method = warmed_up(small_dbrc(activation={"scale_fn": form}))
    batch = draw(6, 2)
    output = method(batch, START)
    for side in SIDES:
        assert torch.equal(binarize(method.encode(side, batch[side])), binarize(output[side]))
        values = getattr(method, side)(batch[side])
        assert torch.equal(binarize(method.encode(side, batch[side])), binarize(values))


def test_training_rebuilds_both_sides_from_either_better_than_a_constant() -> None:
    method = warmed_up(small_dbrc(code_length=16, error_unit="constant"), rows=64)
    batch = draw(64, 100)
    optimiser = torch.optim.Adam(method.parameters(), lr=0.02)
    first = simulate(method, batch, 1)
    for _ in range(150):
        optimiser.zero_grad()
        output = method(batch, START)
        sums = method.sums(output)
        terms = method.loss(output, None, sums, START)  # type: ignore[arg-type]
        torch.stack([term.numerator / term.denominator for term in terms.values()]).sum().backward()
        optimiser.step()
    last = simulate(method, batch, 1)
    assert last.loss < 0.5 * first.loss
    for side in SIDES:
        assert last.terms[f"{side}_rebuilt"] / 3 < 0.7, "of each presented form, on average"


@pytest.mark.parametrize("data", ["tags", "counts"])
def test_negative_values_cannot_be_tags_or_counts_and_are_refused_before_training(data: str) -> None:
    method = small_dbrc(text_data=data)
    batch = draw(6, 2)
    batch["text"][3, 1] = -0.5
    with pytest.raises(ValueError, match=f"method.text_data is '{data}'.*set method.text_data to 'dense'"):
        simulate(method, batch, 1)


@pytest.mark.parametrize("wrong", [[], ["image", "image"], ["picture"]])
def test_presentations_that_make_no_sense_are_refused(wrong: list[str]) -> None:
    with pytest.raises(ValueError, match="presentations"):
        small_dbrc(presentations=wrong)


def test_the_bag_of_words_is_rebuilt_as_counts_and_pictures_as_dense_values() -> None:
    built = build_method({"name": "dbrc", "code_length": 8}, {})
    assert isinstance(built, DBRC)
    assert built.data == {"image": "dense", "text": "counts"}


def test_pictures_and_captions_make_the_same_step_on_any_number_of_ranks() -> None:
    torch.manual_seed(0)
    method = build_method({"name": "dbrc", "code_length": 16, "feature_rounds": 1}, {})
    generator = np.random.default_rng(1)
    texts = ["a red boat", "two houses at night", "fish", "a red house"]
    batch = {
        "image": method.collate("image", generator.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)),
        "text": method.collate("text", texts),
    }
    for _ in range(2):
        method = simulate(method, batch, 1).method
        method.zero_grad()
    one = simulate(method, batch, 1)
    assert one.loss.isfinite()
    assert_equal_steps(one, simulate(method, batch, 2), relative=1e-4)


def test_decoders_and_slopes_stay_in_the_artefact_but_are_no_part_of_a_side(tmp_path: Path) -> None:
    method = warmed_up(small_dbrc()).float()
    before = {side: tower_fingerprint(method, side) for side in SIDES}
    with torch.no_grad():
        method.activation.rho += 1
        for weight in method.decoders.parameters():
            weight += 1
    assert {side: tower_fingerprint(method, side) for side in SIDES} == before
    save_pretrained(method, tmp_path / "model", card={})
    loaded = from_pretrained(tmp_path / "model")
    state = loaded.state_dict()
    assert set(state) == set(method.state_dict())
    assert all(torch.equal(state[name], value) for name, value in method.state_dict().items())
    batch = {side: values.float() for side, values in draw(5, 1).items()}
    for side in SIDES:
        assert torch.equal(loaded.encode(side, batch[side]), method.encode(side, batch[side]))
