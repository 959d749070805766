"""Towers: what they take, what they refuse, and that a row's code is its own."""

from typing import Any

import numpy as np
import pytest
import torch

from cmh_models import build_method
from cmh_models.artefact import tower_fingerprint
from cmh_models.method import HashMethod, Side


def built(image: dict[str, Any], text: dict[str, Any] | None = None) -> HashMethod:
    torch.manual_seed(0)
    return build_method(
        {"name": "jdsh", "code_length": 16}, {"image": image, "text": text or {"name": "bag"}}
    )


@pytest.mark.parametrize("name", ["descriptor", "cnn"])
def test_the_code_of_a_picture_does_not_depend_on_its_neighbours(name: str) -> None:
    method = built({"name": name, "image_size": 24}).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 24, 24, 3), dtype=np.uint8)
    inputs = method.collate("image", pixels)
    codes = method.encode("image", inputs)
    assert torch.allclose(method.encode("image", inputs[4:5])[0], codes[4], atol=1e-6)
    assert torch.equal(method.encode("image", inputs.flip(0)).flip(0), codes)


@pytest.mark.parametrize("name", ["descriptor", "cnn"])
def test_a_picture_tower_learns_its_trained_part(name: str) -> None:
    method = built({"name": name, "image_size": 16})
    method.encode("image", method.collate("image", np.zeros((2, 16, 16, 3), np.uint8) + 90)).sum().backward()
    gradients = [weight.grad for weight in method.image.parameters()]
    assert all(gradient is not None for gradient in gradients)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((2, 24, 25, 3), np.uint8),
        np.zeros((2, 24, 24), np.uint8),
        np.zeros((2, 24, 24, 3), np.float32),
    ],
)
def test_pictures_of_another_shape_or_type_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"must be \(rows, 24, 24, 3\) uint8, got"):
        built({"name": "descriptor", "image_size": 24}).collate("image", pixels)


def test_features_of_another_width_are_refused() -> None:
    method = built({"name": "features", "width": 5}, {"name": "features", "width": 4})
    assert method.image_size is None
    with pytest.raises(ValueError, match=r"shape \(rows, 5\), got \(2, 4\)"):
        method.collate("image", np.zeros((2, 4)))


def test_features_given_to_the_bag_tower_are_refused() -> None:
    with pytest.raises(TypeError, match="takes texts"):
        built({"name": "descriptor"}).collate("text", np.zeros((2, 4)))


@pytest.mark.parametrize(
    ("towers", "message"),
    [
        ({"image": {"name": "resnet"}}, "'resnet'"),
        ({"text": {"name": "descriptor"}}, "'descriptor'"),
        ({"image": {"name": "cnn", "depth": 3}}, "depth"),
        ({"sound": {}}, "sound"),
    ],
)
def test_unknown_towers_and_options_are_refused(towers: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_method({"name": "jdsh"}, towers)


def test_the_description_of_a_text_counts_its_words() -> None:
    method = built({"name": "descriptor"}, {"name": "bag", "word_buckets": 64})
    described = method.text.describe(method.collate("text", ["boat boat boat fish"]))
    assert described.shape == (1, 64)
    assert sorted(described[described > 0].tolist()) == pytest.approx([1, 1 + np.log(3)])


TOWERS = [
    ("image", {"name": "descriptor", "image_size": 16}),
    ("image", {"name": "descriptor", "image_size": 16, "cells": 6}),
    ("image", {"name": "cnn", "image_size": 16}),
    ("image", {"name": "features", "width": 6}),
    ("text", {"name": "bag"}),
    ("text", {"name": "bag", "trained_on": "description", "unit": True}),
]


def built_side(side: str, tower: dict[str, Any]) -> HashMethod:
    return built(tower) if side == "image" else built({"name": "descriptor"}, tower)


def inputs_of(method: HashMethod, side: str, tower: dict[str, Any]) -> torch.Tensor:
    generator = np.random.default_rng(0)
    if side == "text":
        return method.collate("text", ["a red boat", "two fish", "a boat in the rain", "hills"])
    if tower["name"] == "features":
        return method.collate("image", generator.normal(size=(4, 6)))
    return method.collate("image", generator.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8))


@pytest.mark.parametrize(("side", "tower"), TOWERS)
def test_dropout_belongs_to_the_row_and_ends_with_training(side: str, tower: dict[str, Any]) -> None:
    method, without = built_side(side, tower | {"dropout": 0.5}), built_side(side, tower)
    inputs = inputs_of(method, side, tower)
    network = getattr(method, side)
    torch.manual_seed(3)
    dropped = network(inputs)
    assert torch.allclose(network(inputs.flip(0)).flip(0), dropped, atol=1e-5), "another order of the batch"
    assert torch.allclose(network(inputs[1:3]), dropped[1:3], atol=1e-5), "another rank's share"
    torch.manual_seed(4)
    assert not torch.allclose(network(inputs), dropped, atol=1e-5), "another step draws anew"
    assert torch.equal(network.eval()(inputs), getattr(without, side).eval()(inputs))


@pytest.mark.parametrize(("side", "tower"), TOWERS)
def test_dropout_while_training_changes_no_fingerprint(side: Side, tower: dict[str, Any]) -> None:
    method, without = built_side(side, tower | {"dropout": 0.5}), built_side(side, tower)
    assert tower_fingerprint(method, side) == tower_fingerprint(without, side)


NEWER: list[tuple[Side, dict[str, Any], dict[str, Any]]] = [
    ("image", {"name": "descriptor"}, {"cells": 4}),
    ("text", {"name": "bag"}, {"rarest": 0.0, "unit": False, "trained_on": "tokens"}),
]
"""Options that are younger than models in use: side, tower, the option at its default."""


@pytest.mark.parametrize(("side", "tower", "option"), NEWER)
def test_an_option_at_its_default_changes_no_name_of_a_model_from_before_it(
    side: Side, tower: dict[str, Any], option: dict[str, Any]
) -> None:
    given, before = built_side(side, tower | option), built_side(side, tower)
    assert given.spec == before.spec and not set(option) & set(before.spec["towers"][side])
    assert tower_fingerprint(given, side) == tower_fingerprint(before, side)
    assert not set(option) & set(getattr(given, side).architecture()["tower"])


def test_cells_of_a_descriptor_stand_in_its_name_and_its_spec() -> None:
    method = built({"name": "descriptor", "cells": 6})
    assert method.image.architecture()["tower"]["cells"] == 6
    again = build_method(method.spec["method"], method.spec["towers"])
    assert again.image.width == method.image.width == 6 * 6 * 3 + 6 * 6 * 8 + 64


@pytest.mark.parametrize("name", ["jdsh", "hsidhn"])
def test_a_bag_trained_on_its_description_is_the_features_tower_on_weighed_counts(name: str) -> None:
    text = {
        "name": "bag",
        "word_buckets": 32,
        "hidden": 8,
        "trained_on": "description",
        "rarest": 0.3,
        "unit": True,
    }
    torch.manual_seed(0)
    method = build_method({"name": name, "code_length": 16}, {"image": {"name": "descriptor"}, "text": text})
    inputs = method.collate("text", ["a red boat", "two fish", "a boat in the rain", "a red fish"])
    assert inputs.shape == (4, 5), "no pairs of words"
    network: Any = method.text
    network.standardiser.update(network.standardiser.sums(network.describe(inputs)))
    values = network.standardise(network.describe(inputs))
    assert torch.allclose(values.square().sum(1), (values != 0).any(0).sum().expand(4).float())
    torch.manual_seed(0)
    features = {"name": "features", "width": 32, "hidden": 8, "scaling": "centre"}
    given = build_method(
        {"name": name, "code_length": 16}, {"image": {"name": "descriptor"}, "text": features}
    )
    given.text.load_state_dict(
        {key: value for key, value in network.state_dict().items() if "standardiser" not in key}, strict=False
    )
    made, expected = method.eval().encode("text", inputs), given.eval().encode("text", values)
    assert torch.allclose(made, expected, atol=1e-6)
