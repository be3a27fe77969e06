// In which order blocks run and threads go on. A kernel that is right in one order only has a race.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace emu {

struct Thread;

// Splitmix64.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  // Uniform in [0, 2^32).
  uint32_t draw() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return uint32_t((z ^ (z >> 31)) >> 32);
  }
  // Uniform in [0, n), for n up to 2^32.
  size_t below(size_t n) { return uint64_t(draw()) * n >> 32; }

 private:
  uint64_t state_;
};

inline Random dice{1};  // everything that is left to chance draws from here

// From SPARSEKERN_EMU_SEED, 1 where it is not set; 0 asks for the plain order.
uint64_t seed_from_environment();

// Runs through [0, n), n > 0, beginning anywhere, in equal steps around the circle.
class Tour {
 public:
  Tour(uint64_t n, bool plain);
  uint64_t next();

 private:
  uint64_t n_, at_, step_;
};

enum class Order {
  plain,   // ascending; what was released last goes on first
  ahead,   // the same, but shuffled: single warps run ahead as far as they can
  uniform  // any thread that can go on
};

// The threads of the block that can go on.
class Ready {
 public:
  void clear(Order order);
  bool empty() const { return threads_.empty(); }
  void add(Thread* const* threads, size_t n);
  Thread* take();

  void put_back(Thread* thread);

  // True now and then: something that may happen at any time is to happen now.
  bool chance() const { return order_ != Order::plain && dice.below(4) == 0; }

 private:
  Order order_ = Order::plain;
  std::vector<Thread*> threads_;  // the next to go on is the last
};

}  // namespace emu
