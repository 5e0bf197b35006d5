"""Bars -> CSV, in the form that `loader.load` reads back unchanged."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from gm_jax.errors import UserError
from gm_jax.market.bars import Bars
from gm_jax.market.calendar import NEW_YORK, closed


def write_csv(bars: Bars, path: str | Path) -> None:
    """Write bars as Date, Open, High, Low, Close, Volume; the file appears whole or not at all.

    Date is New York local time at the bar's open, `YYYY-MM-DD HH:MM:SS`; the exchange is shut in
    the hour that a change of clocks repeats. Bars of a market around the clock are stamped in UTC,
    with a `Z` behind. Numbers are written so that they read back exactly. A name ending in `.gz` is
    compressed. Sessions, holes and rolls are not written: the loader finds them again.

    Args:
        bars: what to write.
        path: where to; an existing file is replaced.

    Raises:
        UserError: the file cannot be written there.
    """
    path = Path(path)
    unfinished = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        _frame(bars).to_csv(unfinished, index=False, lineterminator="\n")
        os.replace(unfinished, path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"Cannot write {path}: {reason}. Does its folder exist?") from error
    finally:
        with suppress(OSError):  # where it could not be written it cannot be removed
            unfinished.unlink()


def _frame(bars: Bars) -> pd.DataFrame:
    utc = pd.DatetimeIndex(bars.time.astype("datetime64[ns]"), tz="UTC")
    around_the_clock = closed(bars.time).any()
    local = utc if around_the_clock else utc.tz_convert(NEW_YORK)
    stamps = np.datetime_as_string(local.tz_localize(None).to_numpy().astype("datetime64[s]"))
    date = np.char.replace(stamps, "T", " ")
    date = np.char.add(date, "Z") if around_the_clock else date
    whole = bool(np.all(bars.volume == np.rint(bars.volume)))
    volume = bars.volume.astype(np.int64) if whole else bars.volume
    return pd.DataFrame(
        {
            "Date": date,
            "Open": bars.open,
            "High": bars.high,
            "Low": bars.low,
            "Close": bars.close,
            "Volume": volume,
        }
    )
