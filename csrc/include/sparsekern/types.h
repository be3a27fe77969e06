// Plain descriptions of tensors that every kernel takes.
#pragma once
#include <cstdint>

namespace sk {

// Of activations. The CPU kernels take f32, f64 and bf16. Values, biases and their gradients are f64 where the
// activations are, and f32 otherwise.
enum class DType : int32_t { f32, f64, bf16, f16 };
enum class IndexType : int32_t { i32, i64 };  // of a pattern's arrays

// What a launcher returns: kOk, or the number of a CUDA error.
enum Status : int32_t { kOk = 0 };

// Where the nonzeros of one (rows, cols) matrix are: row r owns positions crow[r] .. crow[r+1]-1 of col, ascending.
// The transpose of a matrix is the same struct over (ccol, row). Both arrays have the same index type.
struct CsrPattern {
  const void* crow;  // (rows + 1)
  const void* col;   // (nnz)
  int64_t rows, cols, nnz;
  IndexType index;
};

}  // namespace sk
