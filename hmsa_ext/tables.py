"""Tables as text, for everything that the commands print in columns."""

from __future__ import annotations

from collections.abc import Collection, Sequence

GAP = "  "


def text_table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: Collection[int] = (0,),
    rules: Collection[int] = (),
) -> str:
    """Lines of columns, as wide as their widest cell, under their heads and a rule.

    heads: one for each column.
    rows: the cells of each row, as many as there are heads.
    left: numbers of the columns that are aligned to the left; the others are aligned to the right.
    rules: numbers of the rows above which another rule is drawn.

    >>> print(text_table(["class", "IoU"], [["road", "97.1"], ["car", "8.0"]]))
    class   IoU
    -----------
    road   97.1
    car     8.0
    """
    widths = [max(len(row[c]) for row in (heads, *rows)) for c in range(len(heads))]
    rule = "-" * (sum(widths) + len(GAP) * (len(widths) - 1))

    def line(cells: Sequence[str]) -> str:
        padded = (
            f"{cell:<{width}}" if c in left else f"{cell:>{width}}"
            for c, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return GAP.join(padded).rstrip()

    lines = [line(heads), rule]
    for number, row in enumerate(rows):
        if number in rules:
            lines.append(rule)
        lines.append(line(row))
    return "\n".join(lines)
