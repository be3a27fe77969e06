// Checks of weights made of blocks.
#pragma once
#include "common.h"

namespace sk {

inline void check_side(const char* op, const char* name, int64_t side) {
  SK_CHECK(side == 16 || side == 32 || side == 64 || side == 128, op, ": ", name,
           " must be one of 16, 32, 64, 128, got ", side);
}

// `count` blocks of any allowed sides.
inline void check_blocks(const char* op, const char* name, const Tensor& t, ScalarType type, int64_t count) {
  SK_CHECK(t.dim() == 3 && t.size(0) == count, op, ": ", name, " must be ", count, " blocks, got shape ", shape_of(t));
  check_side(op, "block_rows", t.size(1));
  check_side(op, "block_cols", t.size(2));
  SK_CHECK(t.scalar_type() == type, op, ": ", name, " must have scalar type ", torch::headeronly::toString(type),
           ", got ", torch::headeronly::toString(t.scalar_type()));
}

// `features` are cut into exactly `parts` blocks.
inline void check_grid(const char* op, const char* name, int64_t features, int64_t parts, int64_t block) {
  SK_CHECK(features <= parts * block && features > (parts - 1) * block, op, ": ", name, " must fill ", parts,
           " blocks of ", block, ", got ", features);
}

}  // namespace sk
