"""The joint-modal similarity of JDSH: from fixed features of both sides to target similarities of pairs.

Source: Liu et al., SIGIR 2020, as their code computes it (alpha, beta, lambda, mu, DSDW). Deviations: the
cross-product term may use population moments, which do not depend on the batch; DSDW's constants are
estimated from the data; its two extremes are quantiles, and an amplification never exceeds 1 + L.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from cmh_models.statistics import Statistics

Form = Literal["released", "fused", "centred"]
_BINS = 2048
_ROWS_AT_A_TIME = 64
_LOWEST, _HIGHEST = -3.0, 2.0
_TINY = 1e-20  # keeps the norm of a row from being 0 before any moments are known


class SimilarityConfig(BaseModel):
    """How the joint-modal similarity is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    form: Form = Field(
        default="centred",
        description="released: 2cos-1 on each side, then fuse; fused: fuse cosines, then 2x-1; "
        "centred: fuse cosines of centred features, no map",
    )
    image_weight: float = Field(default=0.1, ge=0, description="alpha")
    text_weight: float = Field(default=0.5, ge=0, description="beta")
    cross_weight: float = Field(default=0.4, ge=0, description="lambda")
    scale: float = Field(default=1.4, gt=0, description="mu")
    moments: Literal["population", "batch"] = Field(
        default="population", description="what the cross-product term averages over"
    )
    dsdw: bool = True
    left_scales: float = Field(
        default=2.0, description="a: sigmas left of the mode where dissimilar pairs begin"
    )
    right_scales: float = Field(
        default=4.0, description="b: scales right of the mode where similar pairs begin"
    )
    left_gain: float = Field(default=0.1, ge=0, description="L1")
    right_gain: float = Field(default=0.2, ge=0, description="L2")
    extreme: float = Field(default=1e-4, gt=0, lt=0.5, description="quantile that stands for S_min and S_max")
    threshold_rows: int = Field(
        default=256, ge=2, description="rows of a batch whose pairs feed the histogram"
    )


@dataclass(frozen=True)
class Rows:
    """What the similarity knows of some rows; the last two only where they are rows, not columns."""

    image: Tensor  # (b, D) unit features
    text: Tensor  # (b, E) unit features
    image_norm: Tensor  # (b,) root mean square of a row of S^I over the population
    text_norm: Tensor  # (b,) the same of S^T
    from_image: Tensor  # (b, E + 1): its product with (text feature, 1) / text norm is H_ij
    from_text: Tensor  # (b, D + 1): its product with (image feature, 1) / image norm is H_ji

    def part(self, chosen: slice | Tensor) -> "Rows":
        """Return some of the rows."""
        return Rows(*(getattr(self, field.name)[chosen] for field in fields(self)))


@dataclass(frozen=True)
class Moments:
    """Second moments of (feature, 1) over a population: means of outer products."""

    image: Tensor  # (D + 1, D + 1)
    text: Tensor  # (E + 1, E + 1)
    cross: Tensor  # (D + 1, E + 1)


class JointSimilarity(Statistics):
    """Computes target similarities; keeps population moments and DSDW's histogram."""

    image_moment: Tensor
    text_moment: Tensor
    cross_moment: Tensor
    moment_rows: Tensor
    histogram: Tensor
    thresholds: Tensor

    def __init__(self, config: SimilarityConfig, image_width: int, text_width: int) -> None:
        super().__init__()
        self.config = config
        # S^I = slope cos + offset is the map whose rows the cross-product term compares.
        self.slope, self.offset = (2.0, -1.0) if config.form == "released" else (1.0, 0.0)
        # Fused cosines are multiplied by _gain and lowered by _shift.
        self._gain = 1.0 if config.form == "centred" else 2.0
        sides = config.image_weight + config.text_weight
        self._shift = {"released": sides, "fused": 1.0, "centred": 0.0}[config.form]
        self._cross = config.cross_weight * (2.0 if config.form == "fused" else 1.0)
        d, e = image_width + 1, text_width + 1
        self.register_buffer("image_moment", torch.zeros(d, d))
        self.register_buffer("text_moment", torch.zeros(e, e))
        self.register_buffer("cross_moment", torch.zeros(d, e))
        self.register_buffer("moment_rows", torch.zeros((), dtype=torch.float64))
        self.register_buffer("histogram", torch.zeros(_BINS, dtype=torch.float64))
        no_decision = torch.tensor([-torch.inf, torch.inf, _LOWEST, _HIGHEST], dtype=torch.float64)
        self.register_buffer("thresholds", no_decision)

    @property
    def precision(self) -> torch.dtype:
        """Precision in which similarities are computed, whatever that of the networks."""
        return self.image_moment.dtype

    def population(self) -> Moments:
        """Return the running moments."""
        return Moments(self.image_moment, self.text_moment, self.cross_moment)

    def moment_sums(self, image: Tensor, text: Tensor) -> dict[str, Tensor]:
        """Return the additive moments of the local rows' unit features."""
        f, g = _with_one(image), _with_one(text)
        rows = torch.tensor(float(len(f)), dtype=torch.float64, device=f.device)
        return {"rows": rows, "image": f.T @ f, "text": g.T @ g, "cross": f.T @ g}

    @staticmethod
    def batch_moments(sums: dict[str, Tensor]) -> Moments:
        """Return the moments of the global batch behind `sums`."""
        image, text, cross = (sums[name] / sums["rows"].to(sums[name]) for name in ("image", "text", "cross"))
        return Moments(image, text, cross)

    def add_moments(self, sums: dict[str, Tensor], *, restart: bool) -> None:
        """Add a global batch to the running moments; `restart` forgets what came before."""
        if restart:
            self.moment_rows.zero_()
        self.moment_rows += sums["rows"]
        share = sums["rows"] / self.moment_rows
        batch = self.batch_moments(sums)
        for running, new in (
            (self.image_moment, batch.image),
            (self.text_moment, batch.text),
            (self.cross_moment, batch.cross),
        ):
            running += (new - running) * share.to(running.dtype)

    def rows(self, image: Tensor, text: Tensor, moments: Moments) -> Rows:
        """Return what the joint similarity needs of rows with these unit features."""
        image_norm, text_norm = self._lengths(image, moments.image), self._lengths(text, moments.text)
        # The low-rank form of H: exact for the population behind the moments, no N x N product.
        from_image = self._mapped_products(image, moments.cross).div_(image_norm[:, None])
        from_text = self._mapped_products(text, moments.cross.T).div_(text_norm[:, None])
        return Rows(image, text, image_norm, text_norm, from_image, from_text)

    def fuse(self, rows: Rows, columns: Rows) -> Tensor:
        """Return the (b, c) joint similarity of rows and columns, before DSDW."""
        config = self.config
        if not config.cross_weight:
            fused = rows.image.new_zeros(len(rows.image), len(columns.image))
        else:
            # One array, scaled in between; products without the column of ones, which BLAS would not align.
            fused = torch.mm(rows.from_image[:, :-1], columns.text.T).add_(rows.from_image[:, -1:])
            fused.mul_(columns.image_norm / columns.text_norm)
            fused.addmm_(rows.from_text[:, :-1], columns.image.T).add_(rows.from_text[:, -1:])
            fused.mul_(self._cross / 2 / columns.image_norm)
        fused.addmm_(rows.image, columns.image.T, alpha=config.image_weight * self._gain)
        fused.addmm_(rows.text, columns.text.T, alpha=config.text_weight * self._gain)
        return fused.sub_(self._shift) if self._shift else fused

    def fuse_in_batch(self, image: Tensor, text: Tensor, rows: slice) -> Tensor:
        """Return the (b, B) joint similarity of some rows of a global batch with all, before DSDW.

        The moments are those of the batch. Forms (B, B) arrays: the cheaper way where B is below the widths.
        """
        config = self.config
        image_cosines, text_cosines = image @ image.T, text @ text.T
        fused = torch.rsub(image_cosines[rows], -self._shift, alpha=-config.image_weight * self._gain)
        fused.add_(text_cosines[rows], alpha=config.text_weight * self._gain)
        if config.cross_weight:
            a, b = self._unit_rows(image_cosines), self._unit_rows(text_cosines)
            fused.addmm_(a[rows], b.T, alpha=self._cross / 2)
            fused.addmm_(b[rows], a.T, alpha=self._cross / 2)
        return fused

    def in_batch_operations(self, rows: int, total: int) -> tuple[int, int]:
        """Return multiplications of a step with moments of the batch: through (B, B) arrays, through moments.

        Args:
            rows: local rows.
            total: rows of the global batch.
        """
        d, e = self.image_moment.shape[0], self.text_moment.shape[0]
        arrays = total * total * (d + e + 2 * rows)
        moments = rows * (d * d + e * e + d * e) + total * (d + e) ** 2 + 2 * rows * total * (d + e)
        return arrays, moments

    def limits(self) -> list[float]:
        """Return what `decide` goes by, as numbers: once a step, since a GPU has to be waited for."""
        return self.thresholds.tolist() if self.config.dsdw else []

    def decide(self, fused: Tensor, limits: Sequence[float]) -> Tensor:
        """Amplify confident similarities (DSDW) and scale: from the joint similarity to the target."""
        return self._decide(fused, limits) if self.config.dsdw else fused * self.config.scale

    def decide_(self, fused: Tensor, limits: Sequence[float]) -> Tensor:
        """Do what `decide` does in the place of its argument, some rows at a time: small arrays more."""
        if not self.config.dsdw:
            return fused.mul_(self.config.scale)
        # What fits the cache of a CPU; a GPU would wait for the start of so many small kernels.
        count = _ROWS_AT_A_TIME if fused.device.type == "cpu" else -(-len(fused) // 4)
        for rows in fused.split(count):
            rows.copy_(self._decide(rows, limits))
        return fused

    def _decide(self, fused: Tensor, limits: Sequence[float]) -> Tensor:
        config = self.config
        left, right, lowest, highest = limits
        # gain = scale L exp(difference, at most 0), where a pair is decided; L and scale inside the exponent.
        height = _log(config.left_gain * config.scale)
        apart = _above(lowest + height - fused, lowest + height - left).clamp_max_(height)
        height = _log(config.right_gain * config.scale)
        alike = _above(fused - (highest - height), right - (highest - height)).clamp_max_(height)
        gain = torch.maximum(apart, alike, out=apart).exp_()
        return gain.add_(config.scale).mul_(fused)

    def classes(self, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the masks of bulk, left and right pairs."""
        left = fused < self.thresholds[0].to(fused.dtype)
        right = fused > self.thresholds[1].to(fused.dtype)
        return ~(left | right), left, right

    def threshold_rows(self, total: int, device: torch.device) -> Tensor:
        """Return which rows of the global batch feed the histogram: evenly spaced, the same on every rank."""
        chosen = torch.arange(min(total, self.config.threshold_rows), device=device)
        return chosen * total // len(chosen)

    def add_pairs(self, fused: Tensor) -> None:
        """Add the (r, r) similarities of some rows to the histogram and renew the thresholds."""
        upper = torch.triu_indices(len(fused), len(fused), offset=1, device=fused.device)
        _add_to_histogram(self.histogram, fused.double()[upper[0], upper[1]])
        self.thresholds.copy_(self._estimate())

    def _estimate(self) -> Tensor:
        """Return left and right threshold and the two extremes, from the histogram.

        A half-normal is fitted left of the mode, half a Laplace distribution right of it.
        """
        centres = _bin_centres(self.histogram)
        mode = _mode(self.histogram, centres)
        below, above = (centres < mode) * self.histogram, (centres > mode) * self.histogram
        sigma = ((below * (centres - mode) ** 2).sum() / below.sum().clamp_min(1e-12)).sqrt()
        scale = (above * (centres - mode)).sum() / above.sum().clamp_min(1e-12)
        share = self.histogram.cumsum(0) / self.histogram.sum()
        lowest = centres[torch.searchsorted(share, self.config.extreme).clamp_max(_BINS - 1)]
        highest = centres[torch.searchsorted(share, 1 - self.config.extreme).clamp_max(_BINS - 1)]
        left = mode - self.config.left_scales * sigma
        return torch.stack([left, mode + self.config.right_scales * scale, lowest, highest])

    def _lengths(self, features: Tensor, moment: Tensor) -> Tensor:
        """Return the root mean squares of rows of a side's similarity."""
        products = self._mapped_products(features, moment)
        squares = (products[:, :-1] * features).sum(1) + products[:, -1]
        return squares.clamp_min_(_TINY).sqrt_()

    def _mapped_products(self, features: Tensor, moment: Tensor) -> Tensor:
        """Return p with p (x, 1) = z'M w; z = (slope y, offset) of features y, w the same of features x.

        So z'(x, 1) = slope y'x + offset: a similarity as one product.
        """
        slope, offset, both = self.slope, self.offset, self.slope * self.offset
        # Apart from the column of ones, which BLAS would not align.
        inner = torch.addmm(moment[-1, :-1], features, moment[:-1, :-1], beta=both, alpha=slope**2)
        last = torch.mv(features, moment[:-1, -1]).mul_(both).add_(moment[-1, -1] * offset**2)
        return torch.cat([inner, last[:, None]], dim=1)

    def _unit_rows(self, cosines: Tensor) -> Tensor:
        """Return the (B, B) similarities of one side, each row of length 1."""
        mapped = torch.rsub(cosines, self.offset, alpha=-self.slope)
        return mapped.div_(torch.linalg.vector_norm(mapped, dim=1, keepdim=True).clamp_min_(_TINY**0.5))


def _with_one(features: Tensor) -> Tensor:
    return torch.cat([features, torch.ones_like(features[:, :1])], 1)


def _above(values: Tensor, least: float) -> Tensor:
    """Put minus infinity in the place of values that are not above the least."""
    return torch.threshold_(values, least, -math.inf)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _bin_centres(histogram: Tensor) -> Tensor:
    step = (_HIGHEST - _LOWEST) / (len(histogram) - 1)
    return _LOWEST + step * torch.arange(len(histogram), dtype=histogram.dtype, device=histogram.device)


def _add_to_histogram(histogram: Tensor, values: Tensor) -> None:
    """Add values, each shared between its two nearest bins, so that rounding cannot move a whole count."""
    last = len(histogram) - 1
    place = ((values - _LOWEST) * (last / (_HIGHEST - _LOWEST))).clamp(0, last)
    lower = place.floor().clamp_max(last - 1)
    share = place - lower
    histogram.scatter_add_(0, lower.long(), 1 - share)
    histogram.scatter_add_(0, lower.long() + 1, share)


def _mode(histogram: Tensor, centres: Tensor) -> Tensor:
    """Return the mode of a histogram smoothed over a tenth of its standard deviation."""
    total = histogram.sum()
    mean = (histogram * centres).sum() / total
    deviation = ((histogram * (centres - mean) ** 2).sum() / total).sqrt()
    step = centres[1] - centres[0]
    width = (deviation / 10).clamp_min(step)
    reach = int((4 * width / step).clamp_max(len(histogram) // 2 - 1).ceil())
    offsets = torch.arange(-reach, reach + 1, dtype=centres.dtype, device=centres.device) * step
    kernel = (-0.5 * (offsets / width) ** 2).exp()
    smooth = torch.nn.functional.conv1d(histogram[None, None], kernel[None, None], padding=reach)[0, 0]
    top = int(smooth[1:-1].argmax()) + 1
    before, at, after = smooth[top - 1], smooth[top], smooth[top + 1]
    # The peak of the parabola through three bins: moves smoothly where an arg-max would jump.
    return centres[top] + step * 0.5 * (before - after) / (before - 2 * at + after).clamp_max(-1e-300)
