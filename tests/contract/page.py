"""A part of a page that is written by a module of the tests, between two marks."""

from pathlib import Path
from typing import Final, NamedTuple

DOCS: Final = Path(__file__).parents[2] / "docs"
END: Final = "<!-- up to here -->"


class Page(NamedTuple):
    """A page of the reference, and the module that writes into it."""

    name: str
    module: str

    @property
    def path(self) -> Path:
        return DOCS / "reference" / self.name

    def split(self) -> tuple[str, str, str]:
        """Before, in and after the marks. Raises ValueError if they are not there."""
        begin = f"<!-- from here on: written by `python -m {self.module}` -->\n"
        before, found, rest = self.path.read_text().partition(begin)
        inside, ended, after = rest.partition(f"\n{END}")
        if not found or not ended:
            raise ValueError(f"{self.path} has no place for what {self.module} writes")
        return before + found, inside, ended + after

    def write(self, text: str) -> None:
        """Put it between the marks. Raises ValueError if they are not there."""
        before, _, after = self.split()
        self.path.write_text(before + text + after)
