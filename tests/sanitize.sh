#!/usr/bin/env bash
# The C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer, every instruction set of this machine: some ten
# minutes. Builds into build/sanitize; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$PWD/.venv/bin/python}
package=$PWD/build/sanitize/package
mkdir -p "$package"
cp -r sparsekern "$package/"
rm -f "$package"/sparsekern/*.so
torch=$("$python" -c 'import torch; print(torch.__path__[0])')
PATH="$(dirname "$python"):$PATH"
cmake -S . -B build/sanitize -GNinja -DSPARSEKERN_SANITIZE=address,undefined -DSPARSEKERN_CUDA=OFF \
  -DPython_EXECUTABLE="$python" -DSPARSEKERN_TORCH_DIR="$torch" -DSPARSEKERN_OUT_DIR="$package/sparsekern" >/dev/null
cmake --build build/sanitize --parallel "${MAX_JOBS:-$(nproc)}"
cmake --install build/sanitize >/dev/null
# Python itself is not instrumented, so the runtime has to be there first, and what Python never frees is no leak.
LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
  UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH="$package" SPARSEKERN_SANITIZED="$package" \
  "$python" -P -m pytest -q -p no:xdist tests/test_sanitized.py tests/test_ops.py tests/test_any_shape.py \
  tests/test_causal_attention.py tests/test_rms_norm.py tests/test_adamw_project.py tests/test_adamw_select.py \
  -k "not emulated and not numerical and not compile" "$@"
