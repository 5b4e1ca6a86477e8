"""How commands show tables and write files."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["check_output", "check_place", "format_table", "number_of", "tell_failures"]


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Align columns with spaces: text to the left, numbers to the right.

    Example:
        >>> print(format_table(["name", "MB"], [["base", 361.5], ["large", 1245.7]]))
        name       MB
        base    361.5
        large  1245.7
    """
    cells = [list(header), *[[_text(value) for value in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    is_number = [
        bool(rows) and all(isinstance(row[i], int | float | None) for row in rows)
        for i in range(len(header))
    ]
    lines = []
    for row in cells:
        padded = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, is_number, strict=True)
        )
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def number_of(number: int, noun: str) -> str:
    """Say how many there are.

    Example:
        >>> number_of(1, "file"), number_of(1200, "file")
        ('1 file', '1,200 files')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def check_output(path: str) -> Path:
    """Find before the work that its result can be written.

    Raises:
        OSError: If ``path`` is a folder, or its folder cannot be made.
    """
    output = Path(path)
    if output.is_dir():
        raise IsADirectoryError(f"{path} is a folder; the output is one file: name it.")
    output.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(output.parent, os.W_OK):
        raise PermissionError(f"Nothing can be written to the folder {output.parent}.")
    return output


def check_place(path: str) -> Path:
    """Find before the work that a folder, or a file, can be made at this place, and make nothing yet.

    Raises:
        OSError: If the nearest folder that is there cannot be written to, or is a file.
    """
    output = Path(path)
    above = output if output.is_dir() else output.parent
    while not above.exists() and above != above.parent:
        above = above.parent
    if not above.is_dir():
        raise NotADirectoryError(f"{path} cannot be made: {above} is a file, not a folder.")
    if not os.access(above, os.W_OK):
        raise PermissionError(f"Nothing can be written to the folder {above}.")
    return output


def tell_failures(failures: "pd.DataFrame", where: str) -> None:
    """Say on standard error how many files could not be read, and the first of them.

    Args:
        failures: ``file`` and ``reason``, at least one row.
        where: The file that lists them all.
    """
    num_files = failures["file"].nunique()
    first = failures.iloc[0]
    print(
        f"{number_of(num_files, 'file')} could not be read, or not all of it; {where} says why. "
        f"The first: {first['file']}: {first['reason']}",
        file=sys.stderr,
    )


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1 else str(value)
