"""Settings: three sources, one owner each, and errors that say what to do."""

from pathlib import Path

import pytest
import yaml

from jobs.config import load_config

RECIPES = sorted((Path(__file__).parents[2] / "jobs" / "configs").glob("*.yaml"))


def write(folder: Path, text: str) -> str:
    file = folder / "c.yaml"
    file.write_text(text)
    return str(file)


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "run: {seed: 1, name: a}\nencode: {tile: 8}\n")
    environ = {"HASHFLEET_RUN__SEED": "2", "HASHFLEET_RUN__NAME": "b", "PATH": "/bin"}
    config = load_config(file, ["run.seed=3"], environ)
    assert (config.run.seed, config.run.name, config.encode.tile) == (3, "b", 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: {sead: 1}", r"c.yaml: unknown key 'run.sead'; known: dir, name, resume, seed"),
        ("ruun: {seed: 1}", r"unknown key 'ruun'; known: data, deepspeed, "),
        ("run: {seed: ten}", r"run.seed: input should be a valid integer.*, got 'ten'"),
        ("data: {split: {validation: 1.5}}", r"data.split.validation: input should be less than 1, got 1.5"),
        ("- a\n- b", r"must hold sections \(a mapping\), got list"),
        ("run: [", r"is not YAML"),
        ("run: {seed: 1}\nrun: {name: a}", r"key 'run' stands twice .*line 1"),
        ("data: {scenes: {row: 3}}", r"unknown key 'data.scenes.row'; known: queries, rows, rows_per_file, "),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_given(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path, text), environ={})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.seed", "takes section.key=value, got 'run.seed'"),
        ("seed=1", "must name a section and a key"),
        ("run.seed.deep=1", "seed is a value, not a section"),
        ("run.seed=[", "not a YAML value"),
        ("run.seed=ten", r"^--set: run.seed: input should be a valid integer, .*, got 'ten'"),
        ("store.url=x", r"^--set: unknown key 'store.url'; known: channel, "),
        ("data.path=[a]", r"data.path: input should be a valid string, got \['a'\]"),
    ],
)
def test_a_wrong_override_is_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path, "run: {seed: 1}"), [override], {})


def test_the_source_of_a_wrong_setting_is_named(tmp_path: Path) -> None:
    environ = {"HASHFLEET_STORE__URL": "x"}
    with pytest.raises(
        ValueError, match=r"c\.yaml: unknown key 'run.sead'.*; environment variable HASHFLEET"
    ):
        load_config(write(tmp_path, "run: {sead: 1}"), [], environ)


def test_a_section_that_is_misspelt_is_blamed_on_what_gave_it(tmp_path: Path) -> None:
    file = write(tmp_path, "train: {epochs: 1}")
    for overrides, environ, told in (
        (["trian.epochs=3"], {}, r"^--set trian\.epochs: unknown key 'trian'; known: data, "),
        ([], {"HASHFLEET_TRIAN__EPOCHS": "3"}, r"^environment variable HASHFLEET_TRIAN__EPOCHS: unknown key"),
    ):
        with pytest.raises(ValueError, match=told):
            load_config(file, overrides, environ)
    with pytest.raises(ValueError, match=r"^.*c\.yaml: unknown key 'trian'"):
        load_config(write(tmp_path, "trian: {epochs: 1}"), ["trian.seed=3"], {})


@pytest.mark.parametrize(
    ("text", "override", "told"),
    [
        ("", "gate.max_dead_bit=1", r"^--set: unknown key 'gate\.max_dead_bit'; known: canary, "),
        ("", "train.epochs=x", r"^--set: train\.epochs: input should be a valid integer.*, got 'x'$"),
        (
            "gate: {parts: 0}",
            "gate.k=5",
            r"^\S*c\.yaml: gate\.parts: input should be .*, got 0$",
        ),
        (
            "method: {name: dscmh}",
            "method.chunk=x",
            r"^--set: method\.chunk: input should be .* 'x'$",
        ),
        (
            "method: {name: jdsh, code_length: 20}",
            "run.seed=1",
            r"c\.yaml: method\.code_length must .* 20$",
        ),
        (
            "method: {name: jdsh}",
            "method.alhpa=1",
            r"^--set: unknown key 'method\.alhpa'; known: .*code_length",
        ),
    ],
)
def test_a_section_that_its_owner_checks_names_setting_and_source(
    text: str, override: str, told: str, tmp_path: Path
) -> None:
    config = load_config(write(tmp_path, text), [override], {})
    with pytest.raises(ValueError, match=told):
        config.resolved()


def test_a_text_that_the_message_names_is_not_said_twice() -> None:
    with pytest.raises(ValueError, match=r"index\.recipe: unknown index recipe 'BFoo'; known: .*x<b>$"):
        load_config(None, ["index.recipe=BFoo"], {}).resolved()


@pytest.mark.parametrize(
    "text", ["2026-11-22", "012", "on", "1e3", "a #1 b", "a: b".replace(": ", ":"), " x "]
)
def test_a_text_is_taken_to_the_letter_from_the_command_line_and_the_environment(text: str) -> None:
    key = "encode.model"
    assert load_config(None, [f"{key}={text}"], {}).encode.model == text.strip()
    assert load_config(None, [], {"HASHFLEET_ENCODE__MODEL": text}).encode.model == text.strip()
    assert load_config(None, [f"{key}='{text}'"], {}).encode.model == text


def test_a_section_that_may_be_a_file_is_named_as_a_whole(tmp_path: Path) -> None:
    file = write(tmp_path, "deepspeed: {zero_optimization: {stage: 1}}")
    assert load_config(file, ["deepspeed=ds.json"], {}).deepspeed == "ds.json"
    assert load_config(file, [], {"HASHFLEET_DEEPSPEED": "ds.json"}).deepspeed == "ds.json"
    assert load_config(file, ["deepspeed={a: 1}"], {}).deepspeed == {"a": 1}


def test_a_date_in_the_file_is_text(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "run: {name: 2026-11-22}"), environ={}).run.name == "2026-11-22"


def test_a_section_whose_lines_are_all_commented_out_has_its_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, "store:\n  # uri: x\nrun: {seed: 3}\n")
    assert load_config(file, environ={}).store.uri is None
    assert load_config(file, ["store.uri=y"], {}).store.uri == "y"


def test_the_keys_of_the_tower_that_is_named_are_listed(tmp_path: Path) -> None:
    file = write(tmp_path, "towers: {image: {name: descriptor, hiden: 3}}")
    with pytest.raises(
        ValueError, match=r"unknown key 'towers.image.hiden'; known: .*hidden, image_size, name"
    ):
        load_config(file, environ={}).resolved()
    file = write(tmp_path, "towers: {image: {name: resnet}}")
    with pytest.raises(ValueError, match=r"towers.image.name must be one of 'descriptor', .*, got 'resnet'"):
        load_config(file, environ={}).resolved()


def test_a_file_that_is_not_there_or_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config file at nowhere\.yaml"):
        load_config("nowhere.yaml", environ={})
    with pytest.raises(ValueError, match="--config takes a YAML file, got the folder"):
        load_config(str(tmp_path), environ={})


def test_a_setting_the_job_cannot_do_without_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"store\.uri is not set; give it in the config file or by --set"):
        load_config(environ={}).require("store.uri")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.stem)
def test_every_recipe_loads_and_what_it_prints_loads_to_the_same(recipe: Path, tmp_path: Path) -> None:
    resolved = load_config(str(recipe), environ={}).resolved()
    again = load_config(write(tmp_path, yaml.safe_dump(resolved)), environ={})
    assert again.resolved() == resolved
