"""The built-in corpus: pictures of small scenes drawn by our own code, with captions and labels.

Any number of rows, without a download: row n of seed s is a pure function of (s, n).
"""

from pipeline.corpus.scenes.files import row, write_corpus, write_file
from pipeline.corpus.scenes.vocabulary import LABELS

__all__ = ["LABELS", "row", "write_corpus", "write_file"]
