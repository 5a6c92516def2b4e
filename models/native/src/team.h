// The threads of one pass: each takes its share of every phase, and all wait for each other between phases.
//
// OpenMP lends the threads once a pass. The waiting between phases is ours: OpenMP's spins for milliseconds, and on a
// CPU that others use as well that is spent on keeping the very thread from running that is waited for.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <type_traits>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace headrace {

struct Range {
  int64_t begin, end;
};

inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Where threads meet: they look for each other for some tens of microseconds, then sleep.
class Meeting {
 public:
  void wait(int size) {
    const uint32_t round = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
      arrived_.store(0, std::memory_order_relaxed);
      taken_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      round_.notify_all();
      return;
    }
    for (int look = 0; look < kLooks; look++) {
      if (round_.load(std::memory_order_acquire) != round) return;
      pause_briefly();
    }
    round_.wait(round, std::memory_order_acquire);
  }

  // The next piece of work that nobody has taken since the last meeting.
  int64_t take() { return taken_.fetch_add(1, std::memory_order_relaxed); }

 private:
  static constexpr int kLooks = 1000;
  alignas(64) std::atomic<uint32_t> round_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int64_t> taken_{0};
};

struct Team {
  int rank, size;
  Meeting* meeting;

  Range share(int64_t count) const { return {count * rank / size, count * (rank + 1) / size}; }

  void wait() const { meeting->wait(size); }
};

template <class Work>
void together(int threads, const Work& work) {
  Meeting meeting;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
  work(Team{omp_get_thread_num(), omp_get_num_threads(), &meeting});
#else
  (void)threads;
  work(Team{0, 1, &meeting});
#endif
}

// Calls `work` with `count` as a constant of the compiler's, from 1 up to R.
template <int R, class Work>
void with_constant(int count, const Work& work) {
  if constexpr (R > 0) {
    if (count == R)
      work(std::integral_constant<int, R>{});
    else
      with_constant<R - 1>(count, work);
  }
}

}  // namespace headrace
