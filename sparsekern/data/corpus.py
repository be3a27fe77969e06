"""From files on disk to two lists of documents, one to train on and one held out."""

import glob
import hashlib
import logging
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

from .simple_python import simple_programs

logger = logging.getLogger(__name__)

SIMPLE_PYTHON = "simple-python"  # a source that is no file: programs made up by sparsekern.data.simple_python
_SIMPLE_PROGRAMS = 12_000  # some five million tokens


def load_documents(sources: Sequence[str | Path] | None) -> list[str]:
    """The contents of what `find_files` finds, and made-up programs where `SIMPLE_PYTHON` is among the sources.

    Raises:
        ValueError, OSError: as `find_files` and `read_documents` do.
    """
    if sources is None or isinstance(sources, str | Path) or SIMPLE_PYTHON not in sources:
        return read_documents(find_files(sources))
    others = [source for source in sources if source != SIMPLE_PYTHON]
    return (read_documents(find_files(others)) if others else []) + simple_programs(_SIMPLE_PROGRAMS)


def find_files(sources: Sequence[str | Path] | None) -> list[Path]:
    """Lists the files of a corpus, sorted, unique and resolved.

    Args:
        sources: files, folders (every `*.py` below them) and glob patterns of files (`**` recurses);
            None means the standard library of the running Python, without the packages installed into it.

    Raises:
        ValueError: a source matches no file, or there is no source.
    """
    if sources is None:
        return _standard_library()
    if isinstance(sources, str | Path):
        raise ValueError(f"sources: expected a sequence of paths and patterns, got the single {sources!r}")
    if not sources:
        raise ValueError("sources: expected at least one path or pattern, got none")
    return sorted({path.resolve() for source in sources for path in _matches(source)})


def read_documents(files: Iterable[Path]) -> list[str]:
    """Reads each file as one UTF-8 document, newlines untouched, in the order given.

    Files that are not valid UTF-8 or empty are left out, and so are repetitions of a content.

    Raises:
        OSError: a file cannot be read.
    """
    contents = dict.fromkeys(path.read_bytes() for path in files)  # a dict keeps the order, a set would not
    contents.pop(b"", None)
    documents = [text for content in contents if (text := _decode(content)) is not None]
    if len(documents) < len(contents):
        logger.info("left out %d files that are not valid UTF-8", len(contents) - len(documents))
    return documents


def split_documents(documents: Sequence[str], held_out: float = 0.05) -> tuple[list[str], list[str]]:
    """Splits documents into (train, held out), each in the order given.

    The content of a document alone decides its side: neither paths, order nor machine matter, and a document
    stays on its side when the corpus grows.

    Args:
        documents: the contents of the files.
        held_out: the fraction to hold out, met on average, strictly between 0 and 1.

    Raises:
        ValueError: `held_out` is out of range, or one side would be empty.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out: expected a fraction strictly between 0 and 1, got {held_out}")
    sides: tuple[list[str], list[str]] = ([], [])
    for document in documents:
        position = int.from_bytes(content_digest(document)[:8], "big") / 2**64
        sides[position < held_out].append(document)
    if not all(sides):
        raise ValueError(
            f"documents: the corpus is too small, {len(documents)} documents split into {len(sides[0])} "
            f"to train on and {len(sides[1])} to hold out; expected at least one of each"
        )
    return sides


def content_digest(document: str) -> bytes:
    """Names a document by its content, the same on every machine: 16 bytes."""
    return hashlib.blake2b(document.encode(), digest_size=16).digest()


def _standard_library() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    installed = {"site-packages", "dist-packages"}
    return sorted(
        {path.resolve() for path in _python_files(root) if installed.isdisjoint(path.relative_to(root).parts)}
    )


def _matches(source: str | Path) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        found = _python_files(path)
    elif path.is_file():  # before the pattern: a real name may hold brackets
        found = [path]
    else:
        found = [match for name in glob.glob(str(source), recursive=True) if (match := Path(name)).is_file()]
    if not found:
        raise ValueError(f"sources: expected a file, a folder with *.py files or a pattern, {str(source)!r} is none")
    return found


def _python_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.py") if path.is_file()]


def _decode(content: bytes) -> str | None:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None
