"""What the command line printed, and how it ended."""

from collections.abc import Callable
from typing import NamedTuple


class Result(NamedTuple):
    code: int
    out: str  # whatever was printed

    @property
    def text(self) -> str:
        """The same, with every run of white space made one space."""
        return " ".join(self.out.split())


Command = Callable[..., Result]


def refused(result: Result, message: str) -> None:
    assert result.code == 2
    assert f"sparsekern: {message}" in result.text
    assert "Traceback" not in result.text
