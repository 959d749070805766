"""Tokens: the same ids on every machine, and nothing of the batch in a row."""

import zlib

import numpy as np
import pytest
import torch

from cmh_models import build_method
from cmh_models.words import token_ids, words_of

SIZES = {"pair_buckets": 50, "max_words": 6}


def test_ids_are_checksums_of_words_then_of_neighbouring_pairs() -> None:
    expected = [1 + zlib.crc32(word) % 100 for word in (b"a", b"red", b"boat")]
    expected += [101 + zlib.crc32(pair) % 50 for pair in (b"a red", b"red boat")]
    assert token_ids(["A red, BOAT!"], 100, **SIZES).tolist() == [expected]


def test_rows_are_padded_with_zeros_that_no_word_has() -> None:
    ids = token_ids(["one two three", "one", "..."], 100, **SIZES)
    assert ids.shape == (3, 5)
    assert (ids[0] > 0).all()
    assert ids[1].tolist() == [ids[0, 0], 0, 0, 0, 0]
    assert (ids[2] == 0).all()


@pytest.mark.parametrize("words", [5, 6, 7])
def test_a_long_text_is_cut_at_max_words(words: int) -> None:
    text = " ".join(f"w{i}" for i in range(words))
    assert len(words_of(text, 6)) == min(words, 6)
    assert token_ids([text], 100, **SIZES).shape == (1, 2 * min(words, 6) - 1)


def test_without_pair_buckets_there_are_only_words() -> None:
    assert token_ids(["a b c"], 100, pair_buckets=0, max_words=9).max() <= 100


def test_equal_texts_in_other_unicode_forms_have_equal_ids() -> None:
    composed, decomposed = token_ids(["Café ﬁn", "cafe\u0301 fin"], 100, **SIZES)
    assert np.array_equal(composed, decomposed)


def test_no_text_and_empty_text_make_a_column_of_padding() -> None:
    assert token_ids([], 100, **SIZES).shape == (0, 1)
    assert token_ids([""], 100, **SIZES).tolist() == [[0]]


def test_codes_of_a_text_do_not_depend_on_longer_neighbours() -> None:
    torch.manual_seed(0)
    method = build_method({"name": "jdsh", "code_length": 32}, {}).eval()
    short = method.encode("text", method.collate("text", ["a red boat", "fish"]))
    beside = method.encode("text", method.collate("text", ["a red boat", "many more words " * 9]))
    assert torch.equal(short[0], beside[0])
