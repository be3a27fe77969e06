// The pybind11 module _native: what was built, which instruction set runs, how the C allocator behaves. No tensors.
#include <pybind11/pybind11.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "../cuda/tile_plan.h"
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

// What the CUDA kernels of the linear ops would do; see csrc/cuda/tile_plan.h.
py::dict tile_plan(int64_t rows, int64_t cols, int64_t nnz, int64_t tokens, int element_bytes, bool sampled,
                   int multiprocessors, int64_t shared_bytes) {
  const sk::DType dtype = element_bytes == 8 ? sk::DType::f64 : element_bytes == 4 ? sk::DType::f32 : sk::DType::bf16;
  const sk::cuda::TilePlan plan =
      sk::cuda::plan_tiles({rows, cols, nnz, tokens, dtype, sampled, multiprocessors, shared_bytes});
  py::dict out;
  out["panel_cols"] = plan.panel_cols;
  out["panels"] = plan.panels;
  out["blocks"] = plan.blocks;
  out["shares"] = plan.shares;
  out["shared_bytes"] = plan.shared_bytes;
  return out;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.def("build_info", &build_info);
  m.def("cpu_isa", [] { return sk::isa_name(sk::active_isa()); });
  m.def("set_cpu_isa", &set_cpu_isa, py::arg("name"));
  m.def("keep_freed_memory", &keep_freed_memory);
  m.def("tile_plan", &tile_plan, py::arg("rows"), py::arg("cols"), py::arg("nnz"), py::arg("tokens"),
        py::arg("element_bytes"), py::arg("sampled"), py::arg("multiprocessors"), py::arg("shared_bytes"));
}
