#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emu {

#if defined(__x86_64__)

// Pushes the registers that a function has to keep, stores the stack pointer in *save, and goes on where the stack
// pointer `load` was stored.
extern "C" void emu_switch_stack(void** save, void* load);
asm(R"(
.text
.type emu_switch_stack, @function
emu_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch_stack, . - emu_switch_stack
)");

namespace {

void prepare(Context& context, char* stack, size_t size, void (*function)()) {
  auto** top = reinterpret_cast<void**>(stack + size);
  *--top = nullptr;  // where the function would return to
  *--top = reinterpret_cast<void*>(function);
  for (int i = 0; i < 6; ++i) *--top = nullptr;  // the registers
  context = top;
}

void switch_to(Context& from, Context& to) { emu_switch_stack(&from, to); }

#else

namespace {

void prepare(Context& context, char* stack, size_t size, void (*function)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = size;
  context.uc_link = nullptr;
  makecontext(&context, function, 0);
}

void switch_to(Context& from, Context& to) { swapcontext(&from, &to); }

#endif

constexpr size_t kStackBytes = 64 << 10;

// The fibers of the last hand-over; kernels run on one thread of the operating system at a time.
Fiber *left = nullptr, *entered = nullptr;

size_t page() {
  static const auto bytes = size_t(sysconf(_SC_PAGESIZE));
  return bytes;
}

// Below the stack lies a page that must not be touched: an overflow crashes instead of spoiling another stack.
char* new_stack() {
  void* const memory =
      mmap(nullptr, page() + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, page(), PROT_NONE) != 0) throw std::bad_alloc();
  return static_cast<char*>(memory) + page();
}

// If all stacks began at the same distance from a page border, their tops would share a few sets of the cache.
size_t next_size() {
  static size_t stacks = 0;
  return kStackBytes - stacks++ % 32 * 128;
}

}  // namespace

Fiber::~Fiber() {
  if (own_stack_) munmap(own_stack_ - page(), page() + kStackBytes);
}

void Fiber::start(void (*entry)()) {
  entry_ = entry;
  if (!own_stack_) {
    bottom_ = own_stack_ = new_stack();
    size_ = next_size();
  }
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(own_stack_, size_);  // its last function may have been left in the middle
#endif
  prepare(context_, own_stack_, size_, &first_steps);
}

void Fiber::first_steps() {
  entered->fake_stack_ = nullptr;
  entered->arrived();
  entered->entry_();
}

void Fiber::hand_over(Fiber& to) {
  left = this;
  entered = &to;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fake_stack_, to.bottom_, to.size_);
#endif
  switch_to(context_, to.context_);
  arrived();
}

void Fiber::arrived() {
#if defined(__SANITIZE_ADDRESS__)
  // Also says where the stack is that was left: of the operating system's thread nobody else knows it.
  __sanitizer_finish_switch_fiber(fake_stack_, &left->bottom_, &left->size_);
#endif
}

}  // namespace emu
