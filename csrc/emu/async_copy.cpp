#include "async_copy.h"

#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#include "block.h"
#include "shared_memory.h"

namespace emu {
namespace {

struct BulkCopy {
  Copy copy;
  Mbarrier* barrier;
};

std::vector<BulkCopy> bulk_copies;  // under way
std::vector<Thread*> sleepers;      // at mbarriers

void complete(const Copy& copy) { memcpy(copy.to, copy.from, copy.bytes); }

// Touches both sides, so that AddressSanitizer names the line that starts a copy out of bounds.
Copy start(const char* function, void* to, const void* from, size_t bytes) {
  if ((uintptr_t(to) | uintptr_t(from) | bytes) % 16) fail("%s: addresses and size must be multiples of 16", function);
  if (!is_shared(to, bytes)) fail("%s: the destination is not shared memory", function);
  if (bytes) {
    const auto* const source = static_cast<const volatile char*>(from);
    (void)source[0];
    (void)source[bytes - 1];
  }
  fill_with_garbage(to, bytes);
  return {to, from, bytes};
}

}  // namespace

// ---- groups of 16-byte copies

void async_copy16(void* shared, const void* global) {
  current->copies.push_back(start("async_copy16", shared, global, 16));
}

void async_commit() { current->groups.push_back(current->copies.size()); }

void async_wait(int pending_groups) {
  std::vector<size_t>& groups = current->groups;
  if (groups.size() <= size_t(pending_groups)) return;
  const size_t n = groups.size() - size_t(pending_groups);
  const size_t end = groups[n - 1];
  for (size_t i = 0; i < end; ++i) complete(current->copies[i]);
  current->copies.erase(current->copies.begin(), current->copies.begin() + ptrdiff_t(end));
  groups.erase(groups.begin(), groups.begin() + ptrdiff_t(n));
  for (size_t& group : groups) group -= end;
}

// ---- mbarriers

constexpr uint64_t kTag = 0xba55;
constexpr int64_t kMaxBytes = (1 << 20) - 1;

void Mbarrier::init(int arrivals) {
  if (!is_shared(this, sizeof *this)) fail("mbarrier: it is not in shared memory");
  if (arrivals < 1 || arrivals > 1024) fail("mbarrier: init with %d arrivals", arrivals);
  if (tag_ == kTag) fail("mbarrier: init for the second time");
  tag_ = kTag;
  arrivals_ = missing_ = uint64_t(arrivals);
  phase_ = 0;
  bytes_ = 0;
}

void Mbarrier::check(const char* function) const {
  if (tag_ != kTag) fail("mbarrier: %s without init, or it was overwritten", function);
}

void Mbarrier::arrive() {
  interleave();
  check("arrive");
  if (missing_ == 0) fail("mbarrier: more arrivals than the %d of its phase", int(arrivals_));
  --missing_;
  end_phase_if_complete();
}

void Mbarrier::expect_bytes(uint32_t bytes) {
  check("expect_bytes");
  add_bytes(bytes);
  arrive();
}

void Mbarrier::wait(unsigned parity) {
  if (parity > 1) fail("mbarrier: wait for parity %u", parity);
  interleave();
  check("wait");
  while (phase_ == parity) {  // looks again: the next phase may have ended too
    sleepers.push_back(current);
    suspend({"mbarrier", 0, this, parity});
    check("wait");
  }
}

void Mbarrier::add_bytes(int64_t bytes) {
  const int64_t sum = bytes_ + bytes;
  if (sum > kMaxBytes || sum < -kMaxBytes)
    fail("mbarrier: %lld bytes under way are too many", static_cast<long long>(sum));
  bytes_ = sum;
}

void Mbarrier::end_phase_if_complete() {
  if (missing_ || bytes_) return;
  missing_ = arrivals_;
  phase_ ^= 1;
  for (size_t i = sleepers.size(); i > 0; --i) {
    if (sleepers[i - 1]->wait.barrier != this) continue;
    release(&sleepers[i - 1], 1);
    sleepers.erase(sleepers.begin() + ptrdiff_t(i - 1));
  }
}

std::string Mbarrier::describe() const {
  char line[100];
  snprintf(line, sizeof line, "is in phase %d and lacks %d of %d arrivals and %lld bytes", int(phase_), int(missing_),
           int(arrivals_), static_cast<long long>(bytes_));
  return line;
}

// ---- bulk copies

void bulk_copy(void* shared, const void* global, uint32_t bytes, Mbarrier& barrier) {
  barrier.check("bulk_copy");
  bulk_copies.push_back({start("bulk_copy", shared, global, bytes), &barrier});
}

bool bulk_copies_pending() { return !bulk_copies.empty(); }

void complete_a_bulk_copy() {
  std::swap(bulk_copies[dice.below(bulk_copies.size())], bulk_copies.back());
  const BulkCopy done = bulk_copies.back();
  bulk_copies.pop_back();
  done.barrier->check("a bulk copy");
  complete(done.copy);
  done.barrier->add_bytes(-int64_t(done.copy.bytes));
  done.barrier->end_phase_if_complete();
}

void forget_copies() {
  bulk_copies.clear();
  sleepers.clear();
}

}  // namespace emu
