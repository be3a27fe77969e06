// A fiber: a stack of its own, on which a function runs until it hands over to another fiber.
#pragma once
#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emu {

#if defined(__x86_64__)
using Context = void*;  // the stack pointer; the registers lie on the stack
#else
using Context = ucontext_t;
#endif

class Fiber {
 public:
  Fiber() = default;  // also stands for the stack of the operating system's thread
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next to hand over to this fiber makes it run `entry`, which must never return. What ran here is forgotten.
  void start(void (*entry)());

  // Leaves this fiber, on which the caller runs, for `to`; returns when another fiber hands over to this one.
  void hand_over(Fiber& to);

 private:
  static void first_steps();
  void arrived();

  Context context_{};
  void (*entry_)() = nullptr;
  char* own_stack_ = nullptr;
  // Where the fiber runs; AddressSanitizer has to be told at every hand-over.
  const void* bottom_ = nullptr;
  size_t size_ = 0;
  void* fake_stack_ = nullptr;
};

}  // namespace emu
