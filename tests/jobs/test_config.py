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
    ],
)
def test_a_wrong_override_is_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path, "run: {seed: 1}"), [override], {})


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"no config file at nowhere\.yaml"):
        load_config("nowhere.yaml", environ={})


def test_a_setting_the_job_cannot_do_without_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"store\.uri is not set; give it in the config file or by --set"):
        load_config(environ={}).require("store.uri")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.stem)
def test_every_recipe_loads_and_what_it_prints_loads_to_the_same(recipe: Path, tmp_path: Path) -> None:
    resolved = load_config(str(recipe), environ={}).resolved()
    again = load_config(write(tmp_path, yaml.safe_dump(resolved)), environ={})
    assert again.resolved() == resolved
