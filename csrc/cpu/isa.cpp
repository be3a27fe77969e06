// Which instruction set the kernels run with. Compiled with baseline flags only, so it runs on every CPU.
#include "sparsekern/isa.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace sk {

Isa detected_isa() {
#ifdef SK_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::base;
}

const char* isa_name(Isa isa) { return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "base"; }

bool isa_from_name(const char* name, Isa* out) {
  for (Isa isa : {Isa::base, Isa::avx2, Isa::avx512})
    if (!std::strcmp(name, isa_name(isa))) {
      *out = isa;
      return true;
    }
  return false;
}

static Isa initial_isa() {
  const Isa detected = detected_isa();
  const char* name = std::getenv("SPARSEKERN_CPU_ISA");
  Isa asked = detected;
  if (name && isa_from_name(name, &asked) && asked < detected) return asked;
  return detected;
}

static Isa& current() {
  static Isa isa = initial_isa();
  return isa;
}

Isa active_isa() { return current(); }

bool set_isa(Isa isa) {
  if (isa > detected_isa()) return false;
  current() = isa;
  return true;
}

}  // namespace sk
