"""A sample of rows through the network that will encode them; without a model no torch is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.config import Config
from pipeline.corpus.inspection.layout import Layout
from pipeline.corpus.inspection.sample import Sample
from pipeline.corpus.recipe import InputRecipe
from pipeline.corpus.schema import Side
from pipeline.releases.storage import Storage

if TYPE_CHECKING:
    from cmh_models.method import HashMethod


def load_model(config: Config) -> HashMethod | None:
    """Load the model where it would run, None if there is none; torch is imported only for one."""
    if not config.encode.model:
        return None
    from pipeline.encoding.models import open_model

    store = Storage(config.store.uri) if config.store.uri else None
    return open_model(config.encode.model, store).to("cuda" if config.resources.gpu else "cpu")


def choose_recipe(
    config: Config, method: HashMethod | None, layout: Layout, *, image_size: int | None
) -> InputRecipe:
    """Return how rows are decoded: as the model asks, else in this size, else as the towers' settings do."""
    data, image = config.data, layout.columns.image
    if method is not None:
        from pipeline.encoding.models import input_recipe

        return input_recipe(method, data.columns, data.limits)
    size = image_size
    if size is None and image is not None and image.kind == "pixels":
        from cmh_models.towers import TowersConfig

        size = getattr(config.section("towers", TowersConfig).image, "image_size", None) or 64
    return InputRecipe(columns=data.columns, limits=data.limits, image_size=size)


def time_network(method: HashMethod | None, sample: Sample, config: Config) -> dict[Side, float]:
    """Run the network over the sample; return seconds a row by side, of sides that have rows."""
    if method is None:
        return {}
    from pipeline.encoding.timing import seconds_per_row

    values = {side: trial.together() for side, trial in sample.trials.items()}
    tile = config.encode.tile
    return {
        side: seconds_per_row(method, side, rows, tile=tile) for side, rows in values.items() if len(rows)
    }
