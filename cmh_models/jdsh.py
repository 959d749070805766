"""JDSH: Joint-modal Distribution-based Similarity Hashing (Liu et al., SIGIR 2020), unsupervised.

Codes of both sides shall have the cosines that the joint-modal similarity of fixed features has. Per sample
nothing is stored; per step the ranks exchange relaxed codes and target features. Scaling of features,
moments and thresholds are estimated in the first rounds and then stand still, so that the target of a pair
does not depend on the batch it is met in, nor on the size of that batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from cmh_models.cosines import Slope, cosine_outputs, slope_of
from cmh_models.losses import Block, class_errors, squared_errors, target_products
from cmh_models.method import Batch, Everyone, HashMethod, HashOutput, MethodConfig, Progress, Term
from cmh_models.similarity import JointSimilarity, Moments, Rows, SimilarityConfig
from cmh_models.statistics import named, under
from cmh_models.towers import (
    Described,
    TowersConfig,
    build_tower,
    description_sums,
    fixed,
    update_descriptions,
)

FACTORS = ("image_target", "text_target", "image_norm", "text_norm", "image_cross", "text_cross")
"""What `Rows` holds, by its name in an output; the last two stay on their rank."""

MATRICES = ("image_image", "text_text", "image_text")
"""The matrices of cosines that are held against the target, in the order of `losses`."""


class JDSHConfig(MethodConfig):
    """Settings of JDSH; the symbols are those of the paper or of its code."""

    similarity: SimilarityConfig = SimilarityConfig()
    intra_weight: float = Field(default=0.1, ge=0, description="eta: pairs within a side")
    cross_weight: float = Field(default=2.0, ge=0, description="image-text pairs: two equal terms")
    paired_weight: float = Field(default=0.0625, ge=0, description="a pair's own cosine: 2/32 of all")
    coherence_weight: float = Field(default=2.0, ge=0, description="pull of a pair's codes; published: 1")
    pair_means: Literal["all", "separate"] = Field(
        default="all", description="separate: bulk, left and right pairs are averaged each on their own"
    )
    class_weights: tuple[float, float, float] = Field(
        default=(0.5, 0.25, 0.25), description="bulk, left, right of separate means"
    )
    slope: Slope = Field(default="sqrt", description="slope of tanh: sqrt(epoch + 1) as published, or 1")
    chunk: int = Field(default=2048, ge=1, description="columns of the global batch at a time")
    feature_rounds: int = Field(default=8, ge=1, description="rounds for the scaling of features")
    moment_rounds: int = Field(default=16, ge=1, description="rounds after them for second moments")
    threshold_rounds: int = Field(default=8, ge=1, description="rounds after them for thresholds")


@dataclass(frozen=True)
class Phase:
    """Which statistics the present round estimates."""

    features: bool
    restart: bool  # of the moments: those of features on another scale do not count
    moments: bool
    thresholds: bool


class JDSH(HashMethod):
    """The networks of both sides and the similarity they are trained towards."""

    Config: ClassVar[type[MethodConfig]] = JDSHConfig
    image: Described
    text: Described
    rounds: Tensor

    def __init__(self, config: JDSHConfig, towers: TowersConfig) -> None:
        super().__init__()
        self.config = config
        self.code_length = config.code_length
        self.image = build_tower(towers.image, "image", config.code_length)
        self.text = build_tower(towers.text, "text", config.code_length)
        self.similarity = JointSimilarity(config.similarity, self.image.width, self.text.width)
        self.register_buffer("rounds", torch.zeros((), dtype=torch.int64))
        self.statistics_rounds = config.feature_rounds + config.moment_rounds + config.threshold_rounds
        self.in_batch = config.similarity.moments == "batch"
        self.gathers = ("units", *(FACTORS[:2] if self.in_batch else FACTORS[:4]))

    def forward(self, batch: Batch, progress: Progress) -> HashOutput:
        """Return relaxed codes, descriptions and what the similarity needs of each row."""
        output = cosine_outputs(
            {"image": self.image, "text": self.text},
            batch,
            slope=slope_of(self.config.slope, progress),
            precision=self.similarity.precision,
        )
        if not self.in_batch:
            # Of the moments as they are now: this step's update must not come between two factors.
            with fixed(batch["image"]):
                targets = output["image_target"], output["text_target"]
                rows = self.similarity.rows(*targets, self.similarity.population())
            output |= dict(zip(FACTORS, (getattr(rows, field.name) for field in fields(rows)), strict=True))
        return output

    def sums(self, output: HashOutput) -> dict[str, Tensor]:
        """Return what the present phase estimates from sums over rows."""
        phase = self._phase()
        sums: dict[str, Tensor] = {}
        if phase.features:
            sums |= description_sums(self, output)
        if self._wants_moments(phase, rows=len(output["image"])):
            moments = self.similarity.moment_sums(output["image_target"], output["text_target"])
            sums |= named("moments", moments)
        return sums

    @torch.no_grad()
    def update_statistics(self, everyone: Everyone, sums: dict[str, Tensor]) -> None:
        """Estimate scaling, then moments, then thresholds, each with the earlier ones standing still."""
        phase = self._phase()
        if phase.thresholds:
            self.similarity.add_pairs(self._fused_sample(everyone, sums))
        if phase.moments and not self.in_batch:
            self.similarity.add_moments(under("moments", sums), restart=phase.restart)
        update_descriptions(self, sums)
        self.rounds += 1

    def loss(
        self, output: HashOutput, everyone: Everyone, sums: dict[str, Tensor], progress: Progress
    ) -> dict[str, Term]:
        """Return the errors of pairs within and across sides, of own pairs, and the coherence of pairs."""
        codes, all_codes, config = output["units"], everyone["units"], self.config
        place = slice(everyone.start, everyone.start + len(codes))
        rows = codes.new_tensor(float(len(codes)))
        own_weights = config.paired_weight, config.coherence_weight
        fused = self._fused(output, everyone, sums, place)
        if config.pair_means == "separate":
            errors, pairs, own = class_errors(codes, all_codes, place.start, blocks=self._blocks(fused))
            cosines = torch.linalg.vecdot(*codes.chunk(2, dim=1))
            terms = self._class_terms(errors, pairs)
            sides = own_weights[0] * (cosines - own).square().sum(), -own_weights[1] * cosines.sum()
        else:
            with torch.no_grad():
                products = target_products(all_codes, self._targets(fused), place)
            weights = (config.intra_weight, config.intra_weight, config.cross_weight, *own_weights)
            *sums_of_errors, paired, coherence = squared_errors(codes, products, weights)
            others = rows * (len(all_codes) - 1)
            terms = {name: Term(error, others) for name, error in zip(MATRICES, sums_of_errors, strict=True)}
            sides = paired, coherence
        return terms | {"paired": Term(sides[0], rows), "coherence": Term(sides[1], rows)}

    def _phase(self) -> Phase:
        """Return what is estimated now; moments restart in each round until the scaling stands."""
        done = int(self.rounds)
        before_thresholds = self.config.feature_rounds + self.config.moment_rounds
        return Phase(
            features=done < self.config.feature_rounds,
            restart=done <= self.config.feature_rounds,
            moments=done < before_thresholds,
            thresholds=before_thresholds <= done < self.statistics_rounds,
        )

    def _wants_moments(self, phase: Phase, rows: int) -> bool:
        """Tell whether moments are summed: in their rounds; those of each batch, where that is cheaper."""
        if not self.in_batch or self.global_rows is None:
            return phase.moments or self.in_batch
        arrays, moments = self.similarity.in_batch_operations(rows, self.global_rows)
        return moments < arrays

    def _fused_sample(self, everyone: Everyone, sums: dict[str, Tensor]) -> Tensor:
        """Return the similarity among the rows that feed the thresholds."""
        image, text = everyone["image_target"], everyone["text_target"]
        chosen = self.similarity.threshold_rows(len(image), image.device)
        if self.in_batch and not under("moments", sums):
            return self.similarity.fuse_in_batch(image, text, slice(0, len(image)))[chosen][:, chosen]
        some = self.similarity.rows(image[chosen], text[chosen], self._moments(sums))
        return self.similarity.fuse(some, some)

    def _moments(self, sums: dict[str, Tensor]) -> Moments:
        if self.in_batch:
            return self.similarity.batch_moments(under("moments", sums))
        return self.similarity.population()

    def _rows(self, tensors: HashOutput | Everyone, sums: dict[str, Tensor]) -> Rows:
        if self.in_batch:
            return self.similarity.rows(tensors["image_target"], tensors["text_target"], self._moments(sums))
        missing = tensors["image_norm"].new_empty(len(tensors["image_norm"]), 0)
        return Rows(*(tensors.get(name, missing) for name in FACTORS))

    @torch.no_grad()
    def _fused(
        self, output: HashOutput, everyone: Everyone, sums: dict[str, Tensor], place: slice
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield the similarity of local rows and all, in column chunks."""
        total = len(everyone["image_target"])
        if self.in_batch and not under("moments", sums):
            targets = everyone["image_target"], everyone["text_target"]
            yield slice(0, total), self.similarity.fuse_in_batch(*targets, place)
            return
        rows, columns = self._rows(output, sums), self._rows(everyone, sums)
        for first in range(0, total, self.config.chunk):
            part = slice(first, min(first + self.config.chunk, total))
            yield part, self.similarity.fuse(rows, columns.part(part))

    def _targets(self, fused: Iterator[tuple[slice, Tensor]]) -> Iterator[tuple[slice, Tensor]]:
        limits = self.similarity.limits()
        for columns, part in fused:
            yield columns, self.similarity.decide_(part, limits)
            del part  # before the next is made

    def _blocks(self, fused: Iterator[tuple[slice, Tensor]]) -> Iterator[Block]:
        limits = self.similarity.limits()
        for columns, part in fused:
            yield Block(columns, self.similarity.decide(part, limits), self.similarity.classes(part))

    def _class_terms(self, errors: Tensor, pairs: Tensor) -> dict[str, Term]:
        weights = (self.config.intra_weight, self.config.intra_weight, self.config.cross_weight)
        terms = {}
        for which, name in enumerate(MATRICES):
            for number, kind in enumerate(("bulk", "left", "right")):
                weight = weights[which] * self.config.class_weights[number]
                terms[f"{name}_{kind}"] = Term(weight * errors[which, number], pairs[number])
        return terms
