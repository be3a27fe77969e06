// The shared memory of the block that runs.
#pragma once
#include <cstddef>
#include <cstdint>

// Static shared memory lies in a section of its own, so that it can be found. The compiler wants all its variables to
// have internal linkage: they belong in kernels (which are static) and in functions of anonymous namespaces.
#define __shared__ static __attribute__((section("emu_shared")))

namespace emu {

// A NaN in bf16, half, float and double, and no likely integer.
constexpr uint16_t kGarbage = 0xfff5;
void fill_with_garbage(void* memory, size_t bytes);

// The dynamic shared memory of a launch: an allocation of exactly its size, so that AddressSanitizer sees overruns.
class DynamicShared {
 public:
  explicit DynamicShared(size_t bytes);
  ~DynamicShared();
};
void* dynamic_shared();

// As at the start of a block: static and dynamic shared memory hold garbage.
void fill_shared_with_garbage();

bool is_shared(const void* at, size_t bytes);

}  // namespace emu
