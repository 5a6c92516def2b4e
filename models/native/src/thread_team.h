// The threads of one forward pass, with work stealing between barriers.
//
// A pass is a sequence of phases. A phase is a parallel loop over items, cut into chunks. Every thread runs the same
// sequence. In a phase, a thread first takes the chunks of its own share, then the chunks that are left of the other
// shares. The phase ends when all items are done, not when all threads have arrived. So a preempted thread is waited
// for only if it holds an unfinished chunk. When it runs again, it skips the phases that are over.
//
// OpenMP provides the threads, once a pass. It does not do the waiting: its barriers spin for milliseconds. On a CPU
// that other processes use too, this keeps the very thread from running that is waited for.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <type_traits>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "cpu_affinity.h"

namespace headrace {

inline void cpu_relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The current phase, and the chunks of it that are taken.
class PhaseBarrier {
 public:
  static constexpr uint32_t kFirst = 1;

  CpuAffinity affinity;

  // Takes the next free chunk of a thread's share and returns its number; -1 if none is left or the phase is over.
  int64_t take_chunk(int owner, uint32_t phase, int64_t chunks) {
    std::atomic<uint64_t>& taken = shares_[owner].taken;
    for (uint64_t seen = taken.load(std::memory_order_relaxed);;) {
      const uint32_t seen_phase = seen >> 32;
      const int64_t next = seen_phase == phase ? (uint32_t)seen : 0;
      if (seen_phase > phase || next >= chunks) return -1;
      if (taken.compare_exchange_weak(seen, (uint64_t)phase << 32 | (uint64_t)(next + 1), std::memory_order_relaxed))
        return next;
    }
  }

  void enter(int rank, uint32_t phase) { shares_[rank].working_in.store(phase, std::memory_order_release); }

  // Adds `count` finished items. The call that completes `total` ends the phase.
  void finish_items(uint32_t phase, int64_t count, int64_t total) {
    if (finished_.fetch_add(count, std::memory_order_acq_rel) + count < total) return;
    finished_.store(0, std::memory_order_relaxed);
    set_and_notify(phase_, phase + 1);
  }

  // Waits until the phase is over, which is until the threads that hold a chunk of it have finished.
  void wait(int rank, int size, uint32_t phase) {
    shares_[rank].working_in.store(kIdle, std::memory_order_release);
    wait_for_change(phase_, phase, rank, size, [&](int other) { return working_in(other) == phase; });
  }

  // Waits until all threads have called this.
  void leave(int rank, int size) {
    shares_[rank].working_in.store(kLeft, std::memory_order_release);
    if (num_left_.fetch_add(1, std::memory_order_acq_rel) + 1 == size)
      set_and_notify(is_over_, 1);
    else
      wait_for_change(is_over_, 0, rank, size, [&](int other) { return working_in(other) != kLeft; });
  }

 private:
  using Counter = std::atomic<uint32_t>;

  static constexpr int kSpins = 1000;
  static constexpr std::chrono::milliseconds kSleep{2};  // before the next look for preempted threads
  static constexpr uint32_t kIdle = 0, kLeft = ~0u;

  uint32_t working_in(int rank) const { return shares_[rank].working_in.load(std::memory_order_acquire); }

  void set_and_notify(Counter& counter, uint32_t value) {
    {
      std::lock_guard lock(mutex_);
      counter.store(value, std::memory_order_release);
    }
    changed_.notify_all();
  }

  // Waits until the counter changes: spins for some tens of microseconds, then sleeps. std::atomic's wait is not used:
  // GCC's notify may look for sleepers before its store is visible, and both threads of a pass slept for ever in it.
  template <class IsWorking>
  void wait_for_change(const Counter& counter, uint32_t old, int rank, int size, const IsWorking& is_working) {
    const auto spin = [&] { return spin_for_change(counter, old); };
    while (!spin() && !affinity.help_preempted(rank, size, is_working, spin)) {
      std::unique_lock lock(mutex_);
      if (changed_.wait_for(lock, kSleep, [&] { return counter.load(std::memory_order_acquire) != old; })) return;
    }
  }

  static bool spin_for_change(const Counter& counter, uint32_t old) {
    for (int spin = 0; spin < kSpins; spin++) {
      if (counter.load(std::memory_order_acquire) != old) return true;
      cpu_relax();
    }
    return false;
  }

  alignas(64) Counter phase_{kFirst};
  alignas(64) std::atomic<int64_t> finished_{0};
  std::atomic<int> num_left_{0};
  Counter is_over_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
  struct alignas(64) Share {
    std::atomic<uint64_t> taken{0};  // the phase in the upper half, the number of chunks taken in the lower
    Counter working_in{kIdle};       // the phase in which this thread takes chunks, kIdle or kLeft
  };
  Share shares_[kMaxThreads];
};

class ThreadTeam {
 public:
  ThreadTeam(int rank, int size, PhaseBarrier& barrier) : rank_(rank), size_(size), barrier_(barrier) {}

  // Runs one phase: `work(begin, end)` for chunks of at most `chunk_size` of `count` items. Returns when all are done.
  template <class Work>
  void parallel_for(int64_t count, int64_t chunk_size, const Work& work) {
    if (count == 0) return;
    barrier_.enter(rank_, phase_);
    for (int next = 0; next < size_; next++) {
      const int owner = (rank_ + next) % size_;
      const int64_t begin = count * owner / size_, end = count * (owner + 1) / size_;
      const int64_t chunks = (end - begin + chunk_size - 1) / chunk_size;
      for (int64_t chunk; (chunk = barrier_.take_chunk(owner, phase_, chunks)) >= 0;) {
        const int64_t from = begin + chunk * chunk_size, to = std::min(end, from + chunk_size);
        work(from, to);
        barrier_.finish_items(phase_, to - from, count);
      }
    }
    barrier_.wait(rank_, size_, phase_++);
  }

  int size() const { return size_; }
  void pin() { barrier_.affinity.pin(rank_, size_); }
  void leave() { barrier_.leave(rank_, size_); }

 private:
  const int rank_, size_;
  PhaseBarrier& barrier_;
  uint32_t phase_ = PhaseBarrier::kFirst;
};

// Calls `work(team)` on each of `threads` threads.
template <class Work>
void run_team(int threads, const Work& work) {
  PhaseBarrier barrier;
#ifdef _OPENMP
#pragma omp parallel num_threads(std::min(threads, kMaxThreads))
  {
    ThreadTeam team(omp_get_thread_num(), omp_get_num_threads(), barrier);
    team.pin();
    work(team);
    team.leave();
  }
#else
  (void)threads;
  ThreadTeam team(0, 1, barrier);
  work(team);
#endif
}

// Calls `work` with `count`, 1 to R, as a compile-time constant.
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
