"""The contract: what the loss sees, and that the number of ranks changes nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmh_models import METHODS, build_method, method_class, method_config
from cmh_models.method import HashMethod, binarize
from tests.models.fakes import FAKES, draw_batch
from tests.models.simulation import assert_equal_steps, simulate


@pytest.mark.parametrize("fake", FAKES)
@settings(max_examples=12)
@given(share=st.integers(1, 4), seed=st.integers(0, 999))
def test_any_shape_of_method_gives_the_same_step_on_one_two_and_four_ranks(
    fake: str, share: int, seed: int
) -> None:
    torch.manual_seed(seed)
    method = FAKES[fake]().double()
    batch = draw_batch(4 * share, seed)
    one = simulate(method, batch, 1)
    for ranks in (2, 4):
        assert_equal_steps(one, simulate(method, batch, ranks))


def test_the_simulation_finds_a_loss_that_forgets_the_other_ranks() -> None:
    class Forgetful(FAKES["pair loss"]):
        def loss(self, output, everyone, sums, progress):  # type: ignore[no-untyped-def]
            return super().loss(output, dict(output), sums, progress)

    method, batch = Forgetful().double(), draw_batch(8, 1)
    with pytest.raises(AssertionError):
        assert_equal_steps(simulate(method, batch, 1), simulate(method, batch, 2))


def test_binarize_maps_zero_to_plus_one() -> None:
    assert binarize(torch.tensor([-0.1, -0.0, 0.0, 0.1])).tolist() == [-1, 1, 1, 1]


def test_encoding_returns_relaxed_codes_of_one_side() -> None:
    method = FAKES["pair loss"](16)
    codes = method.encode("text", method.collate("text", np.ones((3, 6))))
    assert codes.shape == (3, 16)
    assert codes.abs().max() <= 1


def test_every_registered_method_builds_from_its_name_and_what_the_training_job_fills_in() -> None:
    filled = {"classes": 3}
    towers = {"image": {"name": "features", "width": 5}, "text": {"name": "features", "width": 4}}
    for name in METHODS:
        known = filled.keys() & method_class(name).Config.model_fields
        built = build_method({"name": name, **{field: filled[field] for field in known}}, towers)
        assert isinstance(built, HashMethod)
        again = build_method(built.spec["method"], built.spec["towers"])
        assert again.spec == built.spec


def test_an_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown method 'jdhs'; known: .*jdsh"):
        method_class("jdhs")
    with pytest.raises(ValueError, match=r"method.name is missing"):
        method_config({})


@pytest.mark.parametrize("code_length", [0, 20, 63, -8])
def test_a_code_length_that_is_not_whole_bytes_is_refused(code_length: int) -> None:
    with pytest.raises(ValueError, match=f"positive multiple of 8, got {code_length}"):
        method_config({"name": "jdsh", "code_length": code_length})


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ValueError, match="intra_wieght"):
        method_config({"name": "jdsh", "intra_wieght": 1})


def test_feature_towers_ask_for_their_width() -> None:
    with pytest.raises(ValueError, match=r"towers.text.width is not set"):
        build_method({"name": "jdsh"}, {"text": {"name": "features"}})
