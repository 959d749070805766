"""Compiled code that is kept must not outlive the instructions that became part of it."""

import hashlib
from pathlib import Path

from pipeline.search import instructions, kernels, ranking


def test_kernels_name_the_instructions_that_they_were_compiled_with() -> None:
    found = hashlib.blake2b(Path(instructions.__file__).read_bytes(), digest_size=8).hexdigest()
    message = "instructions.py has changed: write its digest into kernels.py and ranking.py"
    assert (found, found) == (kernels.INSTRUCTIONS, ranking.INSTRUCTIONS), message
