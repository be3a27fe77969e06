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

// What the steps of both modes have in common: the lists of their matrices, and what every matrix is described by.
struct AdamLists {
  const char* op;
  const Tensors &weights, &grads, &exp_avgs, &exp_avg_sqs, &steps, &crows, &cols, &ccols, &rows, &perms;
  const Ints &floors, &axes;

  void check() const {
    const size_t count = weights.size();
    SK_CHECK(count > 0, op, ": weights must not be empty");
    check_count(op, "grads", grads, count);
    check_count(op, "exp_avgs", exp_avgs, count);
    check_count(op, "exp_avg_sqs", exp_avg_sqs, count);
    check_count(op, "steps", steps, count);
    check_count(op, "crows", crows, count);
    check_count(op, "cols", cols, count);
    check_count(op, "ccols", ccols, count);
    check_count(op, "rows", rows, count);
    check_count(op, "perms", perms, count);
    check_count(op, "floors", floors, count);
    check_count(op, "axes", axes, count);
  }

  // Before a matrix is described: its weight and gradient fit those of the first.
  void check_weight(size_t i) const {
    SK_CHECK(weights[i].scalar_type() == weights[0].scalar_type(), op, ": ", nth("weights", i),
             " must have the scalar type of weights[0]");
    check_beside(op, nth("weights", i), weights[i], weights[0]);
    check_like_weight(op, nth("grads", i), grads[i], weights[i]);
  }

  // All of `m` that both modes have; its rows, cols and k are set already. The gradients are contiguous.
  template <class Matrix>
  void describe(size_t i, Matrix& m, ScalarType index, const Tensor& nan_at) const {
    const Tensor& weight = weights[i];
    m.floor = floors[i];
    m.axis = int32_t(axes[i]);
    SK_CHECK(axes[i] == 0 || axes[i] == 1, op, ": ", nth("axes", i), " must be 0 (rows) or 1 (columns), got ", axes[i]);
    const int64_t neurons = m.axis == 0 ? m.rows : m.cols;
    SK_CHECK(m.floor >= 0 && m.floor * neurons <= m.k, op, ": ", nth("floors", i),
             " must be between 0 and what fits into ", m.k, " entries for ", neurons, " neurons, got ", m.floor);
    m.weight = state_pointer(op, nth("weights", i), weight, weight);
    m.grad = grads[i].const_data_ptr();
    m.exp_avg = state_pointer(op, nth("exp_avgs", i), exp_avgs[i], weight);
    m.exp_avg_sq = state_pointer(op, nth("exp_avg_sqs", i), exp_avg_sqs[i], weight);
    m.step = static_cast<const float*>(scalar_pointer(op, nth("steps", i), steps[i], ScalarType::Float, weight));
    m.crow = vector_pointer(op, nth("crows", i), crows[i], index, m.rows + 1, weight);
    m.col = vector_pointer(op, nth("cols", i), cols[i], index, m.k, weight);
    m.ccol = vector_pointer(op, nth("ccols", i), ccols[i], index, m.cols + 1, weight);
    m.row = vector_pointer(op, nth("rows", i), rows[i], index, m.k, weight);
    m.perm = vector_pointer(op, nth("perms", i), perms[i], index, m.k, weight);
    m.nan_at = static_cast<int64_t*>(nan_at.mutable_data_ptr()) + i;
  }

  // The constants of a step; lr and grad_scale lie beside the weights.
  template <class Args>
  void set_constants(Args& a, const Tensor& lr, const Tensor& grad_scale, double beta1, double beta2, double eps,
                     double weight_decay) const {
    const Tensor& like = weights[0];
    a.lr = static_cast<const double*>(scalar_pointer(op, "lr", lr, ScalarType::Double, like));
    a.grad_scale = static_cast<const double*>(scalar_pointer(op, "grad_scale", grad_scale, ScalarType::Double, like));
    a.beta1 = beta1;
    a.beta2 = beta2;
    a.eps = eps;
    a.weight_decay = weight_decay;
  }
};

}  // namespace sk
