// Asynchronous copies from global to shared memory; csrc/cuda/async.h has the contract.
//
// A copy takes its time: from its start its destination holds garbage, and the data come as late as they may.
#pragma once
#include <cstdint>
#include <string>

namespace emu {

void async_copy16(void* shared, const void* global);
void async_commit();
void async_wait(int pending_groups);

class Mbarrier {
 public:
  void init(int arrivals);
  void arrive();
  void expect_bytes(uint32_t bytes);
  void wait(unsigned parity);

  std::string describe() const;  // "is in phase ..."

 private:
  friend void bulk_copy(void*, const void*, uint32_t, Mbarrier&);
  friend void complete_a_bulk_copy();

  void check(const char* function) const;  // that this is an mbarrier
  void add_bytes(int64_t bytes);           // negative where a copy has completed
  void end_phase_if_complete();

  uint64_t tag_ : 16;  // kTag, once initialised
  uint64_t arrivals_ : 12;
  uint64_t missing_ : 12;  // arrivals
  uint64_t phase_ : 1;     // the parity of the phase under way
  int64_t bytes_ : 23;     // still to come
};
static_assert(sizeof(Mbarrier) == 8, "as on the device");

void bulk_copy(void* shared, const void* global, uint32_t bytes, Mbarrier& barrier);

// ---- for the scheduler

bool bulk_copies_pending();
void complete_a_bulk_copy();
void forget_copies();

}  // namespace emu
