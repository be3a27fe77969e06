// How csr_tile.h cuts a problem: a pure function of shapes and of the device's limits.
#pragma once
#include "sparsekern/types.h"

namespace sk {
namespace cuda {

constexpr int kSegmentBytes = 64;  // of shared memory per feature of a tile
constexpr int kRowsWhole = 2;      // rows of a group at a time where all features fit in shared memory,
constexpr int kRowsSplit = 8;      // and where they do not: more rows per pass over the panels
template <int kRows>
constexpr int kTileThreads = kRows == kRowsWhole ? 512 : 384;  // as many as their registers allow

struct TileProblem {
  int64_t rows, cols, nnz, tokens;
  DType dtype;
  bool sampled;  // the partial sums of a block are kept
  int multiprocessors;
  int64_t shared_bytes;  // that a block can have
};

struct TilePlan {
  int64_t panel_cols;    // features in shared memory at a time
  int panels;            // passes over x
  int64_t blocks;        // blocks side by side along the tokens, each with its slice of partial sums
  int64_t shares;        // blocks that share a tile and take different rows
  int64_t shared_bytes;  // dynamic shared memory of a block
};

inline TilePlan plan_tiles(const TileProblem& p) {
  constexpr int64_t kMostSlices = 128;              // about one per multiprocessor, decided by shape: results do not
                                                    // depend on the device
  constexpr int64_t kPartialBytes = 256 << 20;      // of workspace at most
  constexpr int64_t kMostBlocks = (1ll << 31) - 1;  // of a grid
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
  const auto most = [](int64_t a, int64_t b) { return a > b ? a : b; };
  const auto stage_bytes = [](int threads) { return int64_t(threads) / 32 * 16 * kSegmentBytes; };

  TilePlan plan{};
  const int64_t whole = (p.shared_bytes - stage_bytes(kTileThreads<kRowsWhole>)) / kSegmentBytes;
  const int64_t panel = (p.shared_bytes - stage_bytes(kTileThreads<kRowsSplit>)) / kSegmentBytes / 16 * 16;
  const bool split = p.cols > whole;
  plan.panels = split ? int(ceil_div(p.cols, panel)) : 1;
  plan.panel_cols = split ? ceil_div(ceil_div(p.cols, plan.panels), 16) * 16 : p.cols;  // even, whole 16-byte loads
  plan.panels = split ? int(ceil_div(p.cols, plan.panel_cols)) : 1;
  const int threads = split ? kTileThreads<kRowsSplit> : kTileThreads<kRowsWhole>;
  plan.shared_bytes = plan.panel_cols * kSegmentBytes + stage_bytes(threads);

  const int64_t bytes = p.dtype == DType::f64 ? 8 : p.dtype == DType::f32 ? 4 : 2;
  const int64_t tiles = most(ceil_div(p.tokens * bytes, kSegmentBytes), 1);
  plan.blocks = least(tiles, kMostBlocks);
  if (p.sampled) {
    const int64_t slice_bytes = most(p.nnz, 1) * (bytes == 8 ? 8 : 4);
    plan.blocks = most(least(least(tiles, kMostSlices), kPartialBytes / slice_bytes), 1);
  }
  const int64_t rows_at_a_time = int64_t(threads) / 32 * 8 * (split ? kRowsSplit : kRowsWhole);
  plan.shares = most(least(ceil_div(p.multiprocessors, plan.blocks), ceil_div(p.rows, rows_at_a_time)), 1);
  return plan;
}

}  // namespace cuda
}  // namespace sk
