#include "block.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "async_copy.h"

namespace emu {

struct Warp {
  Thread* lanes[32];
  unsigned alive;  // lanes that have not exited
  std::vector<Meeting> meetings;
};

namespace {

// Kernels run one at a time, and their blocks one after another.
struct Block {
  std::vector<std::unique_ptr<Thread>> pool;  // stacks are kept from launch to launch
  std::vector<Thread*> threads;
  std::vector<Warp> warps;
  size_t alive = 0;  // threads that have not exited
  Ready ready;
  Fiber outside;  // where run_block runs
  const std::function<void()>* body = nullptr;
  std::exception_ptr error;

  std::vector<Thread*> at_barrier;
  const char* barrier = nullptr;  // which of the __syncthreads functions they are at
  int ayes = 0;
  Votes votes{};
} block;

// ---- words

std::string text(const char* format, va_list arguments) {
  char line[400];
  vsnprintf(line, sizeof line, format, arguments);
  return line;
}

__attribute__((format(printf, 1, 2))) std::string text(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::string result = text(format, arguments);
  va_end(arguments);
  return result;
}

std::string text(const uint3& index) { return text("(%u, %u, %u)", index.x, index.y, index.z); }

std::string text(const Wait& wait) {
  if (wait.barrier) return text("phase %u of an mbarrier that ", wait.parity) + wait.barrier->describe();
  return wait.mask ? text("%s with mask 0x%08x", wait.at, wait.mask) : wait.at;
}

// "0-15, 17": ascending numbers.
std::string ranges(const std::vector<size_t>& numbers) {
  std::string result;
  for (size_t i = 0; i < numbers.size();) {
    size_t end = i + 1;
    while (end < numbers.size() && numbers[end] == numbers[end - 1] + 1) ++end;
    if (i) result += ", ";
    result += std::to_string(numbers[i]);
    if (end > i + 1) result += "-" + std::to_string(numbers[end - 1]);
    i = end;
  }
  return result;
}

[[noreturn]] void fail_deadlocked() {
  std::map<std::string, std::vector<size_t>> waiting;
  for (size_t i = 0; i < block.threads.size(); ++i)
    if (!block.threads[i]->exited) waiting[text(block.threads[i]->wait)].push_back(i);
  std::string places;
  for (const auto& [place, threads] : waiting)
    places += text("; %zu at ", threads.size()) + place + " (threads " + ranges(threads) + ")";
  throw std::runtime_error("emulated kernel: deadlock in block " + text(blockIdx) +
                           text(", %zu threads: %zu exited", block.threads.size(), block.threads.size() - block.alive) +
                           places);
}

bool same(const char* a, const char* b) { return a == b || strcmp(a, b) == 0; }

// ---- switching

// Leaves `from` for a thread that can go on, or for run_block.
void go_on(Fiber& from) {
  if (block.ready.empty() || block.error) {
    current = nullptr;
    from.hand_over(block.outside);
    return;
  }
  current = block.ready.take();
  threadIdx = current->index;
  if (&current->fiber != &from) from.hand_over(current->fiber);
}

void open_barrier() {
  block.votes = {int(block.at_barrier.size()), block.ayes};
  block.ready.add(block.at_barrier.data(), block.at_barrier.size());
  block.at_barrier.clear();
  block.ayes = 0;
}

// The one that is under way with this mask, or a new one.
Meeting& meeting_of(Warp& warp, const char* name, Combine combine, unsigned mask) {
  for (Meeting& meeting : warp.meetings)
    if (meeting.mask == mask) return meeting;
  Meeting& meeting = warp.meetings.emplace_back();
  meeting.name = name;
  meeting.combine = combine;
  meeting.mask = mask;
  meeting.here = 0;
  return meeting;
}

// Lets the lanes go, if all have come.
void close_if_complete(Warp& warp, Meeting& meeting) {
  if (meeting.mask & warp.alive & ~meeting.here) return;
  meeting.combine(meeting);
  Thread* lanes[32];
  size_t n = 0;
  meeting.for_each_lane([&](int lane) { lanes[n++] = warp.lanes[lane]; });
  block.ready.add(lanes, n);
  if (&meeting != &warp.meetings.back()) meeting = warp.meetings.back();
  warp.meetings.pop_back();
}

void exit_thread(Thread& thread) {
  Warp& warp = *thread.warp;
  thread.exited = true;
  warp.alive &= ~(1u << thread.lane);
  for (size_t i = warp.meetings.size(); i > 0; --i) close_if_complete(warp, warp.meetings[i - 1]);
  if (--block.alive == block.at_barrier.size() && block.alive) open_barrier();
}

void run_thread() {
  try {
    (*block.body)();
    exit_thread(*current);
  } catch (...) {  // nothing may be unwound past here
    block.error = std::current_exception();
  }
  go_on(current->fiber);
}

}  // namespace

void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const std::string what = text(format, arguments);
  va_end(arguments);
  const std::string thread = current ? ", thread " + text(current->index) : "";
  throw std::runtime_error("emulated kernel, block " + text(blockIdx) + thread + ": " + what);
}

// ---- waiting

void suspend(const Wait& wait) {
  current->wait = wait;
  if (bulk_copies_pending() && block.ready.chance()) complete_a_bulk_copy();
  go_on(current->fiber);
}

void release(Thread* const* threads, size_t n) { block.ready.add(threads, n); }

void interleave() {
  if (block.ready.empty() || !block.ready.chance()) return;
  block.ready.put_back(current);
  go_on(current->fiber);
}

Votes sync_block(const char* name, bool aye) {
  if (block.at_barrier.empty())
    block.barrier = name;
  else if (!same(block.barrier, name))
    fail("%s while other threads are at %s", name, block.barrier);
  block.at_barrier.push_back(current);
  block.ayes += aye;
  if (block.at_barrier.size() == block.alive) open_barrier();
  suspend({name, 0, nullptr, 0});
  return block.votes;
}

void meet(const char* name, Combine combine, unsigned mask, void* part) {
  Warp& warp = *current->warp;
  const unsigned bit = 1u << current->lane;
  if (!(mask & bit)) fail("%s: lane %d is not in its own mask 0x%08x", name, current->lane, mask);
  Meeting& meeting = meeting_of(warp, name, combine, mask);
  if (meeting.combine != combine || !same(meeting.name, name))
    fail("%s while other lanes of mask 0x%08x are at %s (or at the same with another type)", name, mask, meeting.name);
  meeting.here |= bit;
  meeting.parts[current->lane] = part;
  close_if_complete(warp, meeting);
  suspend({name, mask, nullptr, 0});
}

// ---- one block

void prepare_threads(dim3 shape) {
  const size_t n = size_t(shape.x) * shape.y * shape.z;
  while (block.pool.size() < n) block.pool.push_back(std::make_unique<Thread>());
  block.threads.resize(n);
  block.warps.assign((n + 31) / 32, {});
  for (size_t i = 0; i < n; ++i) {
    Thread& thread = *(block.threads[i] = block.pool[i].get());
    thread.index = {unsigned(i % shape.x), unsigned(i / shape.x % shape.y), unsigned(i / shape.x / shape.y)};
    thread.lane = int(i % 32);
    thread.warp = &block.warps[i / 32];
    thread.warp->lanes[thread.lane] = &thread;
  }
}

void run_block(const std::function<void()>& body, Order order) {
  const size_t n = block.threads.size();
  block.body = &body;
  block.alive = n;
  block.error = nullptr;
  block.at_barrier.clear();
  block.ayes = 0;
  for (Warp& warp : block.warps) {
    warp.alive = 0;
    warp.meetings.clear();
  }
  for (Thread* const thread : block.threads) {
    thread->exited = false;
    thread->warp->alive |= 1u << thread->lane;
    thread->copies.clear();
    thread->groups.clear();
    thread->fiber.start(run_thread);
  }
  forget_copies();
  block.ready.clear(order);
  block.ready.add(block.threads.data(), n);
  while (block.alive) {
    while (block.ready.empty()) {
      if (!bulk_copies_pending()) fail_deadlocked();
      complete_a_bulk_copy();
    }
    go_on(block.outside);
    if (block.error) std::rethrow_exception(std::exchange(block.error, nullptr));
  }
  if (bulk_copies_pending()) fail("the block ends while a bulk copy is under way");
}

}  // namespace emu
