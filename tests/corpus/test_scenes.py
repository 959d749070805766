import io
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.corpus import describe, draw, measure
from pipeline.corpus.decode import InputRecipe, decode_table
from pipeline.corpus.scenes import LABELS, row, write_corpus, write_file
from pipeline.corpus.scenes.captions import write_caption
from pipeline.corpus.scenes.composition import Draws, compose
from pipeline.corpus.scenes.painting import SIDE, paint
from pipeline.corpus.scenes.vocabulary import PLACES, SHAPES
from pipeline.corpus.schema import Columns, resolve_columns


def digests(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@given(st.integers(0, 2**40), st.integers(0, 10**12))
def test_a_row_is_a_function_of_seed_and_number(seed: int, number: int) -> None:
    first = row(seed, number)
    row(seed + 1, number), row(seed, number + 1)
    assert row(seed, number) == first
    assert first["key"] == f"s{seed}-{number:09d}"


def test_other_seeds_and_numbers_give_other_pictures() -> None:
    pictures = {row(seed, number)["image"] for seed in range(5) for number in range(40)}
    assert len(pictures) == 200


def test_files_have_the_same_bytes_whoever_makes_them_and_in_whatever_order(tmp_path: Path) -> None:
    together = write_corpus(tmp_path / "together", 50, 20, 3)
    write_corpus(tmp_path / "processes", 50, 20, 3, workers=2)
    (tmp_path / "alone").mkdir()
    for start, stop in ((40, 50), (0, 20), (20, 40)):
        write_file(tmp_path / "alone" / f"scenes-3-{start:09d}.parquet", 3, range(start, stop))
    assert digests(tmp_path / "together") == digests(tmp_path / "processes") == digests(tmp_path / "alone")
    assert [file.name for file in together] == sorted(digests(tmp_path / "together"))


@pytest.mark.parametrize("rows_per_file", [1, 6, 7, 8, 100])
def test_the_cut_into_files_does_not_change_the_rows(tmp_path: Path, rows_per_file: int) -> None:
    files = write_corpus(tmp_path, 7, rows_per_file, 5, start=11, split="query")
    assert len(files) == -(-7 // rows_per_file)
    rows = pa.concat_tables(pq.read_table(file) for file in files).to_pylist()
    assert rows == [row(5, number) | {"split": "query"} for number in range(11, 18)]


def test_several_calls_fill_one_folder(tmp_path: Path) -> None:
    write_corpus(tmp_path, 5, 3, 2, split="query")
    write_corpus(tmp_path, 5, 3, 2, start=5, split="retrieval")
    table = pq.read_table(tmp_path)
    assert Counter(table["split"].to_pylist()) == {"query": 5, "retrieval": 5}
    assert len(set(table["key"].to_pylist())) == 10


def test_a_file_that_cannot_be_put_in_place_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(OSError):
        write_file(tmp_path / "taken", 1, range(2))
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize(
    ("rows", "rows_per_file", "seed", "start", "message"),
    [
        (0, 5, 1, 0, "must be positive, got 0, 5 and 1"),
        (5, 0, 1, 0, "must be positive, got 5, 0 and 1"),
        (5, 5, -1, 0, "must not be negative, got -1 and 0"),
        (5, 5, 1, -2, "must not be negative, got 1 and -2"),
    ],
)
def test_counts_that_make_no_corpus_are_refused(
    tmp_path: Path, rows: int, rows_per_file: int, seed: int, start: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_corpus(tmp_path / "x", rows, rows_per_file, seed, start=start)
    assert not (tmp_path / "x").exists()


def test_every_row_decodes_and_pictures_are_jpeg_of_one_size(scenes: Path) -> None:
    table = pq.read_table(scenes)
    columns = resolve_columns(table.schema, Columns(), where="scenes")
    for decoded in decode_table(table, columns, InputRecipe(image_size=SIDE)).values():
        assert (len(decoded.rows), decoded.rejects, decoded.absent) == (table.num_rows, [], 0)
    for data in table["image"].to_pylist():
        with Image.open(io.BytesIO(data)) as picture:
            assert (picture.format, picture.size) == ("JPEG", (SIDE, SIDE))


def test_labels_are_many_uneven_and_one_to_six_per_pair() -> None:
    pairs = [compose(Draws(1, number)).labels() for number in range(4000)]
    assert {len(labels) for labels in pairs} == {1, 2, 3, 4, 5, 6}
    assert all(labels == sorted(set(labels)) for labels in pairs)
    counts = Counter(number for labels in pairs for number in labels)
    assert sorted(counts) == list(range(len(LABELS))) and len(LABELS) == len(set(LABELS)) >= 30
    assert max(counts.values()) > 4 * min(counts.values()) > 4 * 50


def test_labels_say_what_the_scene_shows() -> None:
    for number in range(300):
        scene = compose(Draws(2, number))
        names = {LABELS[label] for label in scene.labels()}
        assert scene.things[0].shape in names
        assert (scene.place.name in names) == scene.place.labelled
        if scene.style in ("grey", "sepia", "negative"):
            assert scene.things[0].colour not in names
        assert names <= {
            scene.place.name,
            *(part for part in vars(scene.things[0]).values() if isinstance(part, str)),
            scene.relation,
        }


def test_scenes_have_one_to_four_things_and_every_relation_occurs() -> None:
    made = [compose(Draws(3, number)) for number in range(1000)]
    assert {len(scene.things) for scene in made} == {1, 2, 3, 4}
    assert {scene.relation for scene in made} == {None, "above", "beside", "in front", "crowd"}
    for scene in made:
        if scene.relation == "above":
            assert scene.things[0].y < scene.things[1].y
        assert (scene.relation == "crowd") == (len(scene.things) == 4)


def test_captions_omit_and_vary_what_they_say() -> None:
    told, words = Counter(), set()
    for number in range(1000):
        draws = Draws(4, number)
        scene = compose(draws)
        caption = write_caption(draws, scene)
        assert caption.strip() == caption != "" and "  " not in caption
        words |= set(caption.split())
        told["place"] += any(phrase in caption for phrase in scene.place.phrases)
        told["shape"] += any(word in caption for word in SHAPES[scene.things[0].shape])
    assert 500 < told["place"] < 700 and 750 < told["shape"] < 950
    assert len(words) > 200


def test_pictures_of_a_place_look_more_alike_than_pictures_of_all_places() -> None:
    looks: dict[str, list[np.ndarray]] = {place.name: [] for place in PLACES}
    for number in range(400):
        draws = Draws(5, number)
        scene = compose(draws)
        with Image.open(io.BytesIO(paint(draws, scene))) as picture:
            colours = np.asarray(picture.resize((2, 2), Image.Resampling.BOX), dtype=float)
        looks[scene.place.name].append(colours.ravel())
    overall = np.concatenate(list(looks.values())).std(axis=0).mean()
    assert all(np.stack(place).std(axis=0).mean() < overall for place in looks.values())


def test_the_corpus_is_neither_trivial_nor_random_nor_linear() -> None:
    speed: dict[str, float] = {}
    train, held_out = draw(1, range(1200), speed), draw(2, range(1000), speed)
    results = measure(*describe(train, held_out), held_out, 250)
    best = next(values for name, values in results.items() if name.startswith("cca best"))
    for direction in ("map_i2t", "map_t2i"):
        random, cca, ridge = results["random 64"][direction], best[direction], results["ridge 64"][direction]
        assert random < 0.3 and random + 0.08 < cca and cca + 0.03 < ridge < 0.9
