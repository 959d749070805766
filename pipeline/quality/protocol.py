"""How a number was measured: what it may be compared with, and what not. Stored beside every number."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Coding = Literal["own towers", "joint code"]

OWN: Coding = "own towers"
JOINT: Coding = "joint code"

CODINGS: dict[Coding, str] = {
    OWN: "each side is coded by its own tower, queries and retrieval rows alike",
    JOINT: "a retrieval row has one code, the signs of the sum of both sides' relaxed codes; a query is "
    "coded by the tower of its side",
}
TIES = "expectation over all orders of rows at equal distance; lowest, highest and stable (id, key) beside it"


@dataclass(frozen=True)
class Protocol:
    """The conditions of one measurement. Two numbers compare when all but `seed` agree."""

    code_length: int
    queries: int
    retrieval_rows: int
    query_digest: str  # of keys and labels
    retrieval_digest: str
    cut_off: int  # ranks of the mAP that does not rank everything
    coding: Coding = OWN
    ties: str = TIES
    queries_in_retrieval_set: int = 0
    data: str | None = None  # name of the set
    data_digest: str | None = None  # of the bytes of its files
    split: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # set -> values of the split column
    seed: int | None = None  # of weights, order and draws
    epochs: str | None = None  # by which rule training ended

    def as_json(self) -> dict[str, Any]:
        """Return it as plain JSON values, what is not known left out."""
        values = {name: value for name, value in asdict(self).items() if value not in (None, {})}
        return values | ({"split": {k: list(v) for k, v in self.split.items()}} if self.split else {})
