"""A look at the first feature rows of a source, before a cluster is asked for anything."""

import numpy as np

from pipeline.corpus.dataset import Piece, PieceReader
from pipeline.corpus.listing import Listing
from pipeline.corpus.schema import SIDES

BAD_SHARE, FILES_LOOKED_AT = 0.01, 8


def check_first_rows(listing: Listing, reader: PieceReader) -> None:
    """Refuse features of which many cannot be trained on, by the first rows of some files.

    Single bad rows are left to the feed, which counts them; pictures too, whose decoding takes time.

    Raises:
        ValueError: more than BAD_SHARE of the rows looked at are NaN, of another width, or else unfit.
    """
    firsts = {chunk.path: chunk for chunk in reversed(listing.chunks)}
    for chunk in list(firsts.values())[-FILES_LOOKED_AT:]:
        if any(side is not None and side.kind == "pixels" for side in map(chunk.columns.side, SIDES)):
            continue
        bad = reader(Piece(chunk, np.arange(chunk.rows))).replaced
        if bad.total() > BAD_SHARE * chunk.rows:
            reasons = ", ".join(f"{count} {reason}" for reason, count in bad.most_common())
            raise ValueError(
                f"{chunk.path}: {bad.total()} of the first {chunk.rows} rows to train on cannot be: "
                f"{reasons}; `hashfleet check_data` names them"
            )
