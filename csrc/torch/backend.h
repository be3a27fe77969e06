// Which kernels the bindings run. This folder is compiled once for the CPU (_ops.so), once with SK_CUDA (_cuda.so) and,
// for the tests, once with SK_CUDA and SK_EMU (_emu.so: the CUDA kernels on CPU tensors, see csrc/emu).
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "sparsekern/isa.h"
#include "sparsekern/parallel.h"
#include "sparsekern/types.h"

// SK_PICK(name): the function of a bridge header to call. SK_LIBRARY_IMPL(m) { ... }: where ops are registered.
#ifdef SK_CUDA
#define SK_PICK(name) (&cuda::name)
#else
#define SK_PICK(name) SK_CPU_PICK(name)
#endif

#if defined(SK_EMU)
#define SK_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(sparsekern_emu, CPU, m)
#elif defined(SK_CUDA)
#define SK_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(sparsekern, CUDA, m)
#else
#define SK_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m)
#endif

namespace sk {

#ifdef SK_CUDA
namespace cuda {
const char* status_text(Status);
}
inline const char* status_text(Status status) { return cuda::status_text(status); }
#else
inline const char* status_text(Status) { return "ok"; }
#endif

// The device that a call runs on, current for as long as this lives.
class Device {
 public:
#if defined(SK_CUDA) && !defined(SK_EMU)
  explicit Device(const torch::stable::Tensor& like)
      : index_(like.get_device_index()), guard_(like.get_device_index()) {}

  Parallel parallel() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return {0, stream, nullptr};
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
#else
  explicit Device(const torch::stable::Tensor&) {}

  Parallel parallel() const {
    return {int32_t(torch::stable::get_num_threads()), nullptr, [](void*, int64_t n, ParallelBody body, void* arg) {
              torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) { body(arg, begin, end); });
            }};
  }
#endif
};

}  // namespace sk
