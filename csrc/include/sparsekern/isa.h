// The CPU instruction sets a kernel is compiled for, and which one is in use.
//
// Every file of csrc/cpu is compiled once per set into the namespace of that name, the one of csrc/cuda into the
// namespace cuda. A bridge header declares its entry points for all of them with SK_KERNEL (SK_CPU_KERNEL where there
// is none on a GPU) and csrc/torch picks one with SK_CPU_PICK.
#pragma once
#include <cstdint>

namespace sk {

enum class Isa : int32_t { base, avx2, avx512 };

#define SK_API __attribute__((visibility("default")))

SK_API Isa detected_isa();  // the best set this CPU has
SK_API Isa active_isa();    // the set in use: detected, lowered by SPARSEKERN_CPU_ISA or set_isa
SK_API bool set_isa(Isa);   // false (and no change) when this CPU or this build lacks the set
SK_API const char* isa_name(Isa);
SK_API bool isa_from_name(const char* name, Isa* out);

#ifdef SK_X86
#define SK_CPU_KERNEL(declaration) \
  namespace base {                 \
  declaration;                     \
  }                                \
  namespace avx2 {                 \
  declaration;                     \
  }                                \
  namespace avx512 {               \
  declaration;                     \
  }
#define SK_CPU_PICK(name)                                  \
  (::sk::active_isa() == ::sk::Isa::avx512 ? &avx512::name \
   : ::sk::active_isa() == ::sk::Isa::avx2 ? &avx2::name   \
                                           : &base::name)
#else
#define SK_CPU_KERNEL(declaration) \
  namespace base {                 \
  declaration;                     \
  }
#define SK_CPU_PICK(name) (&base::name)
#endif

#define SK_KERNEL(declaration) \
  SK_CPU_KERNEL(declaration)   \
  namespace cuda {             \
  declaration;                 \
  }

}  // namespace sk
