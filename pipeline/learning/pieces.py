"""A local batch that does not fit the networks at once: forward in pieces, one loss, backward in pieces.

The loss is of the global batch, so the gradients of pieces cannot just be added up. The codes of all pieces
but the last are computed without a graph; the loss is taken once, over all codes, down to its gradient there;
then every piece is handed its part of that gradient, the others after they have run again with the same
random state. Loss and gradient are those of the whole batch; the price is one more forward pass of all pieces
but one. (The idea: GradCache, Gao et al. 2021, arXiv 2101.06983.)
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
        self._replayed: list[Batch] = []
        self._last: HashOutput = {}
        self._leaves: HashOutput = {}

    def forward(self, batch: Batch, progress: Progress) -> HashOutput:
        """Return the output of the whole batch.

        Raises:
            ValueError: an output is not one row per row of the batch, and cannot be put together of pieces.
        """
        self._progress = progress
        rows = len(batch["image"])
        *self._replayed, last = (
            {name: value[start : start + self._rows] for name, value in batch.items()}
            for start in range(0, rows, self._rows)
        )
        if not self._replayed:
            return self._engine.forward(batch, progress)
        with torch.no_grad():
            outputs = [self._run(piece) for piece in self._replayed]
        self._last = self._run(last)
        outputs.append({name: value.detach() for name, value in self._last.items()})
        whole = {name: _together([output[name] for output in outputs], name) for name in self._last}
        wrong = [name for name, value in whole.items() if value.dim() and len(value) != rows]
        if wrong:
            raise ValueError(
                f"train.micro_batch_size: output {wrong[0]!r} of the method has {len(whole[wrong[0]])} rows "
                f"for {rows} of the batch, and cannot be cut into pieces; leave the setting out"
            )
        self._leaves = {
            name: whole[name].requires_grad_() for name, value in self._last.items() if value.requires_grad
        }
        return whole | self._leaves

    def backward(self, loss: Tensor, learning_rate: float) -> None:
        """Go back from the loss through every piece, and update the weights."""
        if self._replayed:
            self._go_back(loss)
        else:
            self._engine.accumulate(loss)
        self._engine.update(learning_rate)

    def _go_back(self, loss: Tensor) -> None:
        weights = [weight for weight in self._engine.method.parameters() if weight.requires_grad]
        found = torch.autograd.grad(loss, [*self._leaves.values(), *weights], allow_unused=True)
        at_codes = {name: g for name, g in zip(self._leaves, found, strict=False) if g is not None}
        # The last piece, and with it what comes from weights alone, by an output or straight into the loss.
        start = len(self._replayed) * self._rows
        towards = [(self._last[name] * (g[start:] if g.dim() else g)).sum() for name, g in at_codes.items()]
        at_weights = zip(weights, found[len(self._leaves) :], strict=True)
        towards += [(weight * gradient).sum() for weight, gradient in at_weights if gradient is not None]
        self._engine.accumulate(torch.stack(towards).sum())
        for number, piece in enumerate(self._replayed):
            output, part = self._run(piece), slice(number * self._rows, (number + 1) * self._rows)
            towards = [(output[name] * g[part]).sum() for name, g in at_codes.items() if g.dim()]
            self._engine.accumulate(torch.stack(towards).sum())

    def _run(self, piece: Batch) -> HashOutput:
        self._reseed()
        return self._engine.forward(piece, self._progress)


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
