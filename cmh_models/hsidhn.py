"""HSIDHN (reconstruction): Hierarchical Semantic Interaction-based Deep Hashing Network (Chen, Wu, Wang,
PeerJ Computer Science 7:e552, 2021), supervised.

The abstract certifies: several scales of each layer, fused; Bidirectional Bi-linear Interaction between the
layers; hard and soft similarity of label sets. All equations are rebuilt from its lab's released code (SCAHN,
SAALDH) and from IDHN, so each of them can be weighted and switched.

    h_l = tanh(W_l z_l),   h = tanh(sum_l w_l . h_l)            z_l: levels after interaction
    J = inter + intra over h_1 .. h_n, h against the final codes of the global batch + |sign(F + G) - h|^2

Where the lab compares with stored codes of all training rows, level and final codes meet the final codes of
the global batch: an estimate of the same mean over pairs, with fresh codes and gradient on both sides, and
nothing stored. Level codes stay on their rank. B = sign(F + G) is made on the fly. Where the lab alternates
between networks, all terms descend together.
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from cmh_models.dual_pairs import DualPairs, Kind, dual_losses
from cmh_models.label_pairs import LabelSets
from cmh_models.level_network import LevelNetwork
from cmh_models.levels import LevelsConfig
from cmh_models.method import (
    SIDES,
    Batch,
    Everyone,
    HashMethod,
    HashOutput,
    MethodConfig,
    Progress,
    Term,
    binarize,
)
from cmh_models.towers import TowersConfig, description_sums, fixed, update_descriptions

KINDS: dict[str, tuple[Kind, ...]] = {"hard": ("hard",), "soft": ("soft",), "dual": ("hard", "soft")}

ABLATIONS: dict[str, dict[str, Any]] = {
    "a last layer": {"levels": {"use": "last", "multi_scale": False, "interaction": {"reading": "none"}}},
    "b all layers": {"levels": {"multi_scale": False, "interaction": {"reading": "none"}}},
    "c + scales": {"levels": {"interaction": {"reading": "none"}}},
    "d + bottom-up": {"levels": {"interaction": {"reading": "bottom_up"}}},
    "e + top-down": {"levels": {"interaction": {"reading": "top_down"}}},
    "f + both (BBI)": {"levels": {"interaction": {"reading": "both"}}},
    "g hard only": {"similarity": "hard"},
    "h soft only": {"similarity": "soft"},
    "i dual": {"similarity": "dual"},
}
"""What the paper's claims are tested by: name -> options that differ from the method's own."""


class HSIDHNConfig(MethodConfig):
    """Settings of HSIDHN; all but the existence of levels, interaction and both similarities is inferred."""

    levels: LevelsConfig = LevelsConfig()
    similarity: Literal["dual", "hard", "soft"] = "dual"
    dual: Literal["parallel", "exclusive"] = Field(
        default="parallel",
        description="parallel (V2): both losses on all pairs; exclusive (V1, IDHN): the soft one where "
        "the cosine of label sets is within .01 and .99, else the hard one",
    )
    logit: Literal["length", "half", "idhn"] = Field(
        default="length",
        description="of a pair: <a, b> 32 / L (SCAHN), <a, b> / 2 (DCMH), 5 <a, b> / L (IDHN)",
    )
    pair_means: Literal["separate", "all"] = Field(
        default="separate",
        description="separate: similar and dissimilar pairs are averaged each on their own",
    )
    class_weights: tuple[float, float] = Field(default=(0.5, 0.5), description="similar, dissimilar")
    inter_weight: float = Field(default=0.5, ge=0, description="of either direction")
    intra_weight: float = Field(default=1.0, ge=0, description="lambda")
    soft_weight: float = Field(default=0.1, ge=0, description="of the soft losses, times L (IDHN)")
    level_weight: float = Field(default=1.0, ge=0, description="of a level code, where the final code has 1")
    quantisation: Literal["sign", "absolute"] = Field(
        default="sign", description="sign: |sign(F + G) - h|^2 / L; absolute: mean ||h| - 1| (IDHN)"
    )
    quantisation_weight: float = Field(default=2.0, ge=0, description="beta")
    chunk: int = Field(default=2048, ge=1, description="columns of the global batch at a time, at most")
    feature_rounds: int = Field(default=8, ge=1, description="rounds for the scaling of features")


class HSIDHN(HashMethod):
    """The networks of both sides, each with a hash head per level."""

    needs_labels: ClassVar[bool] = True
    Config: ClassVar[type[MethodConfig]] = HSIDHNConfig
    gathers = ("image", "text", "labels")
    image: LevelNetwork
    text: LevelNetwork
    rounds: Tensor

    def __init__(self, config: HSIDHNConfig, towers: TowersConfig) -> None:
        super().__init__()
        self.config = config
        self.code_length = config.code_length
        self.image = LevelNetwork(towers.image, "image", config.code_length, config=config.levels)
        self.text = LevelNetwork(towers.text, "text", config.code_length, config=config.levels)
        self.register_buffer("rounds", torch.zeros((), dtype=torch.int64))
        self.statistics_rounds = config.feature_rounds
        length = config.code_length
        self.scale = {"length": 32 / length, "half": 0.5, "idhn": 5 / length}[config.logit]

    def forward(self, batch: Batch, progress: Progress) -> HashOutput:
        """Return relaxed final codes, level codes and labels.

        Raises:
            ValueError: the batch has no labels.
        """
        if "labels" not in batch:
            raise ValueError("hsidhn learns from labels, and the batch has none: name their column")
        output: HashOutput = {"labels": batch["labels"]}
        for side, network in (("image", self.image), ("text", self.text)):
            if int(self.rounds) < self.config.feature_rounds:
                with fixed(batch[side]):
                    output[f"{side}_described"] = network.describe(batch[side])
            levels, values = network.codes(batch[side], output.get(f"{side}_described"))
            output[f"{side}_levels"] = levels.to(batch["labels"].dtype)
            output[side] = torch.tanh(values.to(batch["labels"].dtype))
        return output

    def sums(self, output: HashOutput) -> dict[str, Tensor]:
        """Return the sums behind the scaling of features, in the first rounds."""
        if int(self.rounds) >= self.config.feature_rounds:
            return {}
        return description_sums(self, output)

    @torch.no_grad()
    def update_statistics(self, everyone: Everyone, sums: dict[str, Tensor]) -> None:
        """Estimate the scaling of features; later stand still."""
        update_descriptions(self, sums)
        self.rounds += 1

    def loss(
        self, output: HashOutput, everyone: Everyone, sums: dict[str, Tensor], progress: Progress
    ) -> dict[str, Term]:
        """Return the losses of pairs between and within sides, and of quantisation."""
        kinds = KINDS[self.config.similarity]
        pairs = DualPairs(
            LabelSets.of(output["labels"]),
            everyone["labels"],
            kinds=kinds,
            exclusive=self.config.dual == "exclusive",
            separate=self.config.pair_means == "separate",
            scale=self.scale,
            chunk=self.config.chunk,
        )
        columns = torch.stack([everyone[side] for side in SIDES])
        between = within = columns.new_zeros(())
        for number, side in enumerate(SIDES):
            codes = torch.cat([output[f"{side}_levels"].transpose(0, 1), output[side][None]])
            errors, counts = dual_losses(codes, columns, pairs)
            errors = torch.tensordot(self._shares(codes), errors, dims=1)
            within = within + errors[number]
            between = between + errors[1 - number]
        terms = self._pair_terms("inter", self.config.inter_weight * between, counts)
        terms |= self._pair_terms("intra", self.config.intra_weight * within, counts)
        local = output["image"].new_tensor(float(len(output["image"])))
        terms["quantisation"] = Term(self.config.quantisation_weight * self._quantisation(output), local)
        return terms

    def _shares(self, codes: Tensor) -> Tensor:
        """Return the share of each level code, and last of the final code, in the losses of a side."""
        weights = torch.full_like(codes[:, 0, 0].detach(), self.config.level_weight)
        weights[-1] = 1
        return weights / weights.sum()

    def _pair_terms(self, name: str, errors: Tensor, counts: Tensor) -> dict[str, Term]:
        """Return a term for each kind and class of pairs, of (kinds, classes) sums and counts."""
        config, terms = self.config, {}
        for number, kind in enumerate(KINDS[config.similarity]):
            weight = config.soft_weight * config.code_length if kind == "soft" else 1.0
            if config.pair_means == "all":
                terms[f"{name}_{kind}"] = Term(weight * errors[number, 0], counts[number, 0])
                continue
            for which, alike in enumerate(("similar", "dissimilar")):
                share = weight * config.class_weights[which]
                terms[f"{name}_{kind}_{alike}"] = Term(share * errors[number, which], counts[number, which])
        return terms

    def _quantisation(self, output: HashOutput) -> Tensor:
        """Return how far the final codes of both sides are from bits, per bit, summed over the local rows."""
        relaxed = torch.stack([output[side] for side in SIDES])
        if self.config.quantisation == "absolute":
            return (relaxed.abs() - 1).abs().mean(2).sum()
        bits = binarize(relaxed.sum(0)).detach()
        return (bits - relaxed).square().mean(2).sum()
