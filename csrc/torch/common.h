// What every binding needs: checks that name the argument, plain descriptions of tensors, workspaces, threads.
#pragma once
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "backend.h"

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

inline void check_status(const char* op, Status status) { SK_CHECK(status == kOk, op, ": ", status_text(status)); }

// Every tensor is on the device of the first.
inline void check_device(const char* op, std::initializer_list<std::pair<const char*, const Tensor*>> tensors) {
  const auto& [first_name, first] = *tensors.begin();
  for (const auto& [name, t] : tensors)
    SK_CHECK(t->is_cpu() == first->is_cpu() && t->get_device_index() == first->get_device_index(), op, ": ", name,
             " must be on the device of ", first_name);
}

// The dtype of activations.
inline DType dtype_of(const char* op, const char* name, const Tensor& t) {
  const ScalarType type = t.scalar_type();
  if (type == ScalarType::Float) return DType::f32;
  if (type == ScalarType::Double) return DType::f64;
  if (type == ScalarType::BFloat16) return DType::bf16;
#ifdef SK_CUDA
  if (type == ScalarType::Half) return DType::f16;
  constexpr const char* expected = "float32, bfloat16, float16 or float64";
#else
  constexpr const char* expected = "float32, bfloat16 or float64 on the CPU";
#endif
  SK_CHECK(false, op, ": ", name, " must be ", expected, ", got scalar type ", torch::headeronly::toString(type));
  return DType::f32;  // not reached
}

// The dtype of values, biases and their gradients beside activations of `dtype`.
inline ScalarType value_type(DType dtype) { return dtype == DType::f64 ? ScalarType::Double : ScalarType::Float; }

// The dtype of a weight, values or their gradients.
inline DType value_dtype_of(const char* op, const char* name, const Tensor& t) {
  const ScalarType type = t.scalar_type();
  SK_CHECK(type == ScalarType::Float || type == ScalarType::Double, op, ": ", name,
           " must be float32 or float64, got scalar type ", torch::headeronly::toString(type));
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

// A matrix that the CUDA kernels can select from: they count rows and columns in 32 bits, entries in 64.
inline void check_sides([[maybe_unused]] const char* op, [[maybe_unused]] const char* name,
                        [[maybe_unused]] const Tensor& t) {
#ifdef SK_CUDA
  constexpr int64_t limit = std::numeric_limits<int32_t>::max();
  SK_CHECK(t.size(0) <= limit && t.size(1) <= limit, op, ": ", name, " must have fewer than 2^31 rows and columns on ",
           "a GPU, got shape ", shape_of(t));
#endif
}

// Rows of a row-major matrix made of all but the last dimension.
inline int64_t leading(const Tensor& t) {
  int64_t n = 1;
  for (int64_t d = 0; d + 1 < t.dim(); ++d) n *= t.size(d);
  return n;
}

// Whether a and b differ in their last dimension at most.
inline bool same_leading(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d + 1 < a.dim(); ++d)
    if (a.size(d) != b.size(d)) return false;
  return true;
}

// t's shape with the last dimension replaced.
inline std::vector<int64_t> with_last(const Tensor& t, int64_t last) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d + 1 < t.dim(); ++d) sizes.push_back(t.size(d));
  sizes.push_back(last);
  return sizes;
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
