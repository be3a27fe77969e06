#include "schedule.h"

#include <cstdlib>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

namespace emu {

uint64_t seed_from_environment() {
  const char* const text = getenv("SPARSEKERN_EMU_SEED");
  if (!text) return 1;
  char* end = nullptr;
  const uint64_t seed = strtoull(text, &end, 10);
  if (end == text || *end) throw std::runtime_error(std::string("SPARSEKERN_EMU_SEED must be a number, got ") + text);
  return seed;
}

Tour::Tour(uint64_t n, bool plain) : n_(n), at_(0), step_(1) {
  if (plain || n < 3) return;
  at_ = dice.draw() % n;
  do {
    step_ = 1 + dice.draw() % (n - 1);
  } while (std::gcd(step_, n) != 1);
}

uint64_t Tour::next() {
  const uint64_t at = at_;
  at_ = (at_ + step_) % n_;
  return at;
}

void Ready::clear(Order order) {
  order_ = order;
  threads_.clear();
}

void Ready::add(Thread* const* threads, size_t n) {
  for (size_t i = n; i > 0; --i) threads_.push_back(threads[i - 1]);
  if (order_ != Order::ahead) return;
  Thread** const first = threads_.data() + threads_.size() - n;
  for (size_t i = n; i > 1; --i) std::swap(first[i - 1], first[dice.below(i)]);
}

Thread* Ready::take() {
  if (order_ == Order::uniform) std::swap(threads_[dice.below(threads_.size())], threads_.back());
  Thread* const thread = threads_.back();
  threads_.pop_back();
  return thread;
}

void Ready::put_back(Thread* thread) {
  // ahead: the thread goes on when no other can, so that the others see its work half done
  const size_t at = order_ == Order::ahead ? 0 : dice.below(threads_.size() + 1);
  threads_.insert(threads_.begin() + ptrdiff_t(at), thread);
}

}  // namespace emu
