"""csrc/emu, with kernels of its own (tests/emulated): right ones run right, and mistakes are found."""

import ctypes
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import emulator
import pytest
import torch
from torch import Tensor

RACE_SEEDS = range(1, 6)


@cache
def library() -> ctypes.CDLL:
    return ctypes.CDLL(str(emulator.build("emulated.so")))


def call(name: str, *arguments: Tensor | int | str) -> None:
    """Runs an entry of tests/emulated; what the emulator throws is a RuntimeError."""

    def converted(argument: Any) -> Any:
        if isinstance(argument, Tensor):
            assert argument.is_contiguous()
            return ctypes.c_void_p(argument.data_ptr())
        return ctypes.c_char_p(argument.encode()) if isinstance(argument, str) else ctypes.c_int64(argument)

    function = getattr(library(), f"run_{name}")
    function.restype = ctypes.c_char_p
    error = function(*map(converted, arguments))
    if error is not None:
        raise RuntimeError(error.decode())


SetSeed = Callable[[int], None]


@pytest.fixture
def set_seed(monkeypatch: pytest.MonkeyPatch) -> SetSeed:
    return lambda seed: monkeypatch.setenv("SPARSEKERN_EMU_SEED", str(seed))


@pytest.fixture(params=[0, 1, 2, 3])
def seed(request: pytest.FixtureRequest, set_seed: SetSeed) -> int:
    """Runs the test in the plain order of threads and in some others."""
    set_seed(request.param)
    return request.param


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def random_ints(n: int, low: int, high: int) -> Tensor:
    return torch.randint(low, high, (n,), dtype=torch.int32, generator=torch.Generator().manual_seed(0))


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def signed32(v: int) -> int:
    return (v + 2**31) % 2**32 - 2**31


def signed8(v: int, byte: int) -> int:
    return ((v >> 8 * byte) + 128) % 256 - 128


# ---- the order of threads


def order_of_threads() -> list[int]:
    visits, order, counter = torch.zeros(360, dtype=torch.int32), torch.zeros(360, dtype=torch.int32), ints(0)
    call("number_threads", visits, order, counter)
    assert torch.equal(visits, torch.ones_like(visits))
    assert sorted(order.tolist()) == list(range(360))
    return order.tolist()


def test_seeds_choose_the_order(set_seed: SetSeed, monkeypatch: pytest.MonkeyPatch) -> None:
    set_seed(0)
    assert order_of_threads() == list(range(360))
    orders = []
    for seed in (1, 2, 3):
        set_seed(seed)
        orders.append(order_of_threads())
        assert order_of_threads() == orders[-1]
    assert len(set(map(tuple, orders))) == 3
    monkeypatch.delenv("SPARSEKERN_EMU_SEED")
    assert order_of_threads() == orders[0]
    blocks = [i // 30 for i in orders[0][::30]]
    assert blocks != sorted(blocks)  # blocks too, each from start to end
    assert [i // 30 for i in orders[0]] == [block for block in blocks for _ in range(30)]


def test_seed_must_be_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEKERN_EMU_SEED", "one")
    with pytest.raises(RuntimeError, match="SPARSEKERN_EMU_SEED must be a number, got one"):
        order_of_threads()


# ---- right kernels


def test_threads_take_turns() -> None:
    x, totals = random_ints(5000, -1000, 1000), torch.zeros(20, dtype=torch.int32)
    with ThreadPoolExecutor(4) as pool:  # ctypes lets them run at the same time
        list(pool.map(lambda total: call("block_sum", x, total, 5000), totals))
    assert totals.tolist() == [x.sum().item()] * 20


@pytest.mark.parametrize("words", [0, 1, 1000])
def test_shared_memory_begins_as_garbage(words: int, seed: int) -> None:
    numbers = ints(0)
    call("count_numbers", numbers, words)
    assert numbers.item() == 0


@pytest.mark.parametrize("n", [0, 5, 1792, 10000])
def test_block_sum(n: int, seed: int) -> None:
    x, total = random_ints(n, -1000, 1000), ints(0)
    call("block_sum", x, total, n)
    assert total.item() == x.sum().item()


@pytest.mark.parametrize("threads", [2, 33, 100])
@pytest.mark.parametrize("ayes", ["some", "all", "none"])
def test_block_votes(threads: int, ayes: str, seed: int) -> None:
    votes = {"some": torch.arange(threads) % 2, "all": torch.ones(threads), "none": torch.zeros(threads)}[ayes].int()
    results = torch.zeros(threads, 3, dtype=torch.int32)
    call("block_votes", votes, results, threads)
    voted = votes[1:]  # the first thread has left
    expected = [voted.sum().item(), voted.any().item(), voted.all().item()]
    assert results[1:].tolist() == [expected] * (threads - 1)


@pytest.mark.parametrize("width", [2, 8, 32])
def test_shuffles(width: int, seed: int) -> None:
    results = torch.zeros(5, 32, dtype=torch.int32)
    call("shuffles", results, width)
    for lane in range(32):
        first = lane - lane % width
        sources = [
            first + 5 % width,
            lane - 3 if lane - 3 >= first else lane,
            lane + 3 if lane + 3 < first + width else lane,
            lane ^ 6 if lane ^ 6 < first + width else lane,
            lane ^ 1,
        ]
        assert results[:, lane].tolist() == [100 + source for source in sources]


def test_warp_votes(seed: int) -> None:
    values = [lane * 7 % 5 for lane in range(32)]
    results = torch.zeros(32, 10, dtype=torch.int32)
    call("warp_votes", ints(*values), results)
    everybody = range(31)
    for lane in everybody:
        others = [i for i in everybody if i % 2 == lane % 2]
        all_and, all_or = ~0, 0
        for i in everybody:
            all_and, all_or = all_and & (values[i] | 4), all_or | values[i]
        assert results[lane].tolist() == [
            signed32(sum(1 << i for i in others if values[i] % 2)),
            any(values[i] == 2 for i in others),
            all(values[i] < 4 for i in others),
            signed32(sum(1 << i for i in others if values[i] == values[lane])),
            sum(values[:31]),
            min(values[:31]) - 2,
            max(values[:31]) - 2,
            all_and,
            all_or,
            min((value - 2) % 2**32 for value in values[:31]),
        ]


def test_compaction(seed: int) -> None:
    x = normal(1000)
    positions, count = torch.full((1000,), -1, dtype=torch.int32), ints(0)
    call("compact", x, 1000, positions, count)
    expected = (x > 0).nonzero()[:, 0].int()
    found = positions[: count.item()]
    assert torch.equal(found.sort().values, expected)
    if seed == 0:
        assert torch.equal(found, expected)


def test_atomics(seed: int) -> None:
    n = 100
    x = random_ints(n, 1, 2**20)
    i = torch.tensor([0, 0, 2**30, 0, -1, *[0] * n], dtype=torch.int32)
    u, w, f, taken = ints(-1, 0, 0, 0), torch.tensor([0, -1]), torch.zeros(2), torch.zeros(n, dtype=torch.int32)
    call("atomics", x, n, i, u, w, f, taken)
    values = x.tolist()
    expected_and, expected_or, expected_xor = -1, 0, 0
    for v in values:
        expected_and, expected_or, expected_xor = expected_and & v, expected_or | v, expected_xor ^ v
    assert i[:4].tolist() == [sum(values), -sum(values), min(values), max(values)]
    assert u.tolist() == [expected_and, expected_or, expected_xor, n]
    assert w.tolist() == [sum(values) << 32, min(values) << 32]
    assert f.tolist() == [n / 2, max(values)]
    assert sorted(taken.tolist()) == sorted(values)
    exchanged = [*i[5:].tolist(), i[4].item()]  # each number was put there once and taken once; one is left
    assert sorted(exchanged) == list(range(-1, n))


def test_bits() -> None:
    x = ints(0, 1, -1, 2**31 - 1, -(2**31), 0x12345678, 0x00F0A000, -77)
    results = torch.zeros(len(x), 12, dtype=torch.int32)
    call("bits", x, len(x), results)
    for v, row in zip(x.tolist(), results.tolist(), strict=True):
        unsigned = v % 2**32
        lowest = (v & -v).bit_length()
        permuted = [unsigned >> 16 & 0xFF, 0x11 * 2, unsigned >> 8 & 0xFF, 0x00]  # bytes 2, 6, 1 and 4 of (v, y)
        assert row == [
            unsigned.bit_count(),
            32 - unsigned.bit_length(),
            lowest,
            signed32(int(f"{unsigned:032b}"[::-1], 2)),
            signed32(sum(byte << 8 * place for place, byte in enumerate(permuted))),
            7 + sum(signed8(v, byte) * signed8(0x01FF0203, byte) for byte in range(4)),
            unsigned.bit_count() + (16 if v < 0 else 0),
            64 - unsigned.bit_length(),
            lowest + 20 if v else 0,
            min(v, 5),
            max(v, 5),
            v,
        ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
class Test16Bits:
    def test_all_numbers_to_float_and_back(self, dtype: torch.dtype) -> None:
        floats = torch.zeros(2, 2**16)
        bits = torch.zeros(2, 2**16, dtype=torch.int16)
        call("convert16", floats[0], floats[1], bits[0], bits[1])
        which = [torch.bfloat16, torch.float16].index(dtype)
        numbers = torch.arange(2**16).to(torch.int16).view(dtype)
        torch.testing.assert_close(floats[which], numbers.float(), rtol=0, atol=0, equal_nan=True)
        nan = numbers.isnan()
        assert torch.equal(bits[which][~nan], numbers.view(torch.int16)[~nan])
        assert bits[which][nan].eq(0x7FFF).all()

    def test_rounding_from_float(self, dtype: torch.dtype) -> None:
        halfway = torch.arange(2**14, dtype=torch.int32) * 2**18 + 2**12  # half way between numbers, and near it
        nearby = torch.cat([halfway, halfway - 1, halfway + 1, halfway * 16])
        x = torch.cat([nearby.view(torch.float32), normal(2**14) * 2.0 ** torch.linspace(-30, 20, 2**14)])
        bits = torch.zeros(2, len(x), dtype=torch.int16)
        call("round16", x, len(x), bits[0], bits[1])
        rounded = bits[[torch.bfloat16, torch.float16].index(dtype)].view(dtype)
        torch.testing.assert_close(rounded, x.to(dtype), rtol=0, atol=0, equal_nan=True)

    def test_arithmetic(self, dtype: torch.dtype) -> None:
        a, b = (normal(2, 1024, 2) * 3).to(dtype)
        results = torch.zeros(1024, 8, dtype=dtype)
        call(f"arithmetic_{'bf16' if dtype == torch.bfloat16 else 'f16'}", a, b, results, 1024)
        (a0, a1), (b0, b1) = a.T, b.T
        expected = [a0 + b0, a0 - b0, a1 * b1, a1 / b1, a0.maximum(b0), -a1, a0.abs()]
        assert torch.equal(results[:, :7], torch.stack(expected, 1))
        exact = a1.double() * b1.double() + a1.double()
        assert torch.equal(results[:, 7], exact.to(dtype))


def test_multiply_and_add_rounds_once() -> None:
    # 3 * 683 / 2048 is half way between 1 and the next number; the little that is added decides
    a, b = torch.zeros(2, 256, 2, dtype=torch.float16)
    a[0, 1], b[0, 1] = 3, 683 / 2048
    results = torch.zeros(256, 8, dtype=torch.float16)
    call("arithmetic_f16", a, b, results, 256)
    assert results[0, 7] == (a[0, 1].double() * b[0, 1].double() + a[0, 1].double()).to(torch.float16)


# ---- asynchronous copies


def copies_are_right(entry: str, mistake: str = "") -> bool:
    x, sums = random_ints(7 * 256, -100, 100).float(), torch.zeros(64)
    call(entry, x, sums, 7, mistake)
    return torch.equal(sums, x.view(7, 64, 4).sum((0, 2)).flip(0))


@pytest.mark.parametrize("entry", ["groups", "bulk"])
def test_copies(entry: str, seed: int) -> None:
    assert copies_are_right(entry)


@pytest.mark.parametrize(
    ("entry", "mistake"),
    [
        ("groups", "no wait"),
        ("groups", "waits for too little"),
        ("groups", "no commit"),
        ("groups", "no __syncthreads"),
        ("groups", "copies too early"),
        ("bulk", "no wait for full"),
        ("bulk", "no wait for empty"),
        ("bulk", "wrong parity of full"),
        ("bulk", "two arrivals"),
    ],
)
def test_wrong_copies_are_found(entry: str, mistake: str, seed: int) -> None:
    try:
        right = copies_are_right(entry, mistake)
    except RuntimeError as error:
        right = "mbarrier" not in str(error)
    assert not right


@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        ("no init", "mbarrier: wait without init"),
        ("init twice", "mbarrier: init for the second time"),
        ("not to shared memory", "bulk_copy: the destination is not shared memory"),
        ("misaligned", "bulk_copy: addresses and size must be multiples of 16"),
        (
            "init for two arrivals",
            r"64 at phase 0 of an mbarrier .* lacks 1 of 2 arrivals and 0 bytes \(threads 32-95\)",
        ),
        ("no arrival", r"1 at phase 0 of an mbarrier .* lacks 64 of 64 arrivals and 0 bytes \(threads 0\)"),
        ("expects nothing", r"64 at phase 0 of an mbarrier .* lacks 1 of 1 arrivals and -1024 bytes \(threads 32-95\)"),
        ("expects too much", r"64 at phase 0 of an mbarrier .* lacks 0 of 1 arrivals and 16 bytes \(threads 32-95\)"),
        ("wrong parity of empty", r"1 at phase 0 of an mbarrier .* lacks 64 of 64 arrivals and 0 bytes \(threads 0\)"),
    ],
)
def test_wrong_mbarriers_are_named(mistake: str, error: str, seed: int) -> None:
    with pytest.raises(RuntimeError, match=error):
        copies_are_right("bulk", mistake)
    assert copies_are_right("bulk")  # nothing is left of it


def test_a_block_must_wait_for_its_copies(seed: int) -> None:
    x, sums = torch.zeros(256), torch.zeros(64)
    with pytest.raises(RuntimeError, match="the block ends while a bulk copy is under way"):
        call("bulk", x, sums, 1, "nobody waits")


# ---- races: wrong results in some order of the threads


@pytest.mark.parametrize(
    ("entry", "mistake"),
    [
        ("reverse", "reads before it is written"),
        ("reverse", "writes before it is read"),
        ("reverse_warps", "no __syncwarp"),
        ("gather", "reads what is not filled yet"),
    ],
)
def test_a_race_shows(entry: str, mistake: str, set_seed: SetSeed) -> None:
    def result(mistake: str) -> list[int]:
        x, y = torch.arange(64, dtype=torch.int32), torch.full((64,), 9999, dtype=torch.int32)
        call(entry, x, y, mistake)
        return y.tolist()

    right = {
        "reverse": list(range(64)),
        "reverse_warps": [*range(31, -1, -1), *range(63, 31, -1)],
        "gather": [sum(range(64)), *[9999] * 63],
    }[entry]
    wrong = 0
    for seed in range(1, 6):
        set_seed(seed)
        assert result("") == right
        wrong += result(mistake) != right
    assert wrong >= 2


def test_blocks_that_need_an_order_show(set_seed: SetSeed) -> None:
    def right() -> bool:
        x, y = torch.ones(20, dtype=torch.int32), torch.zeros(21, dtype=torch.int32)
        call("chain", x, y, 20)
        return y.tolist() == list(range(21))

    set_seed(0)
    assert right()
    set_seed(1)
    assert not right()


# ---- what is refused


@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        (
            "barrier for some",
            r"deadlock in block \(0, \d, 0\), 64 threads: 0 exited; "
            r"16 at __shfl_sync with mask 0xffffffff \(threads 48-63\); 48 at __syncthreads \(threads 0-47\)",
        ),
        (
            "masks that differ",
            r"32 at __syncthreads \(threads 16-31, 48-63\); "
            r"32 at __syncwarp with mask 0xffffffff \(threads 0-15, 32-47\)",
        ),
        ("barriers of two kinds", "thread .*: __syncthreads(_or)? while other threads are at __syncthreads(_or)?"),
        ("not in its mask", "lane 0 is not in its own mask 0xfffffffe"),
        ("reads outside the mask", r"lane \d+ reads lane 16, which has exited or is not in mask 0x0000ffff"),
        ("reads a lane that has left", "lane 15 reads lane 16, which has exited"),
        ("two operations", "__(shfl|ballot)_sync while other lanes of mask 0xffffffff are at __(shfl|ballot)_sync"),
        ("two types", r"__shfl_sync while other lanes .* are at __shfl_sync \(or at the same with another type\)"),
        ("trap", r"block \(0, \d, 0\), thread \(37, 0, 0\): __trap\(\)"),
    ],
)
def test_refused(mistake: str, error: str, seed: int) -> None:
    y = torch.zeros(64, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="^emulated kernel.*" + error):
        call("refused", y, mistake)
    call("refused", y, "")  # nothing is left of it
    assert y.tolist() == [1] * 64


@pytest.mark.parametrize(
    ("shape", "error"),
    [
        ((2**31, 1, 1, 1, 1, 1, 0), r"gridDim.x must be 1 to 2\^31 - 1, got 2147483648"),
        ((1, 65536, 1, 1, 1, 1, 0), "gridDim.y must be 1 to 65535, got 65536"),
        ((1, 1, 65536, 1, 1, 1, 0), "gridDim.z must be 1 to 65535, got 65536"),
        ((1, 1, 1, 0, 1, 1, 0), "blockDim.x must be 1 to 1024, got 0"),
        ((1, 1, 1, 1, 1025, 1, 0), "blockDim.y must be 1 to 1024, got 1025"),
        ((1, 1, 1, 1, 1, 65, 0), "blockDim.z must be 1 to 64, got 65"),
        ((1, 1, 1, 33, 32, 1, 0), "the threads of a block must be at most 1024, got 1056"),
        ((1, 1, 1, 1, 1, 1, 227 * 1024 + 1), "the dynamic shared memory must be at most 227 KiB, got 232449"),
    ],
)
def test_limits(shape: tuple[int, ...], error: str) -> None:
    with pytest.raises(RuntimeError, match=error):
        call("shape", ints(0), torch.tensor(shape))


def test_the_largest_block(seed: int) -> None:
    y = torch.zeros(1024, dtype=torch.int32)
    call("shape", y, torch.tensor([2, 1, 1, 1024, 1, 1, 227 * 1024]))
    assert y.tolist() == [1] * 1024


# ---- AddressSanitizer


CALL = """
import ctypes, sys
function = ctypes.CDLL(sys.argv[1]).run_out_of_bounds
function.restype = ctypes.c_char_p
sys.exit(function(None, sys.argv[2].encode()))
"""
CALL_WITH_A_TENSOR = CALL.replace("None", "ctypes.c_void_p(x.data_ptr())").replace(
    "function =", "import torch; x = torch.zeros(32, dtype=torch.int32); function =", 1
)


@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        ("global read", "heap-buffer-overflow"),
        ("global write", "heap-buffer-overflow"),
        ("static shared", "global-buffer-overflow"),
        ("dynamic shared", "heap-buffer-overflow"),
        ("async copy", "heap-buffer-overflow"),
        ("misaligned", "misaligned address .* requires 16 byte alignment"),
    ],
)
def test_asan_names_the_line(mistake: str, error: str) -> None:
    done = emulator.run_under_asan("-c", CALL, emulator.build("emulated.so", "ASAN"), mistake)
    assert done.returncode != 0
    assert re.search(error, done.stderr), done.stderr
    source = (emulator.ROOT / "tests/emulated/mistakes.cu").read_text().splitlines()
    line = 1 + next(i for i, text in enumerate(source) if text.endswith(f"// {mistake}"))
    assert f"mistakes.cu:{line}" in done.stderr, done.stderr


def test_asan_sees_tensors() -> None:
    path = emulator.build("emulated.so", "ASAN")
    done = emulator.run_under_asan("-c", CALL_WITH_A_TENSOR, path, "global read")
    assert "heap-buffer-overflow" in done.stderr, done.stderr
    assert emulator.run_under_asan("-c", CALL_WITH_A_TENSOR, path, "").returncode == 0


def under_asan(*selection: str) -> None:
    """Runs tests in a process of their own, with the emulated kernels under AddressSanitizer."""
    for library in emulator.TARGETS:
        emulator.build(library, "ASAN")
    done = emulator.run_under_asan("-m", "pytest", "-q", "-x", "--capture=sys", *selection)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_else_in_these_tests_is_out_of_bounds() -> None:
    under_asan("tests/test_emulator.py", "-k", "not asan and not out_of_bounds and not 16Bits and not seeds")


def test_no_kernel_of_an_op_is_out_of_bounds() -> None:
    every_case = "(test_result_and_gradients and f32) or test_bfloat16 or (test_every_rule and f32)"
    files = ("tests/test_ops.py", "tests/test_adamw_project.py", "tests/test_adamw_select.py")
    under_asan(*files, "-k", f"emulated and ({every_case})")
