// The threads of one pass: each has a share of every phase, helps who is held up, and waits for all between phases.
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
#ifdef __linux__
#include <sched.h>

#include <vector>
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

constexpr int kMostThreads = 256;

// Where threads meet: they look for each other for some tens of microseconds, then sleep.
class Meeting {
 public:
  void wait(int size) {
    const uint32_t round = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
      arrived_.store(0, std::memory_order_relaxed);
      for (int rank = 0; rank < size; rank++) lists_[rank].taken.store(0, std::memory_order_relaxed);
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

  // The number of the next piece on a thread's list that nobody has taken since the last meeting.
  int64_t take(int rank = 0) { return lists_[rank].taken.fetch_add(1, std::memory_order_relaxed); }

 private:
  static constexpr int kLooks = 1000;
  alignas(64) std::atomic<uint32_t> round_{0};
  alignas(64) std::atomic<int> arrived_{0};
  struct alignas(64) List {
    std::atomic<int64_t> taken{0};
  };
  List lists_[kMostThreads];
};

struct Team {
  int rank, size;
  Meeting* meeting;

  Range share(int64_t count) const { return share_of(rank, count); }

  // Calls `work(begin, end)` for pieces of at most `most`: this thread's share, then what is left of the others'. A
  // thread whose processor is taken away for a while finds the rest of its share done.
  template <class Work>
  void pieces(int64_t count, int64_t most, const Work& work) const {
    for (int next = 0; next < size; next++) {
      const int whose = (rank + next) % size;
      const Range range = share_of(whose, count);
      for (int64_t begin; (begin = range.begin + most * meeting->take(whose)) < range.end;)
        work(begin, std::min(range.end, begin + most));
    }
  }

  void wait() const { meeting->wait(size); }

 private:
  Range share_of(int whose, int64_t count) const { return {count * whose / size, count * (whose + 1) / size}; }
};

#ifdef __linux__
inline std::vector<int> allowed_cpus() {
  std::vector<int> found;
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0)
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
      if (CPU_ISSET(cpu, &set)) found.push_back(cpu);
  return found;
}
#endif

// Where there is a thread for each CPU, each keeps to its own. A thread that wakes while another process has its CPU for
// a moment is otherwise put behind the very thread that waits for it, and stays there while its CPU idles.
inline void keep_to_own_cpu(int rank, int size) {
#ifdef __linux__
  static const std::vector<int> allowed = allowed_cpus();
  static thread_local int kept = -1;
  if (size == 1 || size != (int)allowed.size() || kept == rank) return;
  cpu_set_t own;
  CPU_ZERO(&own);
  CPU_SET(allowed[rank], &own);
  sched_setaffinity(0, sizeof own, &own);  // only a hint: refused, the pass goes on as before
  kept = rank;
#endif
}

template <class Work>
void together(int threads, const Work& work) {
  Meeting meeting;
#ifdef _OPENMP
#pragma omp parallel num_threads(std::min(threads, kMostThreads))
  {
    const Team team{omp_get_thread_num(), omp_get_num_threads(), &meeting};
    keep_to_own_cpu(team.rank, team.size);
    work(team);
  }
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
