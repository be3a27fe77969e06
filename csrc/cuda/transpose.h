// Transposition of several patterns at once.
#pragma once
#include "sparsekern/csr_pattern.h"
#include "table.h"

namespace sk {
namespace cuda {

// Of count <= kTable patterns with one index type. The workspace is one for all: what the arguments hold is not used.
int64_t transpose_workspace(const CsrTransposeArgs* patterns, int count);
Status transpose(const CsrTransposeArgs* patterns, int count, void* workspace, const Parallel& parallel);

}  // namespace cuda
}  // namespace sk
