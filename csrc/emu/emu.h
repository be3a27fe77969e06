// cuda_emu.h - run CUDA C++ kernels on the CPU for tests: one fiber per CUDA thread, blocks one after another
// (per OS thread).  Kernel sources stay CUDA C++; only three things go through macros in both builds:
//   SK_LAUNCH(kernel, grid, block, smem_bytes, stream, args...)   SK_DYN_SMEM(T, name)   and PTX-only primitives.
#pragma once
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <cstdio>
#include <cmath>
#include <functional>
#include <memory>
#include <stdexcept>
#include <algorithm>
#include <type_traits>
#include <vector>
struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {} };
struct float2 { float x, y; }; struct alignas(16) float4 { float x, y, z, w; }; struct int2 { int x, y; }; struct alignas(16) int4 { int x, y, z, w; };
#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __launch_bounds__
#undef __forceinline__
#undef __grid_constant__
#undef __restrict__
#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static thread_local        // blocks of one OS thread run one after another, so this is per block

namespace emu {
// ---- context switch (x86-64 SysV): saves callee-saved registers, swaps stacks ----
extern "C" void emu_switch(void** save_sp, void* load_sp);
#ifdef EMU_IMPL
asm(".text\n.globl emu_switch\n.type emu_switch,@function\nemu_switch:\n"
    " pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
    " movq %rsp,(%rdi)\n movq %rsi,%rsp\n"
    " popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
#endif
struct Warp;
struct Fiber { void* sp = nullptr; void* stack = nullptr; uint3 tid{}; int lane = 0; Warp* warp = nullptr; bool done = false; uint64_t ticket = 0, released = 0; bool block_wait = false; bool (*poll)(const void*) = nullptr; const void* poll_arg = nullptr; };
struct Warp { uint32_t arrived = 0; Fiber* lane[32] = {}; alignas(16) unsigned char slot[2][32][16]; unsigned parity[32] = {}; };
struct Block {
  dim3 grid, dim; uint3 bid{}; std::vector<Fiber> f; std::vector<Warp> w; Fiber* cur = nullptr; void* main_sp = nullptr;
  int live = 0, at_barrier = 0, bar_or = 0, bar_and = 1, bar_cnt = 0, res_or = 0, res_and = 0, res_cnt = 0; std::vector<char> dyn; const std::function<void()>* body = nullptr;
};
inline Block*& B() { static thread_local Block* b = nullptr; return b; }
constexpr size_t kStack = 64 << 10;
inline void yield() { Block* b = B(); Fiber* me = b->cur; emu_switch(&me->sp, b->main_sp); }
inline void release_block(Block* b) { b->res_or = b->bar_or; b->res_and = b->bar_and; b->res_cnt = b->bar_cnt; b->bar_or = 0; b->bar_and = 1; b->bar_cnt = 0; b->at_barrier = 0; for (auto& f : b->f) if (f.block_wait) { f.block_wait = false; f.released++; } }
inline void entry() {
  Block* b = B(); (*b->body)(); Fiber* me = b->cur; me->done = true; --b->live;
  if (b->live && b->at_barrier == b->live) release_block(b);
  void* dead; emu_switch(&dead, b->main_sp); abort();
}
inline int sync_block(int pred) {
  Block* b = B(); Fiber* me = b->cur; b->bar_or |= !!pred; b->bar_and &= !!pred; b->bar_cnt += !!pred;
  me->block_wait = true; me->ticket++; if (++b->at_barrier == b->live) release_block(b);
  while (me->released < me->ticket) yield();
  return b->res_cnt;
}
inline void sync_warp(uint32_t mask) {
  Fiber* me = B()->cur; Warp* w = me->warp;
  if (!(mask >> me->lane & 1)) throw std::runtime_error("lane not in its own sync mask");
  w->arrived |= 1u << me->lane; me->ticket++;
  if ((w->arrived & mask) == mask) { w->arrived &= ~mask; for (int l = 0; l < 32; ++l) if (mask >> l & 1) w->lane[l]->released++; }
  while (me->released < me->ticket) yield();
}
// exchange: every lane of mask publishes v; returns the slot array of this round
template <class T> inline T exch(uint32_t mask, const T& v, int src) {
  static_assert(sizeof(T) <= 16, ""); Fiber* me = B()->cur; Warp* w = me->warp; unsigned p = w->parity[me->lane]++ & 1;
  memcpy(w->slot[p][me->lane], &v, sizeof(T)); sync_warp(mask); T r; memcpy(&r, w->slot[p][src], sizeof(T)); return r;
}
template <class T, class F> inline void gather(uint32_t mask, const T& v, F f) {
  Fiber* me = B()->cur; Warp* w = me->warp; unsigned p = w->parity[me->lane]++ & 1; memcpy(w->slot[p][me->lane], &v, sizeof(T)); sync_warp(mask);
  for (int l = 0; l < 32; ++l) if (mask >> l & 1) { T t; memcpy(&t, w->slot[p][l], sizeof(T)); f(l, t); }
}
inline void run(dim3 grid, dim3 dim, size_t smem, const std::function<void()>& body) {
  static thread_local std::vector<std::unique_ptr<char[]>> stacks; int n = dim.x * dim.y * dim.z;
  while ((int)stacks.size() < n) stacks.emplace_back(new char[kStack]);
  Block blk; Block* b = &blk; B() = b; b->grid = grid; b->dim = dim; b->body = &body; b->f.resize(n); b->w.resize((n + 31) / 32);
  b->dyn.resize(smem + 1024);
  for (unsigned z = 0; z < grid.z; ++z) for (unsigned y = 0; y < grid.y; ++y) for (unsigned x = 0; x < grid.x; ++x) {
    b->bid = {x, y, z}; b->live = n; b->at_barrier = 0; for (auto& w : b->w) w = Warp{};
    memset(b->dyn.data(), 0xA5, b->dyn.size());                       // shared memory is garbage at block start
    for (int i = 0; i < n; ++i) {
      Fiber& f = b->f[i]; f = Fiber{}; f.tid = {i % dim.x, i / dim.x % dim.y, i / (dim.x * dim.y)}; f.lane = i % 32; f.warp = &b->w[i / 32]; f.warp->lane[f.lane] = &f;
      void** sp = (void**)(((uintptr_t)stacks[i].get() + kStack) & ~15ull); *--sp = nullptr; *--sp = (void*)entry; sp -= 6; memset(sp, 0, 48); f.sp = sp;
    }
    while (b->live) { bool ran = false;
      for (int i = 0; i < n; ++i) { Fiber& f = b->f[i]; if (f.done || f.released < f.ticket || (f.poll && !f.poll(f.poll_arg))) continue; f.poll = nullptr; ran = true; b->cur = &f; emu_switch(&b->main_sp, f.sp); }
      if (!ran) { fprintf(stderr, "emu: deadlock in block (%u,%u,%u): %d live, %d at __syncthreads\n", x, y, z, b->live, b->at_barrier); abort(); }
    }
  }
  B() = nullptr;
}
template <class P> inline void wait_until(const P& p) { if (p()) return; Fiber* me = B()->cur; me->poll = [](const void* q) -> bool { return (*(const P*)q)(); }; me->poll_arg = &p; yield(); }
template <class T> inline T* dyn() { return (T*)(((uintptr_t)B()->dyn.data() + 1023) & ~1023ull); }
template <class T, class F> inline T fetch(T* p, F f) { T o = __atomic_load_n(p, __ATOMIC_RELAXED); T n = f(o); while (!__atomic_compare_exchange(p, &o, &n, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) n = f(o); return o; }
template <class F> inline float fetchf(float* p, F f) { uint32_t* q = (uint32_t*)p; uint32_t o = __atomic_load_n(q, __ATOMIC_RELAXED), n; float of; do { memcpy(&of, &o, 4); float nf = f(of); memcpy(&n, &nf, 4); } while (!__atomic_compare_exchange(q, &o, &n, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)); return of; }
}  // namespace emu
#define threadIdx (emu::B()->cur->tid)
#define blockIdx (emu::B()->bid)
#define blockDim (emu::B()->dim)
#define gridDim (emu::B()->grid)
#define warpSize 32
#define SK_DYNAMIC_SHARED(T, name) T* const name = emu::dyn<T>()
inline void __syncthreads() { emu::sync_block(0); }
inline int __syncthreads_count(int p) { return emu::sync_block(p); }
inline int __syncthreads_or(int p) { emu::sync_block(p); return emu::B()->res_or; }
inline void __syncwarp(uint32_t m = ~0u) { emu::sync_warp(m); }
inline int emu_lane() { return emu::B()->cur->lane; }
template <class T> inline T __shfl_sync(uint32_t m, T v, int s, int w = 32) { int l = emu_lane(); return emu::exch(m, v, (l & ~(w - 1)) | (s & (w - 1))); }
template <class T> inline T __shfl_down_sync(uint32_t m, T v, unsigned d, int w = 32) { int l = emu_lane(), s = (l & (w - 1)) + d < (unsigned)w ? l + d : l; return emu::exch(m, v, s); }
template <class T> inline T __shfl_up_sync(uint32_t m, T v, unsigned d, int w = 32) { int l = emu_lane(), s = (unsigned)(l & (w - 1)) >= d ? l - d : l; return emu::exch(m, v, s); }
template <class T> inline T __shfl_xor_sync(uint32_t m, T v, int x, int w = 32) { int l = emu_lane(); return emu::exch(m, v, l ^ x); }
inline uint32_t __ballot_sync(uint32_t m, int p) { uint32_t r = 0; emu::gather(m, p, [&](int l, int q) { r |= uint32_t(!!q) << l; }); return r; }
inline int __any_sync(uint32_t m, int p) { return __ballot_sync(m, p) != 0; }
inline int __all_sync(uint32_t m, int p) { return __ballot_sync(m, p) == m; }
template <class T> inline uint32_t __match_any_sync(uint32_t m, T v) { uint32_t r = 0; emu::gather(m, v, [&](int l, T q) { r |= uint32_t(q == v) << l; }); return r; }
inline unsigned __reduce_add_sync(uint32_t m, unsigned v) { unsigned r = 0; emu::gather(m, v, [&](int, unsigned q) { r += q; }); return r; }
template <class T> inline T __ldg(const T* p) { return *p; }
template <class T> inline void __stwb(T* p, T v) { *p = v; }
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __ffs(uint32_t x) { return __builtin_ffs(x); }
inline int __clz(uint32_t x) { return x ? __builtin_clz(x) : 32; }
inline uint32_t __float_as_uint(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
inline float __uint_as_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
inline void __threadfence() {} 
inline void __threadfence_block() {}
inline int atomicAdd(int* p, int v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
inline unsigned atomicAdd(unsigned* p, unsigned v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
inline float atomicAdd(float* p, float v) { return emu::fetchf(p, [=](float o) { return o + v; }); }
inline int atomicMax(int* p, int v) { return emu::fetch(p, [=](int o) { return o > v ? o : v; }); }
inline unsigned atomicCAS(unsigned* p, unsigned c, unsigned v) { __atomic_compare_exchange_n(p, &c, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED); return c; }
template <class A, class C> __attribute__((always_inline)) inline std::common_type_t<A, C> min(A a, C c) { return a < c ? a : c; }
template <class A, class C> __attribute__((always_inline)) inline std::common_type_t<A, C> max(A a, C c) { return a < c ? c : a; }

// ---- interim: types
using cudaStream_t = void*;
struct alignas(8) uint2 { unsigned x, y; }; struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) double2 { double x, y; };
struct __nv_bfloat16 { uint16_t bits; };
struct __half { _Float16 value; };
inline float __bfloat162float(__nv_bfloat16 v) { return __uint_as_float(uint32_t(v.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  uint32_t u = __float_as_uint(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {uint16_t((u >> 16) | 0x40)};
  return {uint16_t((u + 0x7fffu + ((u >> 16) & 1)) >> 16)};
}
inline float __half2float(__half v) { return float(v.value); }
inline __half __float2half_rn(float f) { return {_Float16(f)}; }
inline unsigned long long atomicMin(unsigned long long* p, unsigned long long v) { return emu::fetch(p, [=](unsigned long long o) { return o < v ? o : v; }); }
inline unsigned long long atomicAdd(unsigned long long* p, unsigned long long v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
inline unsigned atomicOr(unsigned* p, unsigned v) { return __atomic_fetch_or(p, v, __ATOMIC_RELAXED); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline unsigned __reduce_max_sync(uint32_t m, unsigned v) { unsigned r = 0; emu::gather(m, v, [&](int, unsigned q) { r = r > q ? r : q; }); return r; }
inline unsigned __reduce_min_sync(uint32_t m, unsigned v) { unsigned r = ~0u; emu::gather(m, v, [&](int, unsigned q) { r = r < q ? r : q; }); return r; }
