"""DJSRH: Deep Joint-Semantics Reconstructing Hashing (Su, Zhong, Zhang, ICCV 2019), the parent of JDSH.

Codes of both sides shall have the cosines of S = mu ((1 - eta) S~ + eta S~ S~' / B), S~ the weighted mean of
both sides' similarities in the batch. S has low rank, so loss and gradient follow from second moments of the
batch: the cost of a rank does not depend on the global batch, and nothing is gathered. Where the batch has
fewer rows than the features have columns, (B, B) arrays are cheaper, and are formed.

From the authors' code: all of S, the weights, the growing slope of tanh, pairs (i, i) among all others.
Ours: features are standardised first.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from cmh_models.cosines import Slope, cosine_outputs, slope_of
from cmh_models.losses import TargetProducts, grams_of, squared_errors
from cmh_models.method import Batch, Everyone, HashMethod, HashOutput, MethodConfig, Progress, Term
from cmh_models.statistics import named, under
from cmh_models.towers import Described, TowersConfig, build_tower, description_sums, update_descriptions


class DJSRHConfig(MethodConfig):
    """Settings of DJSRH; the symbols are those of the authors' code."""

    form: Literal["released", "centred"] = Field(
        default="released", description="similarity of a side. released: 2 cos - 1; centred: cos"
    )
    image_weight: float = Field(default=0.3, ge=0, le=1, description="b; texts get 1 - b")
    second_order: float = Field(default=0.4, ge=0, le=1, description="eta: neighbours of neighbours")
    scale: float = Field(default=1.5, gt=0, description="mu")
    intra_weight: float = Field(default=0.1, ge=0, description="pairs within a side; image-text pairs: 1")
    slope: Slope = Field(default="sqrt", description="slope of tanh: sqrt(epoch + 1) as published, or 1")
    feature_rounds: int = Field(default=8, ge=1, description="rounds for the scaling of features")


class DJSRH(HashMethod):
    """The networks of both sides; all that is estimated before training is the scaling of features."""

    Config: ClassVar[type[MethodConfig]] = DJSRHConfig
    image: Described
    text: Described
    rounds: Tensor

    def __init__(self, config: DJSRHConfig, towers: TowersConfig) -> None:
        super().__init__()
        self.config = config
        self.code_length = config.code_length
        self.image = build_tower(towers.image, "image", config.code_length)
        self.text = build_tower(towers.text, "text", config.code_length)
        self.width = self.image.width + self.text.width
        self.register_buffer("rounds", torch.zeros((), dtype=torch.int64))
        self.statistics_rounds = config.feature_rounds

    def forward(self, batch: Batch, progress: Progress) -> HashOutput:
        """Return relaxed and unit codes, descriptions and target features."""
        networks = {"image": self.image, "text": self.text}
        output = cosine_outputs(networks, batch, slope=slope_of(self.config.slope, progress))
        by_arrays = self._by_arrays(len(output["image"]))
        self.gathers = ("units", "image_target", "text_target") if by_arrays else ()
        return output

    def sums(self, output: HashOutput) -> dict[str, Tensor]:
        """Return the moments of features and codes, and in the first rounds those of descriptions."""
        sums: dict[str, Tensor] = {}
        if int(self.rounds) < self.config.feature_rounds:
            sums |= description_sums(self, output)
        if not self._by_arrays(len(output["image"])):
            with torch.no_grad():
                sums |= named("batch", moments_of(output))
        return sums

    @torch.no_grad()
    def update_statistics(self, everyone: Everyone, sums: dict[str, Tensor]) -> None:
        """Estimate the scaling of features in the first rounds."""
        update_descriptions(self, sums)
        self.rounds += 1

    def loss(
        self, output: HashOutput, everyone: Everyone, sums: dict[str, Tensor], progress: Progress
    ) -> dict[str, Term]:
        """Return the mean squared errors of pairs within and across sides."""
        codes = output["units"]
        place = slice(everyone.start, everyone.start + len(codes))
        with torch.no_grad():
            if moments := under("batch", sums):
                products, pairs = self._by_moments(output, moments, place), len(codes) * moments["rows"]
            else:
                products = self._from_arrays(everyone, place)
                pairs = codes.new_tensor(float(len(codes) * len(everyone["units"])))
        weights = (self.config.intra_weight, self.config.intra_weight, 1.0)
        errors = squared_errors(codes, products, weights)
        names = ("image_image", "text_text", "image_text")
        return {name: Term(error, pairs) for name, error in zip(names, errors, strict=True)}

    def _by_arrays(self, rows: int) -> bool:
        """Tell whether (B, B) arrays take fewer multiplications than moments."""
        if self.global_rows is None:
            return False
        total, width, codes = self.global_rows, self.width, 2 * self.code_length
        arrays = total * total * (width + rows) + rows * total * codes
        summed = rows * width * (width * 3 / 4 + codes)
        return arrays < summed + width * (width + rows) * codes + width**3 * rows / total

    def _weights(self) -> tuple[float, float, float]:
        """Return factors of both sides' cosines in S~, and what is added."""
        gain, added = (2.0, -1.0) if self.config.form == "released" else (1.0, 0.0)
        return gain * self.config.image_weight, gain * (1 - self.config.image_weight), added

    def _from_arrays(self, everyone: Everyone, place: slice) -> TargetProducts:
        """Return what the errors need, from the (B, B) similarities of all pairs."""
        image_weight, text_weight, added = self._weights()
        f, g, eta = everyone["image_target"], everyone["text_target"], self.config.second_order
        similarity = torch.mm(f, f.T).addmm_(g, g.T, beta=image_weight, alpha=text_weight).add_(added)
        own = similarity[place]
        target = torch.addmm(
            own,
            own,
            similarity,
            beta=self.config.scale * (1 - eta),
            alpha=self.config.scale * eta / len(f),
        )
        codes, flat = everyone["units"], target.view(-1)
        return TargetProducts(grams_of(codes), target @ codes, torch.dot(flat, flat))

    def _by_moments(self, output: HashOutput, moments: dict[str, Tensor], place: slice) -> TargetProducts:
        """Return what the errors need, from moments: no array has a row for each row of the global batch.

        Rows z = (f, g, 1), A = Z'Z: S~ is Z W Z' for a diagonal W, hence S = Z W (first + second A W) Z',
        and the squares of S add up to those of R = first A + second A W A, each weighted by w_j w_k.
        """
        config, f, g = self.config, output["image_target"], output["text_target"]
        first, second = config.scale * (1 - config.second_order), config.scale * config.second_order
        with_codes, one = moments["codes"], f.shape[1] + g.shape[1]
        weights = with_codes.new_zeros(with_codes.shape[1])
        weights[: f.shape[1]], weights[f.shape[1] : one], weights[one] = self._weights()
        # Of the rows of R each rank takes as large a share as it has of the rows of the batch.
        total = self.global_rows or round(float(moments["rows"]))
        share = slice(place.start * len(weights) // total, place.stop * len(weights) // total)
        left = torch.cat([with_codes, *_rows_of(moments, share)])
        both = _times(left * (weights * (second / moments["rows"])), moments).add_(left, alpha=first)
        drawn, part = both[: len(with_codes)] * weights, both[len(with_codes) :]
        pulls = torch.addmm(drawn[:, one], f, drawn[:, : f.shape[1]].T).addmm_(
            g, drawn[:, f.shape[1] : one].T
        )
        squares = torch.dot(weights[share], part.square_() @ weights)
        return TargetProducts(moments["grams"], pulls, squares)


def moments_of(output: HashOutput) -> dict[str, Tensor]:
    """Return sums over the local rows of the outer products of z = (f, g, 1) with z and with unit codes.

    Of those with z: `image` (D, n) has the rows that belong to f, `text` (n - D, n - D) the others, without
    their first D columns, which mirror `image`.
    """
    f, g, codes = output["image_target"], output["text_target"], output["units"]
    # A one and zeros behind it, up to a multiple of 16 columns: products of odd widths are slower.
    ends = f.new_zeros(len(f), 16 - (f.shape[1] + g.shape[1]) % 16)
    ends[:, 0] = 1
    rows = torch.cat([codes, f, g, ends], dim=1)
    length = codes.shape[1]
    upper = rows[:, : length + f.shape[1]].T @ rows[:, length:]
    others = rows[:, length + f.shape[1] :]
    return {
        "rows": f.new_tensor(float(len(f))),
        "codes": upper[:length],
        "image": upper[length:],
        "text": others.T @ others,
        "grams": grams_of(codes),
    }


def _rows_of(moments: dict[str, Tensor], chosen: slice) -> tuple[Tensor, Tensor]:
    """Return some rows of A: those that belong to f, and the others."""
    image, text = moments["image"], moments["text"]
    width = len(image)
    others = slice(max(chosen.start - width, 0), max(chosen.stop - width, 0))
    return image[chosen], torch.cat([image[:, width:][:, others].T, text[others]], dim=1)


def _times(left: Tensor, moments: dict[str, Tensor]) -> Tensor:
    """Return the product of (m, n) rows with A."""
    image, text = moments["image"], moments["text"]
    width = len(image)
    product = left[:, :width] @ image
    product[:, :width].addmm_(left[:, width:], image[:, width:].T)
    product[:, width:].addmm_(left[:, width:], text)
    return product
