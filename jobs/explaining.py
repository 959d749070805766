"""What is wrong with settings, in one line: which, where it was given, what it must be, what it was."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError


def explain(
    error: ValidationError,
    model: type[BaseModel] | None = None,
    *,
    prefix: str = "",
    where: Callable[[str], str] = lambda name: "",
) -> str:
    """Say in one line all that does not fit.

    Args:
        model: what the values were checked against, to list the known keys; None lists none.
        prefix: of the setting's names, such as "train.".
        where: tells of a setting's dotted name which source gave it.
    """
    told: dict[str, list[str]] = {}
    for issue in error.errors():
        name, models = _follow(model, issue["loc"])
        told.setdefault(where(prefix + name), []).append(_tell(issue, prefix + name, models))
    return "; ".join(f"{source}: {'; '.join(faults)}".removeprefix(": ") for source, faults in told.items())


def _tell(issue: Any, name: str, models: list[type[BaseModel]]) -> str:
    if issue["type"] == "extra_forbidden":
        known = sorted({key for model in models for key in model.model_fields})
        return f"unknown key {name!r}" + (f"; known: {', '.join(known)}" if known else "")
    if issue["type"] == "union_tag_invalid":
        context = issue["ctx"]
        tag = context["discriminator"].strip("'")
        return f"{name}.{tag} must be one of {context['expected_tags']}, got {context['tag']!r}"
    message = issue["msg"].removeprefix("Value error, ")
    given = repr(issue["input"])
    if not message.endswith(f", got {given}") and not (isinstance(issue["input"], str) and given in message):
        message = f"{message}, got {given}"
    key = name.rpartition(".")[2]
    if message.startswith(f"{key} "):
        return name + message.removeprefix(key)
    return f"{name}: {message[0].lower()}{message[1:]}"


def _follow(model: type[BaseModel] | None, location: tuple[Any, ...]) -> tuple[str, list[type[BaseModel]]]:
    """Return the dotted name of a setting as the user writes it, and what may hold its last key."""
    names: list[str] = []
    holders: list[type[BaseModel]] = []
    inside = [model] if model else []
    for part in location:
        tagged = [each for each in inside if part in _tags(each)]
        if len(inside) > 1 and tagged:  # pydantic names the member of a union here, the user does not
            inside = tagged
            continue
        names.append(str(part))
        holders = inside
        fields = [each.model_fields[part] for each in inside if part in each.model_fields]
        inside = [found for field in fields for found in _models(field.annotation)]
    return ".".join(names), holders


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models that a value of this type may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is not Literal:
        for inner in get_args(annotation):
            yield from _models(inner)


def _tags(model: type[BaseModel]) -> set[Any]:
    kinds = [field.annotation for field in model.model_fields.values()]
    return {value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)}
