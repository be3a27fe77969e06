"""``python -m sparsekern``."""

from .cli import main

main()
