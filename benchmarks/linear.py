"""csr_linear and its gradients against torch.sparse CSR and dense matmul, in turns; appends to results/.

    python benchmarks/linear.py [--tokens 2048] [--shape 4096 4096] [--density 0.001 0.01 0.1 0.3] [--rounds 15]

Every contender reads row-major x (T, K) and writes row-major y (T, N). Results are checked against float64 before a
time is printed. The density at which "csr forward" and "csr dX" meet "dense" is ``BREAK_EVEN["cpu"]`` of the library.
"""

import argparse
import sys
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

import sparsekern as sk
from sparsekern.bench.timer import append_rows, take_turns
from sparsekern.ops import reference

RESULTS = Path(__file__).parent / "results" / "linear_cpu.csv"
console = Console()


def check(x: torch.Tensor, w: sk.CSR) -> None:
    some = slice(0, 64)
    expected = reference.csr_linear(x[some].double(), w.to(dtype=torch.float64))
    torch.testing.assert_close(sk.ops.csr_linear(x, w)[some].double(), expected, rtol=1e-4, atol=1e-4)
    dx, exact = sk.ops.csr_linear(expected.float(), w.transpose()).double(), expected @ reference.to_dense(w).double()
    torch.testing.assert_close(dx, exact, rtol=1e-3, atol=1e-6 * float(exact.abs().max()))


def measure(tokens: int, n: int, k: int, density: float, rounds: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, k, generator=generator)
    dy = torch.randn(tokens, n, generator=generator)
    w = sk.CSR.random(n, k, density=density, generator=generator)
    check(x, w)
    dense, in_torch = w.to_dense(), w.to_torch()
    contenders = {
        "csr forward": lambda: sk.ops.csr_linear(x, w),
        "csr dX": lambda: torch.ops.sparsekern.csr_linear(dy, w.values, *w.pattern.tensors, None, True),
        "csr dvalues": lambda: sk.ops.csr_sddmm(dy, x, w),
        "dense": lambda: F.linear(x, dense),
        "copy x": x.clone,
    }
    if density <= 0.1:  # slower than dense beyond
        contenders["torch.sparse_csr F.linear"] = lambda: F.linear(x, in_torch)
        contenders["torch.sparse_csr (w @ x.T).T"] = lambda: (in_torch @ x.T).T.contiguous()
    with torch.no_grad():
        timings = take_turns(contenders, rounds)
    case = {"op": "linear", "tokens": tokens, "n": n, "k": k, "density": density}
    append_rows(RESULTS, case, timings, " ".join(["python", *sys.argv]))
    table = Table("contender", "median ms", "20-80 %", "x csr forward", title=f"T={tokens}, {n} x {k}, d={density:.2%}")
    for name, t in timings.items():
        ratio = t.median_ms / timings["csr forward"].median_ms
        table.add_row(name, f"{t.median_ms:.2f}", f"{t.p20_ms:.2f} - {t.p80_ms:.2f}", f"{ratio:.2f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--shape", type=int, nargs=2, default=(4096, 4096))
    parser.add_argument("--density", type=float, nargs="+", default=(0.001, 0.01, 0.1, 0.3))
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)  # torch says that its CSR is in beta
    sk.keep_freed_memory()
    for density in arguments.density:
        measure(arguments.tokens, *arguments.shape, density, arguments.rounds)


if __name__ == "__main__":
    main()
