"""DSCMH (reconstruction): Deep Semantics-preserving Cross-Modal Hashing (Lai et al., 2024), supervised.

The abstract certifies: two steps, features and binarisation; intra-modal and inter-modal semantics; a label
network that aligns semantics during binarisation; new regularisers. Every equation here is rebuilt from the
methods it descends from (DCMH, SSAH, MESDCH), so each can be weighted and switched; call it "DSCMH
(reconstruction)" wherever numbers are shown.

    inter: F with G      intra: F with F, G with G      label: H with H, and labels read from H
    align: F with H, G with H      quantisation: F, G, H towards B = sign(F + G + omega H)
    regularisers: balance and correlation of bits, labels read from codes by a linear map

Nothing is stored per sample. H follows from label sets: ranks exchange label vectors and compute the codes
of the distinct sets of the global batch, which is exact. B is made on the fly. Regularisers are functions of
summed moments. Where the family alternates between networks, all terms descend together here.

Two phases: with a frozen label network, label codes are learnt in the first rounds, from label sets alone;
with `align` by bits and without inter and intra terms the loss then needs no pair and no gathered code.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from cmh_models.atanh import AdaptiveTanh, AtanhConfig
from cmh_models.label_network import LabelHead, LabelNetwork, class_errors, fit_frozen, freeze
from cmh_models.label_pairs import LabelSets, PairLoss, Pairs, pair_losses
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
    binarize,
)
from cmh_models.regularisers import CodeMoments, correlation, imbalance, read_out_error
from cmh_models.statistics import named, under
from cmh_models.towers import Described, TowersConfig, build_tower, description_sums, update_descriptions

Sums = dict[str, Tensor]


class DSCMHConfig(MethodConfig):
    """Settings of DSCMH; all are inferred, those of the family's released code are named after it."""

    classes: int | None = Field(
        default=None, ge=1, description="number of labels; the training job fills it in"
    )
    label_network: Literal["trained", "frozen", "none"] = Field(
        default="trained",
        description="frozen: learnt in the first rounds; none: no label and align terms, no H in B",
    )
    label_hidden: tuple[int, ...] = Field(default=(512,), description="widths of its hidden layers")
    label_head: LabelHead = Field(default="code", description="what labels are read from")

    pair_loss: PairLoss = Field(
        default="likelihood",
        description="likelihood: of sharing a label (DCMH); soft_likelihood: of the cosine of label sets; "
        "divergence: of cosines of codes from cosines of label sets (MESDCH)",
    )
    theta: Literal["half", "length"] = Field(
        default="half", description="logit of a pair: <a, b> / 2 (DCMH), or <a, b> / (L / 32)"
    )
    pair_means: Literal["separate", "all"] = Field(
        default="separate",
        description="separate: similar and dissimilar pairs are averaged each on their own",
    )
    class_weights: tuple[float, float] = Field(default=(0.5, 0.5), description="similar, dissimilar")
    inter_weight: float = Field(default=1.0, ge=0)
    intra_weight: float = Field(default=1.0, ge=0)
    label_weight: float = Field(default=1.0, ge=0, description="pairs of label codes")
    label_head_weight: float = Field(default=1.0, ge=0, description="labels read from label codes")
    align_weight: float = Field(default=1.0, ge=0)
    align: Literal["pairs", "bits"] = Field(
        default="pairs", description="bits: likelihood of the bits of a row's own label code, no pairs"
    )
    label_share: float = Field(default=1.0, ge=0, description="omega: weight of H in B")
    quantisation_weight: float = Field(default=1.0, ge=0)

    balance_weight: float = Field(default=0.0, ge=0)
    correlation_weight: float = Field(default=0.0, ge=0)
    moment_memory: float = Field(
        default=0.0, ge=0, lt=1, description="of the moments behind both: 0 is the global batch alone"
    )
    read_out_weight: float = Field(default=0.0, ge=0)
    read_out_of: Literal["relaxed", "binary"] = Field(
        default="relaxed", description="F and G; binary: B, gradient straight through its signs"
    )
    read_out_ridge: float = Field(default=0.01, gt=0)

    activation: AtanhConfig = AtanhConfig(scale_fn="fixed", start="one")
    chunk: int = Field(default=2048, ge=1, description="columns of the global batch at a time, at most")
    feature_rounds: int = Field(default=8, ge=1, description="rounds for the scaling of features")
    spread_rounds: int = Field(default=2, ge=0, description="rounds after them for the spread of values")
    label_rounds: int = Field(default=8, ge=1, description="rounds in which a frozen label network learns")
    label_steps: int = Field(default=50, ge=1, description="steps of each of these rounds")
    label_rate: float = Field(default=1e-3, gt=0, description="learning rate of these steps")


@dataclass(frozen=True)
class Matrix:
    """One set of pairs of codes: local rows, columns of the global batch, what they should be."""

    name: str
    weight: float
    rows: Tensor
    columns: Tensor
    pairs: Pairs


class DSCMH(HashMethod):
    """The networks of both sides and of label sets."""

    needs_labels: ClassVar[bool] = True
    Config: ClassVar[type[MethodConfig]] = DSCMHConfig
    image: Described
    text: Described
    label: LabelNetwork | None
    rounds: Tensor

    def __init__(self, config: DSCMHConfig, towers: TowersConfig) -> None:
        super().__init__()
        self.config = config
        self.code_length = config.code_length
        self.image = build_tower(towers.image, "image", config.code_length)
        self.text = build_tower(towers.text, "text", config.code_length)
        self.activation = AdaptiveTanh(config.activation, config.code_length)
        self.label = _label_network(config)
        self.frozen = config.label_network == "frozen"
        self.image_moments = CodeMoments(config.code_length, config.moment_memory)
        self.text_moments = CodeMoments(config.code_length, config.moment_memory)
        self.register_buffer("rounds", torch.zeros((), dtype=torch.int64))
        label_rounds = config.label_rounds if self.frozen else 0
        self.statistics_rounds = max(config.feature_rounds + config.spread_rounds, label_rounds)
        pairs_of_codes = config.inter_weight > 0 or config.intra_weight > 0
        self.gathers = ("image", "text", "labels") if pairs_of_codes else ("labels",)
        self.scale = 0.5 if config.theta == "half" else 32 / config.code_length

    def forward(self, batch: Batch, progress: Progress) -> HashOutput:
        """Return relaxed codes of both sides and of the label sets.

        Raises:
            ValueError: the batch has no labels, or those of another number of classes.
        """
        labels = self._labels(batch)
        output: HashOutput = {"labels": labels}
        for side, network in (("image", self.image), ("text", self.text)):
            if int(self.rounds) < self.config.feature_rounds:
                with torch.no_grad():
                    output[f"{side}_described"] = network.describe(batch[side])
            values = network(batch[side], output.get(f"{side}_described"))
            output[f"{side}_values"] = values
            output[f"{side}_logits"] = self.activation.scaled(values, progress)
            output[side] = torch.tanh(output[f"{side}_logits"])
        if self.label is not None:
            local = LabelSets.of(labels)
            codes, logits = self.label(local.sets)
            output["label"], output["label_classes"] = codes[local.of_row], logits[local.of_row]
        output["slope_penalty"] = self.activation.penalty()
        return output

    def sums(self, output: HashOutput) -> Sums:
        """Return what the first rounds estimate, and the moments behind the regularisers."""
        sums: Sums = {}
        config, done = self.config, int(self.rounds)
        if done < config.feature_rounds:
            sums |= description_sums(self, output)
        elif done < config.feature_rounds + config.spread_rounds:
            values = (output[f"{side}_values"] for side in SIDES)
            sums |= named("spread", self.activation.sums(*values))
        if config.balance_weight or config.correlation_weight:
            for side in SIDES:
                sums |= named(f"moments.{side}", self.moments(side).sums(output[side]))
        if config.read_out_weight:
            codes, labels = self._read_codes(output), output["labels"]
            sums["read.rows"] = labels.new_tensor(float(len(labels)))
            sums["read.outer"] = sum((each.T @ each for each in codes), torch.zeros(())) / len(codes)
            sums["read.cross"] = sum((each.T @ labels for each in codes), torch.zeros(())) / len(codes)
            sums["read.energy"] = labels.square().sum()
        return sums

    @torch.no_grad()
    def update_statistics(self, everyone: Everyone, sums: Sums) -> None:
        """Estimate scalings and, for two phases, label codes; keep running moments."""
        update_descriptions(self, sums)
        if spread := under("spread", sums):
            self.activation.update(spread)
        if self.frozen and int(self.rounds) < self.config.label_rounds:
            self._fit_label_codes(everyone["labels"])
        for side in SIDES:
            if moments := under(f"moments.{side}", sums):
                self.moments(side).update(moments)
        self.rounds += 1

    def loss(self, output: HashOutput, everyone: Everyone, sums: Sums, progress: Progress) -> dict[str, Term]:
        """Return the terms of pairs, of binarisation and of the regularisers."""
        local = output["image"].new_tensor(float(len(output["image"])))
        terms = self._pair_terms(output, everyone)
        if self.label is not None:
            terms |= self._label_terms(output, local)
        terms["quantisation"] = Term(self.config.quantisation_weight * self._quantisation(output), local)
        # What every rank computes alike is weighted by its rows: the shares add up to the whole.
        terms["slope"] = Term(local * output["slope_penalty"], local)
        for name, value in self._regularisers(sums).items():
            terms[name] = Term(local * value, local)
        return terms

    def moments(self, side: Side) -> CodeMoments:
        """Return the moments of a side's codes; they are part of the model, not of the side."""
        return self.image_moments if side == "image" else self.text_moments

    def _labels(self, batch: Batch) -> Tensor:
        if "labels" not in batch:
            raise ValueError("dscmh learns from labels, and the batch has none: name their column")
        labels = batch["labels"]
        if self.config.classes is not None and labels.shape[1] != self.config.classes:
            raise ValueError(
                f"method.classes is {self.config.classes}, label vectors have {labels.shape[1]} entries"
            )
        return labels

    def _matrices(self, output: HashOutput, everyone: Everyone) -> Iterator[Matrix]:
        """Yield the pairs of codes of both sides, and of these with label codes."""
        config = self.config
        local, labels = LabelSets.of(output["labels"]), everyone["labels"]
        if config.inter_weight or config.intra_weight:
            pairs = self._pairs(local, labels, torch.ones_like(labels[:, 0]))
            yield Matrix("image_text", config.inter_weight, output["image"], everyone["text"], pairs)
            for side in SIDES:
                yield Matrix(f"{side}_{side}", config.intra_weight, output[side], everyone[side], pairs)
        if self.label is None:
            return
        # Rows with equal label sets have equal label codes: each distinct set is one column.
        sets = LabelSets.of(labels)
        codes, _ = self.label(sets.sets)
        pairs = self._pairs(local, sets.sets, sets.counts)
        if config.align == "pairs":
            for side in SIDES:
                yield Matrix(f"{side}_label", config.align_weight, output[side], codes, pairs)
        if not self.frozen:
            yield Matrix("label_label", config.label_weight, output["label"], codes, pairs)

    def _pair_terms(self, output: HashOutput, everyone: Everyone) -> dict[str, Term]:
        terms = {}
        for matrix in self._matrices(output, everyone):
            if not matrix.weight:
                continue
            sums, counts = pair_losses(matrix.rows, matrix.columns, matrix.pairs, scale=self.scale)
            if self.config.pair_means == "all":
                terms[matrix.name] = Term(matrix.weight * sums[0], counts[0])
                continue
            for number, kind in enumerate(("similar", "dissimilar")):
                weight = matrix.weight * self.config.class_weights[number]
                terms[f"{matrix.name}_{kind}"] = Term(weight * sums[number], counts[number])
        return terms

    def _pairs(self, rows: LabelSets, columns: Tensor, weights: Tensor) -> Pairs:
        config = self.config
        separate = config.pair_means == "separate"
        return Pairs(rows, columns, weights, kind=config.pair_loss, separate=separate, chunk=config.chunk)

    def _label_terms(self, output: HashOutput, local: Tensor) -> dict[str, Term]:
        """Return the terms of a row and its own label code."""
        config, terms = self.config, {}
        if not self.frozen:
            errors = class_errors(output["label_classes"], output["labels"])
            terms["label_classes"] = Term(config.label_head_weight * errors.sum(), local)
        if config.align == "bits":
            bits = binarize(output["label"]).detach()
            for side in SIDES:
                # -log p(bit), p = sigmoid(2 a): of a value a whose relaxed bit is tanh(a).
                unlikely = functional.softplus(-2 * bits * output[f"{side}_logits"]).mean(1)
                terms[f"{side}_bits"] = Term(config.align_weight * unlikely.sum(), local)
        return terms

    def _mixed(self, output: HashOutput) -> Tensor:
        """Return F + G + omega H, whose signs are B."""
        both = output["image"] + output["text"]
        return both if self.label is None else both + self.config.label_share * output["label"]

    def _quantisation(self, output: HashOutput) -> Tensor:
        """Return the squared distances of codes from B, per bit, summed over the local rows."""
        bits = binarize(self._mixed(output)).detach()
        relaxed = [output[side] for side in SIDES]
        if self.label is not None and not self.frozen:
            relaxed.append(output["label"])
        return torch.stack([(bits - each).square().mean(1).sum() for each in relaxed]).sum()

    def _read_codes(self, output: HashOutput) -> list[Tensor]:
        """Return the codes that labels are read from: those of both sides, or B."""
        if self.config.read_out_of == "relaxed":
            return [output[side] for side in SIDES]
        mean = self._mixed(output) / (2 + (self.config.label_share if self.label is not None else 0))
        return [binarize(mean).detach() + mean - mean.detach()]

    def _regularisers(self, sums: Sums) -> dict[str, Tensor]:
        """Return the weighted regularisers of the global batch."""
        config, values = self.config, {}
        for side in SIDES:
            if not (config.balance_weight or config.correlation_weight):
                break
            mean, outer = self.moments(side).read(under(f"moments.{side}", sums))
            values[f"{side}_balance"] = config.balance_weight * imbalance(mean)
            values[f"{side}_correlation"] = config.correlation_weight * correlation(outer)
        if config.read_out_weight:
            read = under("read", sums)
            parts = (read[name] / read["rows"] for name in ("outer", "cross", "energy"))
            values["read_out"] = config.read_out_weight * read_out_error(*parts, ridge=config.read_out_ridge)
        return values

    @torch.no_grad()
    def _fit_label_codes(self, labels: Tensor) -> None:
        """Train the frozen label network on the label sets of a global batch, each counted once."""
        if self.label is None:
            return
        config = self.config
        sets = LabelSets.of(LabelSets.of(labels).sets)
        pairs = self._pairs(sets, sets.sets, sets.counts)

        def objective(codes: Tensor, logits: Tensor) -> Tensor:
            sums, counts = pair_losses(codes, codes, pairs, scale=self.scale)
            weights = codes.new_tensor(config.class_weights if pairs.separate else (1.0,))
            alike = (weights * sums / counts.clamp_min(1)).sum()
            away = (binarize(codes).detach() - codes).square().mean()
            read = class_errors(logits, sets.sets).mean()
            return (
                config.label_weight * alike
                + config.label_head_weight * read
                + config.quantisation_weight * away
            )

        fit_frozen(self.label, sets.sets, objective, steps=config.label_steps, rate=config.label_rate)


def _label_network(config: DSCMHConfig) -> LabelNetwork | None:
    if config.label_network == "none":
        return None
    if config.classes is None:
        raise ValueError("method.classes is not set: give the number of labels, the highest one + 1")
    network = LabelNetwork(config.classes, config.label_hidden, config.code_length, head=config.label_head)
    if config.label_network == "frozen":
        freeze(network)
    return network
