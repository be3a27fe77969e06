#include "shared_memory.h"

#include <cstdlib>
#include <new>

// The linker's names for the ends of the section.
extern "C" __attribute__((visibility("hidden"))) char __start_emu_shared[], __stop_emu_shared[];

namespace emu {
namespace {

__attribute__((used)) __shared__ uint16_t at_least_one_variable;  // or there would be no section

char* dynamic = nullptr;
size_t dynamic_bytes = 0;

bool within(const void* at, size_t bytes, const char* begin, const char* end) {
  const auto* const first = static_cast<const char*>(at);
  return begin <= first && first <= end && bytes <= size_t(end - first);
}

// Also goes over what AddressSanitizer has put between the variables.
__attribute__((no_sanitize("address"))) void fill_static_shared() {
  for (auto* at = reinterpret_cast<uint16_t*>(__start_emu_shared);
       at + 1 <= reinterpret_cast<uint16_t*>(__stop_emu_shared); ++at)
    *at = kGarbage;
}

}  // namespace

DynamicShared::DynamicShared(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 16, bytes) != 0) throw std::bad_alloc();
  dynamic = static_cast<char*>(memory);
  dynamic_bytes = bytes;
}

DynamicShared::~DynamicShared() {
  free(dynamic);
  dynamic = nullptr;
}

void* dynamic_shared() { return dynamic; }

void fill_with_garbage(void* memory, size_t bytes) {
  auto* const words = static_cast<uint16_t*>(memory);
  for (size_t i = 0; i < bytes / 2; ++i) words[i] = kGarbage;
  if (bytes % 2) static_cast<uint8_t*>(memory)[bytes - 1] = uint8_t(kGarbage);
}

void fill_shared_with_garbage() {
  fill_static_shared();
  fill_with_garbage(dynamic, dynamic_bytes);
}

bool is_shared(const void* at, size_t bytes) {
  return within(at, bytes, dynamic, dynamic + dynamic_bytes) ||
         within(at, bytes, __start_emu_shared, __stop_emu_shared);
}

}  // namespace emu
