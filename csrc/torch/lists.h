// For the bindings of ops on several matrices at once: checks that name an element of a list.
#pragma once
#include "common.h"

namespace sk {

using Tensors = std::vector<Tensor>;
using Ints = std::vector<int64_t>;

// "weights[3]", for messages.
inline std::string nth(const char* name, int64_t i) { return message(name, "[", i, "]"); }

template <class List>
void check_count(const char* op, const char* name, const List& list, size_t count) {
  SK_CHECK(list.size() == count, op, ": ", name, " must have one entry for each of the ", count, " weights, got ",
           list.size());
}

// On the device of `like`, which the message calls weights[0].
inline void check_beside(const char* op, const std::string& name, const Tensor& t, const Tensor& like) {
  SK_CHECK(t.is_cpu() == like.is_cpu() && t.get_device_index() == like.get_device_index(), op, ": ", name,
           " must be on the device of weights[0]");
}

// Of the type and shape of the weight.
inline void check_like_weight(const char* op, const std::string& name, const Tensor& t, const Tensor& weight) {
  SK_CHECK(t.scalar_type() == weight.scalar_type(), op, ": ", name, " must have scalar type ",
           torch::headeronly::toString(weight.scalar_type()), ", got ", torch::headeronly::toString(t.scalar_type()));
  SK_CHECK(shape_of(t) == shape_of(weight), op, ": ", name, " must have shape ", shape_of(weight), ", got ",
           shape_of(t));
  check_beside(op, name, t, weight);
}

// To be written.
inline void* state_pointer(const char* op, const std::string& name, const Tensor& t, const Tensor& weight) {
  check_like_weight(op, name, t, weight);
  SK_CHECK(t.is_contiguous(), op, ": ", name, " must be contiguous");
  return t.mutable_data_ptr();
}

inline const void* scalar_pointer(const char* op, const std::string& name, const Tensor& t, ScalarType type,
                                  const Tensor& like) {
  SK_CHECK(t.dim() == 0 && t.scalar_type() == type, op, ": ", name, " must be a scalar of type ",
           torch::headeronly::toString(type), ", got shape ", shape_of(t), " of type ",
           torch::headeronly::toString(t.scalar_type()));
  check_beside(op, name, t, like);
  return t.const_data_ptr();
}

// A vector of exactly `length` elements.
inline void* vector_pointer(const char* op, const std::string& name, const Tensor& t, ScalarType type, int64_t length,
                            const Tensor& like) {
  check_vector(op, name.c_str(), t, type, length);
  check_beside(op, name, t, like);
  return t.mutable_data_ptr();
}

}  // namespace sk
