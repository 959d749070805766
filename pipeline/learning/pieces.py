"""A local batch that does not fit the networks at once: forward in pieces, one loss, backward in pieces.

The loss is of the global batch, so the gradients of pieces cannot just be added up. The codes of all pieces
are computed without a graph; the loss is taken once, over all of them, down to its gradient at the codes;
then every piece is run again, with the same random state, and handed its part of that gradient. Loss and
gradient are those of the whole batch; the price is one more forward pass. (The idea: GradCache, Gao et al.
2021, arXiv 2101.06983.)
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cmh_models.method import Batch, HashOutput, Progress
from pipeline.learning.engine import Engine


class Pieces:
    """The forward and backward pass of one local batch.

    Args:
        rows: of a piece; a batch of no more rows is one piece, and runs as if nothing was cut.
        reseed: puts every random generator where the step begins. Each piece starts from there, in both of
            its passes: what is drawn must belong to rows or to the step, as it must over ranks.
    """

    def __init__(self, engine: Engine, rows: int, reseed: Callable[[], None]) -> None:
        self._engine, self._rows, self._reseed = engine, rows, reseed
        self._pieces: list[Batch] = []
        self._leaves: HashOutput = {}

    def forward(self, batch: Batch, progress: Progress) -> HashOutput:
        """Return the output of the whole batch.

        Raises:
            ValueError: an output is not one row per row of the batch, and cannot be put together of pieces.
        """
        self._progress = progress
        rows = len(batch["image"])
        self._pieces = [
            {name: value[start : start + self._rows] for name, value in batch.items()}
            for start in range(0, rows, self._rows)
        ]
        if len(self._pieces) == 1:
            return self._engine.forward(batch, progress)
        carries = self._carries_gradient()
        outputs = []
        with torch.no_grad():
            for piece in self._pieces:
                self._reseed()
                outputs.append(self._engine.forward(piece, progress))
        whole = {name: _together([output[name] for output in outputs], name) for name in outputs[0]}
        wrong = [name for name, value in whole.items() if value.dim() and len(value) != rows]
        if wrong:
            raise ValueError(
                f"train.micro_batch_size: output {wrong[0]!r} of the method has {len(whole[wrong[0]])} rows "
                f"for {rows} of the batch, and cannot be cut into pieces; leave the setting out"
            )
        self._leaves = {name: whole[name].requires_grad_() for name in carries}
        return whole | self._leaves

    def backward(self, loss: Tensor, learning_rate: float) -> None:
        """Go back from the loss through every piece, and update the weights."""
        engine = self._engine
        if len(self._pieces) == 1:
            engine.step(loss, learning_rate)
            return
        weights = [weight for weight in engine.method.parameters() if weight.requires_grad]
        names = list(self._leaves)
        found = torch.autograd.grad(loss, [*self._leaves.values(), *weights], allow_unused=True)
        at_codes = {name: g for name, g in zip(names, found[: len(names)], strict=True) if g is not None}
        at_weights = [(w, g) for w, g in zip(weights, found[len(names) :], strict=True) if g is not None]
        for number, piece in enumerate(self._pieces):
            self._reseed()
            output = engine.forward(piece, self._progress)
            part = slice(number * self._rows, number * self._rows + len(piece["image"]))
            towards = [(output[name] * g[part]).sum() for name, g in at_codes.items() if g.dim()]
            if number == 0:  # what comes from weights alone, by an output or straight into the loss
                towards += [output[name] * g for name, g in at_codes.items() if not g.dim()]
                towards += [(weight * gradient).sum() for weight, gradient in at_weights]
            engine.accumulate(torch.stack(towards).sum())
        engine.update(learning_rate)

    def _carries_gradient(self) -> list[str]:
        """Return the outputs that lead back to a weight: those of the first piece, as every other's."""
        self._reseed()
        output = self._engine.forward(self._pieces[0], self._progress)
        return [name for name, value in output.items() if value.requires_grad]


def _together(values: list[Tensor], name: str) -> Tensor:
    """Put the outputs of all pieces together; a scalar is of the weights, and equal in all of them."""
    if values[0].dim():
        return torch.cat(values)
    if not all(torch.equal(value, values[0]) for value in values):
        raise ValueError(
            f"train.micro_batch_size: output {name!r} of the method is one number and depends on the rows: "
            "it cannot be cut into pieces; leave the setting out"
        )
    return values[0].clone()
