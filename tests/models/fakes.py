"""Four small methods, one of each shape that a paper may have. They stand for methods yet to come."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cmh_models.method import Batch, Everyone, HashMethod, HashOutput, Progress, SideNetwork, Term, binarize

WIDTH, CLASSES = 6, 3


class Linear(SideNetwork):
    """One layer on features."""

    def __init__(self, code_length: int) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, code_length)

    def collate(self, values: Any) -> Tensor:
        return torch.from_numpy(np.asarray(values, dtype=np.float32))

    def describe(self, inputs: Tensor) -> Tensor:
        return inputs

    def forward(self, inputs: Tensor, described: Tensor | None = None) -> Tensor:
        return self.layer(inputs)

    def architecture(self) -> dict[str, Any]:
        return {"fake": "linear"}


class Fake(HashMethod):
    def __init__(self, code_length: int = 8) -> None:
        super().__init__()
        self.code_length = code_length
        self.image, self.text = Linear(code_length), Linear(code_length)

    def codes(self, batch: Batch) -> HashOutput:
        return {side: torch.tanh(getattr(self, side)(batch[side])) for side in ("image", "text")}


def likelihood(codes: Tensor, others: Tensor, similar: Tensor) -> Tensor:
    """Return the (b, B) negative log-likelihoods of pairs, as DCMH and its kin use them."""
    logits = codes @ others.T / 2
    return functional.softplus(logits) - similar * logits


class PairLoss(Fake):
    """Gathered codes and labels; positives and negatives averaged separately; no state."""

    gathers = ("image", "text", "labels")
    needs_labels = True

    def forward(self, batch: Batch, progress: Progress) -> HashOutput:
        return self.codes(batch) | {"labels": batch["labels"]}

    def loss(
        self, output: HashOutput, everyone: Everyone, sums: dict[str, Tensor], progress: Progress
    ) -> dict[str, Term]:
        similar = (output["labels"] @ everyone["labels"].T > 0).to(output["image"].dtype)
        pairs = likelihood(output["image"], everyone["text"], similar)
        pairs = pairs + likelihood(output["text"], everyone["image"], similar)
        return {
            "positive": Term((pairs * similar).sum(), similar.sum()),
            "negative": Term((pairs * (1 - similar)).sum(), (1 - similar).sum()),
        }


class Levels(Fake):
    """Several levels per side, each compared with the gathered final codes (the shape of HSIDHN)."""

    gathers = ("image", "text", "labels")
    needs_labels = True

    def __init__(self, code_length: int = 8, levels: int = 3) -> None:
        super().__init__(code_length)
        self.heads = nn.ModuleDict(
            {side: nn.ModuleList(nn.Linear(WIDTH, code_length) for _ in range(levels)) for side in ("i", "t")}
        )
        self.mix = nn.Parameter(torch.full((levels, code_length), 1 / levels))

    def forward(self, batch: Batch, progress: Progress) -> HashOutput:
        output: HashOutput = {"labels": batch["labels"]}
        for side, key in (("image", "i"), ("text", "t")):
            codes = torch.stack([torch.tanh(head(batch[side])) for head in self.heads[key]])
            output[f"{side}_levels"] = codes.transpose(0, 1)
            output[side] = torch.tanh((codes * self.mix[:, None]).sum(0) + getattr(self, side)(batch[side]))
        return output

    def loss(
        self, output: HashOutput, everyone: Everyone, sums: dict[str, Tensor], progress: Progress
    ) -> dict[str, Term]:
        soft = functional.normalize(output["labels"]) @ functional.normalize(everyone["labels"]).T
        hard = (soft > 0).to(soft.dtype)
        terms = {}
        for side, other in (("image", "text"), ("text", "image")):
            levels = [*output[f"{side}_levels"].unbind(1), output[side]]
            for number, codes in enumerate(levels):
                pairs = likelihood(codes, everyone[other], hard).sum()
                terms[f"{side}_{number}"] = Term(pairs, soft.new_tensor(float(soft.numel())))
            errors = (output[side] @ everyone[side].T / self.code_length - soft).square().sum()
            terms[f"{side}_soft"] = Term(0.1 * errors, soft.new_tensor(float(soft.numel())))
        return terms


class Reconstruction(Fake):
    """Each row rebuilt from its own code, nothing gathered (the shape of DBRC); bit means by sums."""

    def __init__(self, code_length: int = 8) -> None:
        super().__init__(code_length)
        self.decoders = nn.ModuleDict({side: nn.Linear(code_length, WIDTH) for side in ("image", "text")})
        self.slope = nn.Parameter(torch.ones(code_length))

    def forward(self, batch: Batch, progress: Progress) -> HashOutput:
        output: HashOutput = {}
        for side in ("image", "text"):
            scaled = functional.softplus(self.slope) * getattr(self, side)(batch[side])
            output[side] = torch.tanh(scaled)
            output[f"{side}_input"] = batch[side]
        return output

    def sums(self, output: HashOutput) -> dict[str, Tensor]:
        rows = output["image"].new_tensor(float(len(output["image"])))
        return {"bits": output["image"].sum(0) + output["text"].sum(0), "rows": 2 * rows}

    def loss(
        self, output: HashOutput, everyone: Everyone, sums: dict[str, Tensor], progress: Progress
    ) -> dict[str, Term]:
        local = output["image"].new_tensor(float(len(output["image"])))
        terms = {}
        for side in ("image", "text"):
            rebuilt = sum(self.decoders[side](output[code]) for code in ("image", "text"))
            terms[side] = Term((rebuilt - output[f"{side}_input"]).square().sum(), local)
        balance = (sums["bits"] / sums["rows"]).square().sum()
        # What every rank computes alike is weighted by its rows: the sum of shares is the whole.
        terms["balance"] = Term(local * balance, local)
        terms["slope"] = Term(local * functional.softplus(self.slope).pow(-2).sum(), local)
        return terms


class LabelNetwork(Fake):
    """A third network fed by labels, which also speaks at binarisation (the shape of DSCMH)."""

    gathers = ("image", "text", "labels")
    needs_labels = True
    mean: Tensor

    def __init__(self, code_length: int = 8) -> None:
        super().__init__(code_length)
        self.label = nn.Sequential(nn.Linear(CLASSES, 5), nn.ReLU(), nn.Linear(5, code_length))
        self.register_buffer("mean", torch.zeros(code_length))

    def forward(self, batch: Batch, progress: Progress) -> HashOutput:
        codes = torch.tanh(self.label(batch["labels"]))
        return self.codes(batch) | {"labels": batch["labels"], "label": codes}

    def sums(self, output: HashOutput) -> dict[str, Tensor]:
        image = output["image"]
        rows = image.new_tensor(float(len(image)))
        return {"mean": image.sum(0), "moment": image.T @ image, "rows": rows}

    def update_statistics(self, everyone: Everyone, sums: dict[str, Tensor]) -> None:
        self.mean.lerp_(sums["mean"] / sums["rows"], 0.5)

    def loss(
        self, output: HashOutput, everyone: Everyone, sums: dict[str, Tensor], progress: Progress
    ) -> dict[str, Term]:
        similar = (output["labels"] @ everyone["labels"].T > 0).to(output["image"].dtype)
        all_labels = torch.tanh(self.label(everyone["labels"]))  # computed again, not gathered
        pairs = similar.new_tensor(float(similar.numel()))
        local = similar.new_tensor(float(len(similar)))
        target = binarize(output["image"] + output["text"] + 0.5 * output["label"]).detach()
        errors = [(target - output[name]).square().sum() for name in ("image", "text", "label")]
        identity = torch.eye(self.code_length, dtype=similar.dtype)
        decorrelation = (sums["moment"] / sums["rows"] - identity).square().sum()
        terms = {
            name: Term(likelihood(output[name], all_labels, similar).sum(), pairs)
            for name in ("image", "text", "label")
        }
        terms["quantisation"] = Term(torch.stack(errors).sum(), local)
        terms["decorrelation"] = Term(local * decorrelation, local)
        terms["drift"] = Term((output["image"] * self.mean).sum(), local)
        return terms


FAKES: dict[str, type[Fake]] = {
    "pair loss": PairLoss,
    "levels": Levels,
    "reconstruction": Reconstruction,
    "label network": LabelNetwork,
}


def draw_batch(rows: int, seed: int) -> Batch:
    """Return a global batch of features and label sets, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    batch = {
        side: torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64) for side in ("image", "text")
    }
    labels = torch.rand(rows, CLASSES, generator=generator) < 0.5
    return batch | {"labels": labels.double()}
