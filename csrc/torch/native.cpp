// The pybind11 module _native: what was built, which instruction set runs, how the C allocator behaves. No tensors.
#include <pybind11/pybind11.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "sparsekern/isa.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = SPARSEKERN_VERSION;
  info["compiler"] = SPARSEKERN_COMPILER;
  info["cpu_isas"] = py::str(SPARSEKERN_CPU_ISAS).attr("split")(",");
  info["cpu_isa_detected"] = sk::isa_name(sk::detected_isa());
  info["cpu_isa"] = sk::isa_name(sk::active_isa());
  info["torch_abi_floor"] = "2.11";
  info["torch_built_with"] = SPARSEKERN_TORCH_VERSION;
  return info;
}

void set_cpu_isa(const std::string& name) {
  sk::Isa isa{};
  if (!sk::isa_from_name(name.c_str(), &isa))
    throw py::value_error("set_cpu_isa: name must be base, avx2 or avx512, got " + name);
  if (!sk::set_isa(isa))
    throw py::value_error("set_cpu_isa: this CPU has no " + name + " (it has " + sk::isa_name(sk::detected_isa()) +
                          ")");
}

bool keep_freed_memory() {
#if defined(__GLIBC__)
  // Large blocks come from the heap instead of mmap, and the heap is not given back: a fresh 32 MiB tensor otherwise
  // costs some 8,000 page faults, more time than many a kernel takes to fill it.
  return mallopt(M_MMAP_MAX, 0) && mallopt(M_TRIM_THRESHOLD, -1) && mallopt(M_TOP_PAD, 64 << 20);
#else
  return false;
#endif
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.def("build_info", &build_info);
  m.def("cpu_isa", [] { return sk::isa_name(sk::active_isa()); });
  m.def("set_cpu_isa", &set_cpu_isa, py::arg("name"));
  m.def("keep_freed_memory", &keep_freed_memory);
}
