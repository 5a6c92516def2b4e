// What this machine can do at best: bytes read from memory a second, and bfloat16 operations a second, by all threads.
#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "amx.h"
#include "bf16_dot.h"
#include "simd.h"

using namespace headrace;

namespace {

constexpr int kTries = 8;

// The most of some tries of `work`, which does `amount` in each thread.
template <class Work>
double rate(int threads, double amount, const Work& work) {
  double best = 0;
  for (int n = 0; n < kTries; n++) {
    const double began = omp_get_wtime();
#pragma omp parallel num_threads(threads)
    work(omp_get_thread_num());
    best = std::max(best, threads * amount / (omp_get_wtime() - began));
  }
  return best;
}

}  // namespace

extern "C" {

// Bytes a second. Each thread reads `bytes` of its own, in huge pages; `bytes` is a multiple of 2 MB.
double read_rate(int threads, int64_t bytes) {
  char* memory = (char*)std::aligned_alloc(2 << 20, bytes * threads);
  if (!memory) return 0;
  madvise(memory, bytes * threads, MADV_HUGEPAGE);
  std::memset(memory, 1, bytes * threads);
  constexpr int kSums = 4;
  const double found = rate(threads, bytes, [&](int thread) {
    Floats sums[kSums] = {};
    const float *at = (const float*)(memory + thread * bytes), *end = at + bytes / 4;
    for (; at < end; at += kSums * kLanes) {
      for (int line = 0; line < 4; line++) __builtin_prefetch(at + 1024 + line * 16);
      for (int n = 0; n < kSums; n++) sums[n] += load(at + n * kLanes);
    }
    volatile float kept = reduce_add(sums[0] + sums[1] + sums[2] + sums[3]);
    (void)kept;
  });
  std::free(memory);
  return found;
}

// Multiplications and additions a second, of the fastest bfloat16 product that the kernels use here.
double multiply_rate(int threads) {
  constexpr int64_t kTimes = 1 << 20;
#ifdef HEADRACE_AMX
  if (has_amx())
    return rate(threads, kTimes * 4 * 2.0 * 16 * 16 * 32, [](int) {
      configure_tiles_for_linear();
      for (int64_t n = 0; n < kTimes; n++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      release_tiles();
    });
#endif
  constexpr int kSums = 10;
  return rate(threads, kTimes * kSums * 2.0 * 2 * kLanes, [](int) {
    alignas(64) static const BFloat16 zeros[2 * kLanes] = {};
    alignas(64) static const Bf16Operand pair[2] = {};
    const Bf16Pairs weights(zeros);
    Floats sums[kSums] = {};
    for (int64_t n = 0; n < kTimes; n++)
      for (int s = 0; s < kSums; s++) sums[s] = dot_add(sums[s], pair, weights);
    Floats total = {};
    for (const Floats& each : sums) total += each;
    volatile float kept = reduce_add(total);
    (void)kept;
  });
}

}  // extern "C"
