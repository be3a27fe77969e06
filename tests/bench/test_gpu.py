"""``make gpu`` without a GPU: the steps, their limits and records, the benchmarks' code on small cases."""

import csv
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from sparsekern.bench import cases
from sparsekern.bench.measure import Measured, Work
from sparsekern.bench.timer import Timing

ROOT = Path(__file__).parent.parent.parent
CPU = torch.device("cpu")


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


gpu = load(ROOT / "benchmarks" / "gpu.py")
PASS, FAIL = (gpu.PYTHON, "-c", "print('fine')"), (gpu.PYTHON, "-c", "raise SystemExit('broken')")
STOP = (gpu.PYTHON, "-c", f"raise SystemExit({gpu.STOPPED})")
SLOW = (gpu.PYTHON, "-c", "import time; time.sleep(60)")


def step(name: str, *commands: tuple[str, ...], minutes: float = 1.0, **more: object) -> gpu.Step:
    return gpu.Step(name, f"what {name} does", minutes, commands, **more)


@pytest.fixture
def run(tmp_path: Path) -> gpu.Run:
    return gpu.Run(CPU, tiny=True, results=tmp_path)


@pytest.fixture
def with_steps(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes these the steps."""

    def use(*steps: gpu.Step) -> None:
        monkeypatch.setattr(gpu, "STEPS", steps)
        monkeypatch.setattr(gpu.Run, "steps", lambda self: list(steps))

    return use


# ---- steps


@pytest.mark.parametrize(
    ("commands", "minutes", "seconds", "how"),
    [
        ((PASS,), 1, 60, "passed in"),
        ((PASS, FAIL), 1, 60, "failed after"),
        ((STOP,), 1, 60, "stopped after"),
        ((SLOW,), 0.005, 0.3, "timed out after"),
        ((SLOW,), 1, 0.3, "stopped after"),  # by the budget
    ],
    ids=["pass", "fail", "stop", "slow", "out-of-budget"],
)
def test_how_a_step_ends(
    run: gpu.Run, commands: tuple[tuple[str, ...], ...], minutes: float, seconds: float, how: str
) -> None:
    started = time.monotonic()
    assert gpu.run_step(run, step("it", *commands, minutes=minutes), seconds).startswith(how)
    assert time.monotonic() - started < 30
    assert (run.folder / "it.log").read_text().startswith(f"$ {gpu.PYTHON} -c ")


def test_what_is_missing_is_said(run: gpu.Run) -> None:
    missing = step("it", PASS, needs=("pytest", "no_such_module", "no-such-program"))
    assert gpu.run_step(run, missing, 60) == "not run: no_such_module, no-such-program not found"


def test_a_step_that_is_killed_leaves_nothing_running(run: gpu.Run, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    child = f"import time, pathlib; time.sleep(2); pathlib.Path({str(alive)!r}).touch()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    gpu.run_step(run, step("it", (gpu.PYTHON, "-c", parent)), 1)
    time.sleep(2.5)
    assert not alive.exists()


def test_failures_do_not_stop_the_others(
    run: gpu.Run, with_steps: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with_steps(step("a", FAIL), step("b", PASS), step("c", PASS, needs=("no_such_module",)))
    assert gpu.run_steps(run, [], 1000) == 1
    out = capsys.readouterr().out
    assert "    broken\n" in out
    table = out[out.index("step       result") :].splitlines()[1:]
    assert [line.split(maxsplit=1)[0] for line in table] == ["a", "b", "c"]
    assert [line.split(maxsplit=1)[1].split(" in ")[0].split(" after ")[0] for line in table] == [
        "failed",
        "passed",
        "not run: no_such_module not found",
    ]


def test_what_passed_is_not_run_again(
    run: gpu.Run, with_steps: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def fake(run: gpu.Run, step: gpu.Step, seconds: float) -> str:
        ran.append(step.name)
        run.folder.mkdir(exist_ok=True)
        (run.folder / f"{step.name}.log").write_text("")
        return "failed after 1 s" if step.name == "bad" else "passed in 1 s"

    monkeypatch.setattr(gpu, "run_step", fake)
    with_steps(step("good"), step("bad"), step("quick", every_time=True))
    for again, expected in ((["good", "bad", "quick"], 1), (["bad", "quick"], 1)):
        ran.clear()
        assert gpu.run_steps(run, [], 1000) == expected
        assert ran == again
    ran.clear()
    gpu.run_steps(run, ["good"], 1000)
    assert ran == ["good"]
    ran.clear()
    monkeypatch.setattr(gpu, "source_digest", lambda: "another")  # a source has changed
    gpu.run_steps(run, [], 1000)
    assert ran == ["good", "bad", "quick"]
    assert json.loads((run.folder / "state.json").read_text())["source"] == "another"


def test_the_budget(run: gpu.Run, with_steps: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    now, given = [0.0], {}

    def fake(run: gpu.Run, step: gpu.Step, seconds: float) -> str:
        given[step.name] = seconds
        now[0] += 50
        return "passed in 50 s"

    monkeypatch.setattr(gpu, "run_step", fake)
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with_steps(*(step(name) for name in ("a", "b", "c", "report")))
    assert gpu.run_steps(run, [], 100) == 0
    assert given == {"a": 60, "b": 50, "report": 60}  # whatever happens, there is a report
    assert gpu.summary(run)["c"] == "not run"


def test_the_digest_sees_every_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    for name in ("CMakeLists.txt", "setup.py", "csrc/cuda/a.cu", "sparsekern/ops/a.py", "sparsekern/_ops.so"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    digest = gpu.source_digest.__wrapped__
    before = digest()
    (tmp_path / "sparsekern/_ops.so").write_text("2")
    assert digest() == before
    for name in ("CMakeLists.txt", "csrc/cuda/a.cu", "sparsekern/ops/a.py"):
        (tmp_path / name).write_text("2")
        assert digest() != before
        before = digest()


def test_steps_fit_into_their_limits() -> None:
    assert all(step.minutes <= 8 for step in gpu.STEPS)
    assert [step.name for step in gpu.STEPS][:3] == ["build", "tests", "goals"]
    for step_ in gpu.STEPS:
        assert step_.commands or step_.name in (*cases.GROUPS, "report")
        for part in (part for command in step_.commands for part in command):
            assert not part.startswith("tests/") or (ROOT / part).exists(), part


# ---- benchmarks


def rows(run: gpu.Run) -> list[dict[str, str]]:
    return list(csv.DictReader(run.table.open()))


def test_benchmarks_and_report(run: gpu.Run, capsys: pytest.CaptureFixture[str]) -> None:
    for group in gpu.GROUPS:
        assert gpu.measure_group(run, group, time.time() + 1000) == 0
    assert {row["op"] for row in rows(run)} == {case.op for group in gpu.GROUPS for case in cases.cases_of(group)}
    for row in rows(run):
        assert row["source"] == gpu.source_digest()
        assert row["command"].startswith("python benchmarks/gpu.py --only ")
        assert float(row["p20_ms"]) <= float(row["median_ms"]) <= float(row["p80_ms"])
    linear = [
        row
        for row in rows(run)
        if (row["op"], row["density"], row["contender"]) == ("csr_linear", "0.02", "sparsekern cpu")
    ]
    assert [row["clock"] for row in linear] == ["kernel", "cold", "op"]
    assert all(float(row[f"vs_{other}"]) > 0 for row in linear for other in ("dense", "torch", "copy", "limit"))
    before = len(rows(run))
    for group in gpu.GROUPS:
        assert gpu.measure_group(run, group, 0) == 0  # every case has its rows
    assert len(rows(run)) == before
    assert gpu.write_report(run) == 0
    assert "## adamw_project_" in (run.results / "cpu_tiny.md").read_text()
    assert (run.results / "cpu_tiny.png").exists()


def found(timings: dict[str, Timing], failed: dict[str, str]) -> Measured:
    return Measured({"cold": timings}, failed, "dense", Work(), Work())


def test_a_benchmark_stops_between_two_cases(run: gpu.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(gpu, "time", SimpleNamespace(time=lambda: now.__setitem__(0, now[0] + 1) or now[0]))
    assert gpu.measure_group(run, "goals", 2) == gpu.STOPPED
    assert len({(row["op"], row["density"]) for row in rows(run)}) == 2
    assert gpu.measure_group(run, "goals", 1000) == 0
    assert len({(row["op"], row["density"]) for row in rows(run)}) == len(cases.cases_of("goals", tiny=True))


def test_a_wrong_result_fails_and_leaves_no_row(run: gpu.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*_: object, **__: object) -> Measured:
        return found({}, {"dense": "out of memory", "sparsekern cpu": "wrong by 1"})

    monkeypatch.setattr("sparsekern.bench.record.measure", measured)
    assert gpu.measure_group(run, "training", time.time() + 1000) == 1
    assert not run.table.exists()


def test_a_case_too_large_to_set_up_is_left_out(run: gpu.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*_: object, **__: object) -> Measured:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried")

    monkeypatch.setattr("sparsekern.bench.record.measure", measured)
    assert gpu.measure_group(run, "training", time.time() + 1000) == 0
    assert not run.table.exists()


def test_training_goes_on_to_smaller_batches_until_dense_fits(run: gpu.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def measured(build: object, case: cases.Case, *_: object, **__: object) -> Measured:
        sizes.append(case.tokens)
        ours = {"sparsekern cuda": Timing(1, 1, 1)}
        if case.tokens > 32768:
            return found(ours, {"dense": "CUDA out of memory. Tried to allocate"})
        return found({**ours, "dense": Timing(1, 1, 1)}, {})

    monkeypatch.setattr("sparsekern.bench.record.measure", measured)
    whole = gpu.Run(CPU, tiny=False, results=run.results)
    for _ in range(2):
        assert gpu.measure_group(whole, "training", time.time() + 1000) == 0
        assert sizes == [131072, 131072, 65536, 65536, 32768, 32768]  # in either mode


# ---- the command line


def test_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--dry-run", "--device", "cpu", "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "    csr_linear bf16 tokens=65536 8192x2048 density=0.400%\n" in out
    assert "    training step bf16 tokens=131072 2048x8 density=0.391%\n" in out
    assert "sweep      not run: time all shapes, densities and numbers of tokens, at most 8 min\n" in out
    assert len(out.splitlines()) == 4 + 4 + sum(len(cases.cases_of(group)) for group in gpu.GROUPS)
    assert list(tmp_path.iterdir()) == []


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert capsys.readouterr().err == "benchmarks/gpu.py: torch sees no CUDA device\n"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "find_nvcc", lambda: None)
    assert gpu.main([]) == 2
    assert "nvcc not found" in capsys.readouterr().err


# ---- the script for compute-sanitizer


def test_kernels_script_compares(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsekern.ops.backend import overridden

    kernels = load(ROOT / "tests" / "gpu" / "kernels.py")
    assert kernels.main("default") > 100
    shifted = {"csr_gather": lambda dense, crow, col: dense.flatten()[: col.numel()].clone()}
    monkeypatch.setattr(kernels, "running", lambda backend: overridden(shifted, "cpu"))
    with pytest.raises(AssertionError, match="off by"):
        kernels.main("default")
