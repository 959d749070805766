"""DBRC: Deep Binary Reconstruction (Li, Hu, Nie, ACM MM 2017; IEEE TMM 2019), unsupervised.

Both sides are rebuilt from one short code, made from both sides or from either alone, through the adaptive
tanh. The loss is a sum over rows: nothing is gathered, nothing is stored per sample, and the only statistics
over rows are scalings and, unless its weight is 0, the means of bits.

Only abstracts and a summary of the paper could be read. Theirs: both sides rebuilt from a joint code, one
stage, ATanh. Ours, each an option: layer sizes, which forms of a pair are presented, how the two sides are
added, what is rebuilt and how errors are scaled, the pull between the codes of a pair, balance, constants.
What is rebuilt are the fixed descriptions of the sides, so that pictures work as given features do. The
pre-training by restricted Boltzmann machines is left out.
"""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional

from cmh_models.atanh import AdaptiveTanh, AtanhConfig
from cmh_models.described import two_layers
from cmh_models.method import (
    SIDES,
    Batch,
    Everyone,
    HashMethod,
    HashOutput,
    MethodConfig,
    Progress,
    Side,
    Term,
)
from cmh_models.regularisers import imbalance
from cmh_models.statistics import named, under
from cmh_models.towers import (
    BagOfWords,
    Described,
    TowersConfig,
    build_tower,
    description_sums,
    fixed,
    update_descriptions,
)

Presentation = Literal["joint", "image", "text"]
Data = Literal["dense", "tags", "counts"]


class DBRCConfig(MethodConfig):
    """Settings of DBRC; all of them are inferred, the linear ATanh excepted."""

    activation: AtanhConfig = AtanhConfig()
    presentations: tuple[Presentation, ...] = Field(
        default=("joint", "image", "text"),
        description="forms in which each pair is coded; without joint, two towers",
    )
    joint: Literal["sum", "mean"] = Field(default="mean", description="how both sides make one value")
    image_data: Data | None = Field(
        default=None,
        description="what is rebuilt of pictures. dense: standardised values, squared error; tags: whether a "
        "value is there, Bernoulli; counts: shares of values, softmax; None: as the tower's data are",
    )
    text_data: Data | None = Field(default=None, description="the same of texts")
    image_weight: float = Field(default=1.0, ge=0)
    text_weight: float = Field(default=1.0, ge=0, description="rho")
    error_unit: Literal["width", "constant"] = Field(
        default="constant",
        description="width: errors per feature; constant: as shares of the error of the best constant",
    )
    pull_weight: float = Field(default=2.0, ge=0, description="squared distance of a pair's codes, per bit")
    balance_weight: float = Field(
        default=0.3, ge=0, description="squared mean of a bit over the global batch"
    )
    decoder_hidden: int = Field(
        default=0, ge=0, description="width of a hidden layer of the decoders; 0: they are linear"
    )
    feature_rounds: int = Field(default=8, ge=1, description="rounds for the scaling of features")
    spread_rounds: int = Field(default=2, ge=1, description="rounds after them for the spread of values")

    @field_validator("presentations")
    @classmethod
    def _some_and_different(cls, value: tuple[Presentation, ...]) -> tuple[Presentation, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError(f"presentations must name joint, image or text, each at most once, got {value}")
        return value


class DBRC(HashMethod):
    """The networks of both sides, one activation for all codes, and a decoder for each side."""

    Config: ClassVar[type[MethodConfig]] = DBRCConfig
    image: Described
    text: Described
    rounds: Tensor

    def __init__(self, config: DBRCConfig, towers: TowersConfig) -> None:
        super().__init__()
        self.config = config
        self.code_length = config.code_length
        self.image = build_tower(towers.image, "image", config.code_length)
        self.text = build_tower(towers.text, "text", config.code_length)
        self.activation = AdaptiveTanh(config.activation, config.code_length)
        self.decoders = nn.ModuleDict(
            {side: _decoder(config, network.width) for side, network in self._networks()}
        )
        self.data = {
            "image": config.image_data or data_of(self.image),
            "text": config.text_data or data_of(self.text),
        }
        self.register_buffer("rounds", torch.zeros((), dtype=torch.int64))
        self.statistics_rounds = config.feature_rounds + config.spread_rounds

    def forward(self, batch: Batch, progress: Progress) -> HashOutput:
        """Return the codes of each side alone, and both sides rebuilt from each presented form."""
        output: HashOutput = {}
        values: dict[str, Tensor] = {}
        for side, network in self._networks():
            with fixed(batch[side]):
                described = network.describe(batch[side])
                output[f"{side}_described"] = described
                output[f"{side}_target"] = self._target(side, described)
            values[side] = network(batch[side], described)
        both = values["image"] + values["text"]
        values["joint"] = both if self.config.joint == "sum" else both / 2
        codes = {form: self.activation(value, progress) for form, value in values.items()}
        for side in SIDES:
            output[side] = codes[side]
            output[f"{side}_values"] = values[side]
            presented = torch.stack([codes[form] for form in self.config.presentations], dim=1)
            output[f"{side}_rebuilt"] = self.decoders[side](presented)
        # Here and not in the loss: sharded weights are whole only while the networks run.
        output["slope_penalty"] = self.activation.penalty()
        return output

    def sums(self, output: HashOutput) -> dict[str, Tensor]:
        """Return what the first rounds estimate, and the sums of bits where balance is asked for."""
        sums: dict[str, Tensor] = {}
        done = int(self.rounds)
        if done < self.config.feature_rounds:
            sums |= description_sums(self, output)
            for side in SIDES:
                sums[f"negative.{side}"] = (output[f"{side}_described"] < 0).sum()
        elif done < self.statistics_rounds:
            values = (output[f"{side}_values"] for side in SIDES)
            sums |= named("spread", self.activation.sums(*values))
        if self.config.balance_weight:
            for side in SIDES:
                rows = output[side].new_tensor(float(len(output[side])))
                sums |= named(f"bits.{side}", {"rows": rows, "mean": output[side].sum(0)})
        return sums

    @torch.no_grad()
    def update_statistics(self, everyone: Everyone, sums: dict[str, Tensor]) -> None:
        """Estimate the scaling of features, then the spread of values; later stand still.

        Raises:
            ValueError: values that shall be rebuilt as tags or counts are negative.
        """
        for side in SIDES:
            if self.data[side] != "dense" and sums.get(f"negative.{side}", 0) > 0:
                raise ValueError(
                    f"method.{side}_data is {self.data[side]!r}, which takes values of 0 and more, but the "
                    f"{side} side has negative ones: set method.{side}_data to 'dense'"
                )
        update_descriptions(self, sums)
        if spread := under("spread", sums):
            self.activation.update(spread)
        self.rounds += 1

    def loss(
        self, output: HashOutput, everyone: Everyone, sums: dict[str, Tensor], progress: Progress
    ) -> dict[str, Term]:
        """Return the errors of rebuilding each side, and what keeps codes alike, steep and balanced."""
        config = self.config
        local = output["image"].new_tensor(float(len(output["image"])))
        weights = {"image": config.image_weight, "text": config.text_weight}
        terms = {}
        for side in SIDES:
            errors = ERRORS[self.data[side]](output[f"{side}_rebuilt"], output[f"{side}_target"][:, None])
            terms[f"{side}_rebuilt"] = Term(weights[side] * errors.sum() / self._unit(side, errors), local)
        apart = (output["image"] - output["text"]).square().mean(1)
        terms["pull"] = Term(config.pull_weight * apart.sum(), local)
        # What every rank computes alike is weighted by its rows: the shares add up to the whole.
        terms["slope"] = Term(local * output["slope_penalty"], local)
        for side in SIDES:
            if bits := under(f"bits.{side}", sums):
                uneven = config.balance_weight * imbalance(bits["mean"] / bits["rows"])
                terms[f"{side}_balance"] = Term(local * uneven, local)
        return terms

    def _networks(self) -> tuple[tuple[Side, Described], tuple[Side, Described]]:
        return ("image", self.image), ("text", self.text)

    def _target(self, side: Side, described: Tensor) -> Tensor:
        """Return what is rebuilt of a side."""
        data = self.data[side]
        if data == "dense":
            network: Described = getattr(self, side)
            return network.standardise(described)
        if data == "tags":
            return (described > 0).to(described.dtype)
        return described / described.sum(1, keepdim=True).clamp_min(1e-12)

    def _unit(self, side: Side, like: Tensor) -> Tensor:
        """Return what errors of a side are divided by."""
        if self.config.error_unit == "width":
            return torch.ones_like(like[0, 0])
        network: Described = getattr(self, side)
        seen = network.standardiser
        if self.data[side] == "dense":
            unit = seen.energy()
        elif self.data[side] == "tags":
            unit = (torch.special.entr(seen.present) + torch.special.entr(1 - seen.present)).mean()
        else:
            unit = torch.special.entr(seen.mean / seen.mean.sum().clamp_min(1e-12)).sum()
        return torch.where(unit > 0, unit, 1.0).to(like)


def data_of(network: Described) -> Data:
    """Return what kind of data a tower describes its inputs by."""
    return "counts" if isinstance(network, BagOfWords) else "dense"


def _decoder(config: DBRCConfig, width: int) -> nn.Module:
    if config.decoder_hidden == 0:
        return nn.Linear(config.code_length, width)
    return two_layers(config.code_length, config.decoder_hidden, width)


def _dense_error(rebuilt: Tensor, target: Tensor) -> Tensor:
    return (rebuilt - target).square().mean(-1)


def _tags_error(rebuilt: Tensor, target: Tensor) -> Tensor:
    return (functional.softplus(rebuilt) - target * rebuilt).mean(-1)


def _counts_error(rebuilt: Tensor, target: Tensor) -> Tensor:
    return -(target * functional.log_softmax(rebuilt, dim=-1)).sum(-1)


ERRORS: dict[Data, Callable[[Tensor, Tensor], Tensor]] = {
    "dense": _dense_error,
    "tags": _tags_error,
    "counts": _counts_error,
}
"""Kind of data -> (B, forms) errors of (B, forms, D) rebuilt values against (B, 1, D) targets."""
