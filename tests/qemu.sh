#!/usr/bin/env bash
# The C++ kernels on an emulated processor without AVX-512 and on one without AVX: the right results, and no instruction
# that it does not have. Installs qemu-user where it is missing (Debian; asks sudo unless root). Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v qemu-x86_64 >/dev/null; then
  [ "$(id -u)" = 0 ] && sudo="" || sudo=sudo
  $sudo apt-get update -q && $sudo apt-get install -y -q qemu-user
fi
for cpu in Haswell Nehalem; do
  echo "== $cpu"
  qemu-x86_64 -cpu "$cpu,-hle,-rtm,-invpcid,-pcid,-x2apic,-tsc-deadline" "${PYTHON:-.venv/bin/python}" -m pytest -q -p no:xdist \
    tests/test_ops.py tests/test_causal_attention.py tests/test_rms_norm.py tests/test_adamw_project.py \
    tests/test_adamw_select.py -k "not emulated and not numerical and not threads and not compile" "$@"
done
