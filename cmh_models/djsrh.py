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
from cmh_models.method import SIDES, Batch, Everyone, HashMethod, HashOutput, MethodConfig, Progress, Term
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
        self.register_buffer("rounds", torch.zeros((), dtype=torch.int64))
        self.statistics_rounds = config.feature_rounds

    def forward(self, batch: Batch, progress: Progress) -> HashOutput:
        """Return relaxed and unit codes, descriptions and target features."""
        networks = {"image": self.image, "text": self.text}
        output = cosine_outputs(networks, batch, slope=slope_of(self.config.slope, progress))
        by_arrays = self._by_arrays(len(output["image"]))
        self.gathers = ("units", "image_target", "text_target") if by_arrays else ()
        return output

    @torch.no_grad()
    def sums(self, output: HashOutput) -> dict[str, Tensor]:
        """Return the moments of features and codes, and in the first rounds those of descriptions."""
        sums: dict[str, Tensor] = {}
        if int(self.rounds) < self.config.feature_rounds:
            sums |= description_sums(self, output)
        if not self._by_arrays(len(output["image"])):
            sums |= named("batch", moments_of(self._factors(output), output["units"]))
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
                products = self._by_moments(self._factors(output), moments, place)
                total = moments["rows"]
            else:
                products, total = self._from_arrays(everyone, place), len(everyone["units"])
        weights = (self.config.intra_weight, self.config.intra_weight, 1.0)
        errors = squared_errors(codes, products, weights)
        pairs = codes.new_tensor(float(len(codes))) * total
        names = ("image_image", "text_text", "image_text")
        return {name: Term(error, pairs) for name, error in zip(names, errors, strict=True)}

    def _by_arrays(self, rows: int) -> bool:
        """Tell whether (B, B) arrays take fewer multiplications than moments."""
        if self.global_rows is None:
            return False
        total, width = self.global_rows, self.image.width + self.text.width
        arrays = total * total * (width + rows)
        # The moments of the rows, those times moments of codes, and a share of those squared.
        share = width * rows / total
        return arrays < width * width * (3 / 4 * rows + 2 * self.code_length + share)

    def _weights(self) -> tuple[float, float, float]:
        """Return factors of both sides' cosines in S~, and what is added."""
        gain, added = (2.0, -1.0) if self.config.form == "released" else (1.0, 0.0)
        return gain * self.config.image_weight, gain * (1 - self.config.image_weight), added

    def _from_arrays(self, everyone: Everyone, place: slice) -> TargetProducts:
        """Return what the errors need, from the (B, B) similarities of all pairs."""
        image_weight, text_weight, added = self._weights()
        f, g, eta = everyone["image_target"], everyone["text_target"], self.config.second_order
        similarity = torch.mm(f * image_weight, f.T).addmm_(g * text_weight, g.T)
        similarity += added
        own = similarity[place]
        target = torch.addmm(
            own,
            own,
            similarity,
            beta=self.config.scale * (1 - eta),
            alpha=self.config.scale * eta / len(f),
        )
        codes, flat = everyone["units"], target.reshape(-1)
        return TargetProducts(grams_of(codes), target @ codes, torch.dot(flat, flat))

    def _factors(self, output: HashOutput) -> Tensor:
        """Return (b, D + E) rows z, the weighted targets of both sides: S~_ij = z_i z_j + what is added."""
        *weights, _ = self._weights()
        sides = zip(SIDES, weights, strict=True)
        return torch.cat([output[f"{side}_target"] * weight**0.5 for side, weight in sides], dim=1)

    def _by_moments(self, z: Tensor, moments: dict[str, Tensor], place: slice) -> TargetProducts:
        """Return what the errors need, from moments: no array has a row for each row of the global batch.

        S = Z A Z' + Z v 1' + 1 v' Z' + k 1 1', where A = first I + second T and T = Z'Z.
        """
        added, eta, mu = self._weights()[2], self.config.second_order, self.config.scale
        rows, t, s, codes = (moments[name] for name in ("rows", "outer", "sum", "codes"))
        first, second = mu * (1 - eta), mu * eta / rows
        v, k = second * added * s, first * added + second * added**2 * rows
        drawn = torch.addmm(torch.outer(v, codes), t, moments["by_codes"] * second)
        drawn.add_(moments["by_codes"], alpha=first)
        pulls = torch.addmm(v @ moments["by_codes"] + k * codes, z, drawn)
        # |Z A Z'|^2 = |T A|^2. Of its rows each rank squares a share, of the rest it counts its rows' share.
        part = slice(*(len(t) * end // int(rows) for end in (place.start, place.stop)))
        squares = torch.addmm(t[part] * first, t[part] * second, t).square().sum()
        t_s, t_v, s_v = t @ s, t @ v, s @ v
        a_s = first * s + second * t_s
        rest = 4 * (t_v @ a_s) + 2 * k * (s @ a_s) + 2 * rows * (v @ t_v) + 2 * s_v**2
        rest = rest + 4 * k * rows * s_v + (k * rows) ** 2
        return TargetProducts(moments["grams"], pulls, squares + rest * (len(z) / rows))


def moments_of(z: Tensor, codes: Tensor) -> dict[str, Tensor]:
    """Return sums over the local rows of (b, D) factors z, of (b, 2L) unit codes, and of outer products."""
    return {
        "rows": z.new_tensor(float(len(z))),
        "outer": z.T @ z,
        "by_codes": z.T @ codes,
        "sum": z.sum(0),
        "codes": codes.sum(0),
        "grams": grams_of(codes),
    }
