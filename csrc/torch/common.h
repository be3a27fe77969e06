// What every binding needs: checks that name the argument, plain descriptions of tensors, workspaces, threads.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "sparsekern/parallel.h"
#include "sparsekern/types.h"

namespace sk {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// SK_CHECK(condition, "op: argument must be ..., got ", value): a RuntimeError in Python.
#define SK_CHECK(condition, ...) \
  if (!(condition)) throw std::runtime_error(::sk::message(__VA_ARGS__))

inline std::string shape_of(const Tensor& t) {
  std::ostringstream out;
  out << '(';
  for (int64_t d = 0; d < t.dim(); ++d) out << (d ? ", " : "") << t.size(d);
  out << ')';
  return out.str();
}

inline DType dtype_of(const char* op, const char* name, const Tensor& t) {
  const ScalarType type = t.scalar_type();
  SK_CHECK(type == ScalarType::Float || type == ScalarType::Double, op, ": ", name,
           " must be float32 or float64 on the CPU, got scalar type ", torch::headeronly::toString(type));
  return type == ScalarType::Double ? DType::f64 : DType::f32;
}

inline IndexType index_of(const char* op, const char* name, const Tensor& t) {
  const ScalarType type = t.scalar_type();
  SK_CHECK(type == ScalarType::Int || type == ScalarType::Long, op, ": ", name,
           " must be int32 or int64, got scalar type ", torch::headeronly::toString(type));
  return type == ScalarType::Long ? IndexType::i64 : IndexType::i32;
}

// A vector of exactly `length` elements of `type`, contiguous.
inline void check_vector(const char* op, const char* name, const Tensor& t, ScalarType type, int64_t length) {
  SK_CHECK(t.dim() == 1 && t.size(0) == length && t.is_contiguous(), op, ": ", name, " must be a contiguous vector of ",
           length, " elements, got shape ", shape_of(t));
  SK_CHECK(t.scalar_type() == type, op, ": ", name, " must have scalar type ", torch::headeronly::toString(type),
           ", got ", torch::headeronly::toString(t.scalar_type()));
}

// The pattern of a matrix with cols columns; the arrays' contents were validated when the format object was made.
inline CsrPattern pattern_of(const char* op, const Tensor& crow, const Tensor& col, int64_t cols) {
  const IndexType index = index_of(op, "crow_indices", crow);
  SK_CHECK(crow.numel() >= 1, op, ": crow_indices must have at least one element");
  check_vector(op, "crow_indices", crow, crow.scalar_type(), crow.numel());
  check_vector(op, "col_indices", col, crow.scalar_type(), col.numel());
  return {crow.const_data_ptr(), col.const_data_ptr(), crow.numel() - 1, cols, col.numel(), index};
}

// Rows of a row-major matrix made of all but the last dimension.
inline int64_t leading(const Tensor& t) {
  int64_t n = 1;
  for (int64_t d = 0; d + 1 < t.dim(); ++d) n *= t.size(d);
  return n;
}

// t's shape with the last dimension replaced.
inline std::vector<int64_t> with_last(const Tensor& t, int64_t last) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d + 1 < t.dim(); ++d) sizes.push_back(t.size(d));
  sizes.push_back(last);
  return sizes;
}

inline Parallel cpu_parallel() {
  return {int32_t(torch::stable::get_num_threads()), nullptr, [](void*, int64_t n, ParallelBody body, void* arg) {
            torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) { body(arg, begin, end); });
          }};
}

// Uninitialised bytes from torch's allocator, next to `like`, aligned to 64 bytes.
class Workspace {
 public:
  Workspace(const Tensor& like, int64_t bytes)
      : tensor_(torch::stable::new_empty(like, {bytes + 64}, ScalarType::Byte)) {}
  void* data() {
    const auto address = reinterpret_cast<uintptr_t>(tensor_.mutable_data_ptr());
    return reinterpret_cast<void*>((address + 63) / 64 * 64);
  }

 private:
  Tensor tensor_;
};

}  // namespace sk
