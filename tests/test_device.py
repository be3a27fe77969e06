"""Training on a device: numbers that are read together, runs that move, and what is refused.

With a GPU everything here runs on it too (``-k cuda``).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import corpus, logged, losses, names, tensors, tiny
from torch import Tensor

from sparsekern import checkpoint, cli
from sparsekern.device import find_device, repeatable
from sparsekern.models import GPT
from sparsekern.optim import SparseAdamW, param_groups
from sparsekern.run_folder import load_model, read_metrics
from sparsekern.train import Trainer, TrainingError

ON_A_GPU = torch.cuda.is_available()


@pytest.fixture(params=["cpu", "cuda"] if ON_A_GPU else ["cpu"])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with corpus(tmp_path_factory.mktemp("corpus")) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparsekern.train.plot_losses", lambda folder: None)  # slower than all the rest
        yield folder


@pytest.fixture
def new(sources: Path, tmp_path: Path, device: str) -> Callable[..., Trainer]:
    """Makes a run in a folder, whose losses are read every ``reading`` steps."""

    def make(name: str = "run", *, reading: int = 5, **changes: object) -> Trainer:
        trainer = Trainer(tiny(sources, **changes), tmp_path / name, device=device)
        trainer.steps_per_read = reading
        return trainer

    return make


# ---- numbers that are read together


def test_reading_more_rarely_changes_no_number(new: Callable[..., Trainer], tmp_path: Path) -> None:
    every, rarely = new("every", reading=1), new("rarely", reading=100)
    assert losses(every.run()) == losses(rarely.run()) == logged(tmp_path / "rarely")
    for name in ("last.safetensors", "best.safetensors"):
        assert tensors(tmp_path / "every" / name) == tensors(tmp_path / "rarely" / name)


def test_steps_come_at_readings_evaluations_and_checkpoints(new: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer, come = new(reading=2, eval_every=7, save_every=5), []
    for step in trainer.run():
        come.append((step.step, trainer.step))
        assert len(read_metrics(tmp_path / "run")) == trainer.step  # logged before they are given
    until = {1: 2, 2: 2, 3: 4, 4: 4, 5: 5, 6: 7, 7: 7, 8: 9, 9: 9, 10: 10, 11: 12, 12: 12}
    assert come == list(until.items())


def test_steps_read_together_share_a_speed(new: Callable[..., Trainer]) -> None:
    speeds = [step.tokens_per_second for step in new(reading=12, eval_every=12, save_every=12).run()]
    assert len(speeds) == 12
    assert len(set(speeds)) == 1
    assert 0 < speeds[0] < math.inf


@pytest.mark.parametrize("stop", [1, 4])
def test_a_stopped_run_goes_on(new: Callable[..., Trainer], tmp_path: Path, device: str, stop: int) -> None:
    whole = losses(new("whole").run())
    trainer, steps = new(save_every=100), []
    for step in trainer.run():
        steps.append(step)
        trainer.stop_requested = step.step >= stop
    assert checkpoint.read_meta(tmp_path / "run" / "last.safetensors")["step"] == len(steps) < 12
    steps += Trainer.resume(tmp_path / "run", device=device).run()
    assert losses(steps) == whole == logged(tmp_path / "run")
    assert tensors(tmp_path / "run" / "last.safetensors") == tensors(tmp_path / "whole" / "last.safetensors")


def test_a_stop_between_two_readings_loses_no_step(new: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer = new(reading=100, eval_every=100, save_every=100)
    trainer.model.register_forward_hook(lambda *_: setattr(trainer, "stop_requested", trainer.step == 3))
    assert [step.step for step in trainer.run()] == [1, 2, 3, 4]
    assert names(tmp_path / "run") >= {"last.safetensors"}


# ---- what is not finite is found at the next reading, before anything is saved


def spoil_gradient(trainer: Trainer) -> None:
    trainer.model.blocks[0].mlp.c_fc.bias.register_hook(lambda grad: grad * torch.nan)


def overflow(trainer: Trainer) -> None:
    with torch.no_grad():
        trainer.model.ln_f.weight.fill_(3e38)


@pytest.mark.parametrize(
    ("spoil", "found"),
    [(spoil_gradient, "loss [0-9.]+, root mean square of the gradient nan"), (overflow, "loss (nan|inf), .* gradient")],
)
def test_what_is_not_finite(
    new: Callable[..., Trainer], tmp_path: Path, device: str, spoil: Callable[[Trainer], None], found: str
) -> None:
    whole = losses(new("whole").run())
    trainer = new(reading=100, eval_every=5, save_every=3)

    def spoil_the_seventh(*_: object) -> None:
        if trainer.step == 6:
            spoil(trainer)
            trainer.optimizer.step = only_look  # type: ignore[method-assign]  # on a CPU it would refuse

    def only_look() -> None:
        trainer.optimizer.gradient_rms = trainer.optimizer._gradient_rms()

    trainer.model.register_forward_pre_hook(spoil_the_seventh)
    with pytest.raises(TrainingError, match=f"step 7: {found}"):
        list(trainer.run())
    assert checkpoint.read_meta(tmp_path / "run" / "last.safetensors")["step"] == 6
    assert logged(tmp_path / "run") == whole[:6]
    assert losses(Trainer.resume(tmp_path / "run", device=device).run()) == whole[6:]


def test_an_error_that_a_gpu_has_noted_ends_the_run(
    new: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noted() -> None:
        raise RuntimeError("weight must not contain NaN")

    trainer = new()
    run = trainer.run()
    next(run)
    monkeypatch.setattr("sparsekern.train.check_status", noted)
    with pytest.raises(TrainingError, match="step 5: weight must not contain NaN"):
        list(run)
    assert checkpoint.read_meta(tmp_path / "run" / "last.safetensors")["step"] == 3


# ---- bf16


@pytest.mark.parametrize("mode", ["exact", "sparse"])
def test_bf16_trains_as_well(sources: Path, tmp_path: Path, mode: str) -> None:
    runs = {
        dtype: list(Trainer(tiny(sources, dtype=dtype, mode=mode), tmp_path / dtype).run()) for dtype in ("f32", "bf16")
    }
    assert runs["bf16"][0].loss == pytest.approx(runs["f32"][0].loss, rel=1e-2)
    assert runs["bf16"][0].loss != runs["f32"][0].loss
    assert runs["bf16"][-1].held_out < runs["f32"][-1].held_out + 0.1
    assert [step.nnz for step in runs["bf16"]] == [step.nnz for step in runs["f32"]]


def test_dtypes_have_names(sources: Path) -> None:
    with pytest.raises(ValueError, match="dtype must be one of f32, bf16, got 'fp8'"):
        tiny(sources, dtype="fp8")


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_autocast_is_around_the_forward_pass_alone(new: Callable[..., Trainer], device: str, dtype: str) -> None:
    trainer = new(reading=1, eval_every=1)
    trainer.config = replace(trainer.config, dtype=dtype)  # past the check: the loss below is computed in float32
    seen: dict[str, set[torch.dtype | None]] = {"loss": set(), "backward": set(), "step": set()}

    def look(where: str) -> None:
        on = torch.is_autocast_enabled(device)
        seen[where].add(torch.get_autocast_dtype(device) if on else None)

    loss, step = trainer.model.loss, trainer.optimizer.step

    def look_and_compute(ids: Tensor, targets: Tensor) -> Tensor:
        look("loss")
        with torch.autocast(device, enabled=False):
            return loss(ids, targets)

    def look_and_step() -> None:
        look("step")
        step()

    trainer.model.loss = look_and_compute  # type: ignore[method-assign]
    trainer.optimizer.step = look_and_step  # type: ignore[method-assign]
    trainer.model.ln_f.weight.register_hook(lambda grad: look("backward"))
    next(trainer.run())
    inside = torch.bfloat16 if dtype == "bf16" else None
    assert seen == {"loss": {inside}, "backward": {None}, "step": {None}}


if ON_A_GPU:

    @pytest.mark.parametrize("dtype", ["f32", "bf16"])
    def test_cuda_trains_as_well_as_a_cpu(sources: Path, tmp_path: Path, dtype: str) -> None:
        on_cpu = list(Trainer(tiny(sources), tmp_path / "cpu").run())
        on_gpu = list(Trainer(tiny(sources, dtype=dtype), tmp_path / "cuda", device="cuda").run())
        assert on_gpu[0].loss == pytest.approx(on_cpu[0].loss, rel=1e-5 if dtype == "f32" else 1e-2)
        assert on_gpu[-1].held_out == pytest.approx(on_cpu[-1].held_out, abs=0.1)
        assert [step.nnz for step in on_gpu] == [step.nnz for step in on_cpu]


# ---- runs that move


def test_a_checkpoint_goes_where_the_model_is(
    new: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meta device stands for another one."""
    trainer = new(mode="exact")
    list(trainer.run())
    model = GPT(trainer.config.model).to("meta")
    with pytest.warns(UserWarning, match="meta"):  # torch: nothing is copied there
        checkpoint.load(tmp_path / "run" / "last.safetensors", model)
    monkeypatch.setattr(SparseAdamW, "prepare", lambda self: None)  # it would read a number there
    optimizer = SparseAdamW(param_groups(model), lr=0.1)
    checkpoint.load_optimizer(tmp_path / "run" / "last.safetensors", model, optimizer)
    assert {t.device.type for t in model.state_dict().values()} == {"meta"}
    moments = [t for state in optimizer.state.values() for t in state.values()]
    assert len(moments) == 3 * len(list(model.parameters()))
    assert {t.device.type for t in moments} == {"meta"}


def test_a_run_goes_on_elsewhere_with_a_warning(
    new: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Trainer._hardware
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_hardware", lambda self: {"device": "NVIDIA H100"})
        trainer = new(save_every=3)
        for step in trainer.run():
            if step.step == 3:
                break
    now = here(trainer)["device"]
    with pytest.warns(UserWarning, match=f"the run used device=NVIDIA H100, now it is {now}") as caught:
        resumed = Trainer.resume(tmp_path / "run", device=trainer.device.type)
    assert len(caught) == 1
    assert [step.step for step in resumed.run()] == list(range(4, 13))


def test_the_device_is_not_part_of_the_configuration(new: Callable[..., Trainer], tmp_path: Path, device: str) -> None:
    list(new().run())
    assert "device" not in (tmp_path / "run" / "config.json").read_text()
    assert load_model(tmp_path / "run").wte.weight.device.type == "cpu"
    assert load_model(tmp_path / "run", device).wte.weight.device.type == device
    text = cli.complete(tmp_path / "run", "def alpha", 5, temperature=0.5, seed=0, device=device)
    assert text.startswith("def alpha")


# ---- finding a device


def test_find_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_device("cpu") == torch.device("cpu")
    for count, name in ((1, "cuda"), (2, "cuda:1")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert find_device(name) == torch.device(name)


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("cuda", 0, "--device cuda: torch sees no CUDA device$"),
        ("cuda:1", 1, "--device cuda:1: torch sees 1 CUDA device$"),
        ("cuda:2", 2, "--device cuda:2: torch sees 2 CUDA devices$"),
        ("mps", 0, "--device must be cpu, cuda or cuda:N, got 'mps'$"),
        ("gpu", 0, "--device must be cpu, cuda or cuda:N, got 'gpu'$"),
    ],
)
def test_find_device_refuses(monkeypatch: pytest.MonkeyPatch, name: str, count: int, message: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(ValueError, match=message):
        find_device(name)


def test_repeatable_asks_torch_on_a_gpu_and_takes_it_back() -> None:
    def settings() -> tuple[bool, bool]:
        return torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory

    before = settings()
    assert before == (False, True)
    with repeatable(torch.device("cpu")):
        assert settings() == before
    with repeatable(torch.device("cuda")):
        assert settings() == (True, False)
    assert settings() == before
