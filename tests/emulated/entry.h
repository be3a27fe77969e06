// How Python calls a test kernel: a function that returns null, or the text of what it threw.
#pragma once
#include <exception>
#include <string>

#include "async.h"
#include "device.h"

#define ENTRY extern "C" __attribute__((visibility("default"))) const char*

// Runs kernel(args...).
template <class... Params, class... Args>
const char* run(void (*kernel)(Params...), dim3 grid, dim3 block, int64_t shared_bytes, Args... args) {
  static std::string text;
  try {
    sk::cuda::launch(kernel, grid, block, shared_bytes, sk::Parallel{}, args...);
    return nullptr;
  } catch (const std::exception& error) {
    text = error.what();
    return text.c_str();
  }
}

// The mistake that a kernel is to make; none has the name "".
struct Mistake {
  const char* name;

  bool is(const char* other) const { return strcmp(name, other) == 0; }
};
