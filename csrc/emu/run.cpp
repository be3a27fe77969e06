#include <mutex>
#include <stdexcept>
#include <string>

#include "emu.h"

namespace emu {
namespace {

constexpr size_t kMaxSharedBytes = 227 << 10;

void check(bool right, const char* what, size_t value, const char* limit) {
  if (!right)
    throw std::runtime_error(std::string("emulated kernel: ") + what + " must be " + limit + ", got " +
                             std::to_string(value));
}

void check_limits(dim3 grid, dim3 block, size_t shared_bytes) {
  check(grid.x >= 1 && grid.x <= 0x7fffffff, "gridDim.x", grid.x, "1 to 2^31 - 1");
  check(grid.y >= 1 && grid.y <= 65535, "gridDim.y", grid.y, "1 to 65535");
  check(grid.z >= 1 && grid.z <= 65535, "gridDim.z", grid.z, "1 to 65535");
  check(block.x >= 1 && block.x <= 1024, "blockDim.x", block.x, "1 to 1024");
  check(block.y >= 1 && block.y <= 1024, "blockDim.y", block.y, "1 to 1024");
  check(block.z >= 1 && block.z <= 64, "blockDim.z", block.z, "1 to 64");
  const size_t threads = size_t(block.x) * block.y * block.z;
  check(threads <= 1024, "the threads of a block", threads, "at most 1024");
  check(shared_bytes <= kMaxSharedBytes, "the dynamic shared memory", shared_bytes, "at most 227 KiB");
}

Order next_order(bool plain) {
  if (plain) return Order::plain;
  return dice.below(2) ? Order::ahead : Order::uniform;
}

}  // namespace

void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  static std::mutex one_launch_at_a_time;
  const std::lock_guard<std::mutex> lock(one_launch_at_a_time);
  check_limits(grid, block, shared_bytes);
  const uint64_t seed = seed_from_environment();
  const bool plain = seed == 0;
  dice = Random(seed);
  const DynamicShared shared(shared_bytes);
  gridDim = grid;
  blockDim = block;
  prepare_threads(block);
  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
  Tour tour(blocks, plain);
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t at = tour.next();
    blockIdx = {unsigned(at % grid.x), unsigned(at / grid.x % grid.y), unsigned(at / grid.x / grid.y)};
    fill_shared_with_garbage();
    run_block(body, next_order(plain));
  }
}

}  // namespace emu
