"""Write the README's figure from the committed table: `python book/readme_figure.py`, after `lrkd study answer`."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import pandas as pd
from kit import answer, display

from lrkd.study import answer as study


def figure(table: pd.DataFrame) -> display.Shown:
    """The table of study `answer`, part `length` -> the first page's figure."""
    display.style()
    return display.show(answer.by_length(answer.gains(table)), "Gain over no distillation by length.", dpi=100)


def main() -> None:
    here = Path(__file__).resolve().parent
    (here / "readme-gains.webp").write_bytes(figure(study.read(here / "results", "length")).image)


if __name__ == "__main__":
    main()
