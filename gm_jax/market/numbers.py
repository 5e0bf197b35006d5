"""Texts -> numbers: one decimal mark for the whole file, decided and never guessed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from gm_jax.errors import UserError


_BLANKS = " \u00a0\u202f"
_THOUSANDS = (  # 12,345.25 or 12.345.678; 12 345 or 12'345
    rf"[+-]?\d{{1,3}}(?:([.,'’{_BLANKS}])\d{{3}}(?:\1\d{{3}})*[.,]\d+|(?:['’{_BLANKS}]\d{{3}})+)"
)
_COMMA = r"[+-]?\d*,\d*"
_UNCLEAR = r"[+-]?\d{1,3},\d{3}"  # thousands or decimals?


def to_numbers(columns: Mapping[str, pd.Series]) -> dict[str, np.ndarray]:
    """Read columns of numbers, NaN where a text is none.

    The decimal mark is a point, or a comma in the whole file.

    Args:
        columns: by name, [T] numbers or texts each, all with one index.

    Returns:
        [T] f64 each.

    Raises:
        UserError: numbers carry thousands separators, or their decimal marks differ.
    """
    texts = {
        name: column.astype(str).str.strip()
        for name, column in columns.items()
        if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column)
    }
    numbers = {name: _parsed(texts.get(name, column)) for name, column in columns.items()}
    odd = [text[np.isnan(numbers[name])] for name, text in texts.items()]
    if odd and _decimal_comma(pd.concat(odd), numbers):
        points = {name: text.str.replace(",", ".", regex=False) for name, text in texts.items()}
        numbers |= {name: _parsed(text) for name, text in points.items()}
    return numbers


def _parsed(column: pd.Series) -> np.ndarray:
    return pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)


def _decimal_comma(odd: pd.Series, numbers: Mapping[str, np.ndarray]) -> bool:
    """Return whether the decimal mark is a comma.

    Args:
        odd: the texts that are no numbers when a point is the mark.
        numbers: what all columns are then.
    """
    thousands, comma = (odd[odd.str.fullmatch(form)] for form in (_THOUSANDS, _COMMA))
    if thousands.empty and comma.empty:
        return False
    point = any((np.abs(np.modf(column)[0]) > 0).any() for column in numbers.values())
    if not thousands.empty or point or comma.str.fullmatch(_UNCLEAR).all():
        first = (comma if thousands.empty else thousands).sort_index(kind="stable")
        raise UserError(
            f"{odd.index.name} {first.index[0]} has the number {first.iloc[0]!r}: a thousands "
            "separator, or a decimal mark that not all numbers have. Expected 12345.25, or "
            "12345,25 in the whole file: export it without thousands separators."
        )
    return True
