"""Hashing methods by name. Cheap to import: a method's module, and torch with it, is imported on use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmh_models.method import HashMethod, MethodConfig

METHODS: dict[str, str] = {
    "dbrc": "cmh_models.dbrc:DBRC",
    "djsrh": "cmh_models.djsrh:DJSRH",
    "dscmh": "cmh_models.dscmh:DSCMH",
    "hsidhn": "cmh_models.hsidhn:HSIDHN",
    "jdsh": "cmh_models.jdsh:JDSH",
}
"""Name of a method -> module:class. Adding a method is one file and one line here."""


def method_class(name: str) -> type[HashMethod]:
    """Return the class of a method by its name.

    Raises:
        ValueError: no method has that name.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; known: {', '.join(sorted(METHODS))}")
    module, _, attribute = METHODS[name].partition(":")
    found: type[HashMethod] = getattr(import_module(module), attribute)
    return found


def config_class(method: dict[str, Any]) -> type[MethodConfig]:
    """Return what the settings of a method are checked against.

    Raises:
        ValueError: no name is given, or no method has it.
    """
    if "name" not in method:
        raise ValueError(f"method.name is missing; known: {', '.join(sorted(METHODS))}")
    return method_class(method["name"]).Config


def method_config(method: dict[str, Any]) -> MethodConfig:
    """Check the settings of a method and return them with every default filled in.

    Raises:
        ValueError: an unknown name, an unknown key or a value out of its range.
    """
    return config_class(method).model_validate(method)


def build_method(method: dict[str, Any], towers: dict[str, Any]) -> HashMethod:
    """Build a method from its settings; weights come from torch's global generator.

    The result's `spec` holds the settings with every default filled in, those of a tower's newer options
    excepted: building from it gives the same networks.

    Args:
        method: `name`, `code_length` and the method's own options.
        towers: `image` and `text`: each the `name` of a tower and its options.
    Raises:
        ValueError: an unknown name, an unknown key, a value out of its range, a width that is not set.
    """
    from cmh_models.towers import TowersConfig

    config = method_config(method)
    tower_config = TowersConfig.model_validate(towers)
    built = method_class(config.name)(config, tower_config)
    facts = {side: getattr(tower_config, side).facts() for side in TowersConfig.model_fields}
    built.spec = {"method": config.model_dump(mode="json"), "towers": facts}
    return built
