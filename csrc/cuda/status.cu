// What a Status means.
#include "cuda.h"

namespace sk {
namespace cuda {

const char* status_text(Status status) {
#ifdef SK_EMU
  return status == kOk ? "ok" : "error in the emulated kernel";
#else
  return cudaGetErrorString(cudaError_t(status));
#endif
}

}  // namespace cuda
}  // namespace sk
