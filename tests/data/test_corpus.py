import logging
import os
import sysconfig
from pathlib import Path

import pytest

from sparsekern.data import find_files, read_documents, split_documents


def write(path: Path, content: str | bytes = "x = 1\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path.resolve()


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Path]:
    names = ["b.py", "a.py", "deep/er/c.py", "notes.txt", "odd[1].py"]
    return {name: write(tmp_path / name) for name in names}


class TestFindFiles:
    def test_folder_gives_python_files_at_any_depth(self, tmp_path: Path, tree: dict[str, Path]) -> None:
        expected = [tree[name] for name in ("a.py", "b.py", "deep/er/c.py", "odd[1].py")]
        assert find_files([tmp_path]) == expected

    def test_file_of_any_suffix(self, tree: dict[str, Path]) -> None:
        assert find_files([tree["notes.txt"]]) == [tree["notes.txt"]]

    def test_pattern_recurses_and_takes_files_only(self, tmp_path: Path, tree: dict[str, Path]) -> None:
        assert find_files([f"{tmp_path}/deep/**"]) == [tree["deep/er/c.py"]]
        assert find_files([f"{tmp_path}/?.py"]) == [tree["a.py"], tree["b.py"]]

    def test_existing_name_is_not_a_pattern(self, tree: dict[str, Path]) -> None:
        assert find_files([str(tree["odd[1].py"])]) == [tree["odd[1].py"]]

    def test_overlapping_sources_name_a_file_once(self, tmp_path: Path, tree: dict[str, Path]) -> None:
        link = tmp_path / "link.py"
        link.symlink_to(tree["a.py"])
        sources = [tmp_path, link, os.path.relpath(tree["a.py"]), f"{tmp_path}/*.py"]
        assert find_files(sources) == find_files([tmp_path])

    def test_default_is_the_standard_library_alone(self) -> None:
        files = find_files(None)
        root = Path(sysconfig.get_path("stdlib")).resolve()
        assert root / "dataclasses.py" in files
        assert not {"site-packages", "dist-packages"} & {part for path in files for part in path.parts}

    @pytest.mark.parametrize("source", ["missing.py", "*.rs", "empty"])
    def test_source_without_files(self, tmp_path: Path, tree: dict[str, Path], source: str) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match=r"sources: .*" + source.replace("*", r"\*")):
            find_files([tree["a.py"], tmp_path / source])

    def test_single_string_and_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="sources: expected a sequence"):
            find_files(str(tmp_path))
        with pytest.raises(ValueError, match="sources: expected at least one"):
            find_files([])


class TestReadDocuments:
    def test_leaves_out_what_is_empty_repeated_or_not_utf8(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        contents = ["z = 'é'\r\n", "", b"\xff\xfe", "a = 1\n", "z = 'é'\r\n"]
        files = [write(tmp_path / f"{i}.py", content) for i, content in enumerate(contents)]
        with caplog.at_level(logging.INFO):
            assert read_documents(files) == ["z = 'é'\r\n", "a = 1\n"]
        assert "left out 1 files" in caplog.text


class TestSplitDocuments:
    documents = tuple(f"value = {i}\n" for i in range(2000))

    def test_sides_are_disjoint_complete_and_of_the_asked_size(self) -> None:
        train, held_out = split_documents(self.documents, held_out=0.1)
        assert sorted(train + held_out) == sorted(self.documents)
        assert 150 < len(held_out) < 250  # 200 expected, standard deviation 13

    def test_depends_on_nothing_but_each_content(self) -> None:
        train, held_out = split_documents(self.documents)
        turned_train, turned_held_out = split_documents(self.documents[::-1])
        assert (turned_train[::-1], turned_held_out[::-1]) == (train, held_out)
        assert set(split_documents(self.documents[:1000])[1]) == set(held_out) & set(self.documents[:1000])

    def test_is_the_same_on_every_machine(self) -> None:
        _, held_out = split_documents(self.documents[:60])
        assert held_out == ["value = 4\n", "value = 20\n"]

    def test_more_held_out_keeps_what_was_held_out(self) -> None:
        assert set(split_documents(self.documents, 0.05)[1]) < set(split_documents(self.documents, 0.2)[1])

    def test_too_small(self) -> None:
        with pytest.raises(ValueError, match="the corpus is too small, 1 documents"):
            split_documents(["x = 1\n"])
        with pytest.raises(ValueError, match="documents: the corpus is too small, 0 documents"):
            split_documents([])

    @pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
    def test_fraction_out_of_range(self, fraction: float) -> None:
        with pytest.raises(ValueError, match="held_out: expected a fraction"):
            split_documents(self.documents, fraction)
