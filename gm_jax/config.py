"""Configuration: settings read from YAML and the command line, exactly or not at all."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from gm_jax.errors import UserError
from gm_jax.settings import INSTRUMENTS, Settings


Layer = tuple[Mapping[str, Any], str]  # settings whose values may still be text, and from where


def read_section(path: str | Path, system: str) -> Layer:
    """Return the section `system` of a YAML file.

    Raises:
        UserError: unreadable file, unknown section, one contract with another's money.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        document = yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"The config {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"The config {path} is not UTF-8 text.") from error
    except yaml.YAMLError as error:
        raise UserError(f"The config {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict) or not set(document) <= {"tactical", "strategic"}:
        found = ", ".join(map(str, document)) if isinstance(document, dict) else repr(document)
        raise UserError(
            f"The config {path} has {found or 'nothing'} at the top, expected the sections "
            "tactical and strategic."
        )
    section = document.get(system)
    if not isinstance(section, dict):
        raise UserError(f"The config {path} has no section `{system}`.")
    where = f"{path}, section {system}"
    _require_own_money(section, where)
    return section, where


def _require_own_money(section: Mapping[str, Any], where: str) -> None:
    """Refuse a contract with another's money: a copied section in which only the name is new."""
    name = section.get("instrument")
    if not (isinstance(name, str) and name in INSTRUMENTS):
        return
    for other, money in INSTRUMENTS.items():
        for key, value in money.items():
            if _real(section.get(key)) == value != INSTRUMENTS[name][key]:
                raise UserError(
                    f"`instrument` is {name}, but `{key}` is {value:g}, that of {other} ({where}). "
                    "Leave point_value_usd and commission_usd out: naming the instrument sets "
                    "both. Other money goes by --set."
                )


def change(base: Settings, changes: Mapping[str, Any], where: str) -> Settings:
    """Return `base` with changes whose values may still be text, see `merge`."""
    return merge(base, [(changes, where)])


def merge(base: Settings, layers: Iterable[Layer]) -> Settings:
    """Return `base` with layers of changes, later ones winning; what they come to is checked.

    Raises:
        UserError: unknown key (with the nearest known one), a value of the wrong type, or settings
            that do not go together.
    """
    market = dict(base.market_parameters)
    typed: dict[str, Any] = {}
    for changes, where in layers:
        typed |= _typed_layer(changes, where, market)
    return base.replace(**typed, market_parameters=market)


def _typed_layer(
    changes: Mapping[str, Any], where: str, market: dict[str, float]
) -> dict[str, Any]:
    """Return a layer with typed values; parameters of the market go into `market`."""
    hints = get_type_hints(Settings)
    typed: dict[str, Any] = {}
    for key, value in changes.items():
        key = str(key)
        if key.startswith("market."):
            market[key.removeprefix("market.")] = _typed(float, value, key, where)
        elif key == "market_parameters" and isinstance(value, Mapping):
            market |= {str(k): _typed(float, v, f"market.{k}", where) for k, v in value.items()}
        elif key == "market_parameters":
            raise UserError(f"`{key}` is {value!r}, expected a mapping ({where}).")
        elif key in hints:
            typed[key] = _typed(hints[key], value, key, where)
        else:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f" Did you mean `{near[0]}`?" if near else f" Known: {', '.join(hints)}."
            raise UserError(f"Unknown setting `{key}` ({where}).{hint}")
    return INSTRUMENTS.get(typed.get("instrument", ""), {}) | typed


def parse_assignments(assignments: Sequence[str]) -> dict[str, str]:
    """Split `key=value` arguments of the command line."""
    pairs = [a.partition("=") for a in assignments]
    for key, equals, value in pairs:
        if not (key and equals and value):
            raise UserError(f"--set {key}{equals}{value}: expected key=value, e.g. lr_actor=1e-4.")
    return {key.strip(): value.strip() for key, _, value in pairs}


def _typed(kind: Any, value: Any, key: str, where: str) -> Any:
    """Convert text or a YAML value to the type of its setting, exactly or not at all."""
    if get_origin(kind) is tuple:
        items = _items(value) if isinstance(value, str) else value
        if isinstance(items, (list, tuple)):
            return tuple(_typed(get_args(kind)[0], x, key, where) for x in items)
    elif kind is bool and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    elif kind is str and isinstance(value, str):
        return value
    elif kind is int and (whole := _whole(value)) is not None:
        return whole
    elif kind is float and (real := _real(value)) is not None:
        return real
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
    wanted = names.get(kind, "a list such as [64,64]")
    raise UserError(f"`{key}` is {value!r}, expected {wanted} ({where}).")


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.strip("[]() ").split(",") if item.strip()]


def _whole(value: Any) -> int | None:
    """Read a whole number, exactly; 1e3 is one."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]+", value):
        return int(value)
    if isinstance(value, int):
        return None if isinstance(value, bool) else value
    real = _real(value)
    return int(real) if real is not None and real == int(real) else None


def _real(value: Any) -> float | None:
    """Read a finite number; YAML 1.1 takes 3e-4 for text, so text may be one."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def number(key: str, text: str) -> float:
    """Read one number of the command line.

    Raises:
        UserError: it is none.
    """
    value: float = _typed(float, text, key, "--set")
    return value
