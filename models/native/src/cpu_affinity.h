// CPU affinity of a thread team, and the swap of CPUs between a waiting thread and a preempted one.
//
// If the team has one thread for each CPU, each thread is pinned to one CPU. Without pinning, Linux may queue a thread
// that wakes up behind the thread that waits for it, while its own CPU is idle. But a pinned thread cannot move away
// from a CPU that another process uses. So a waiting thread swaps CPUs with a preempted one: the work goes on at once,
// and the other process keeps the CPU of the thread that has nothing to do. Measured: docs/decisions/0006.
#pragma once

#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#endif

namespace headrace {

constexpr int kMaxThreads = 256;

#if defined(__linux__) && !defined(HEADRACE_UNPINNED)  // the flag is for benchmarks/cpu_affinity.py

class CpuAffinity {
 public:
  // Pins the calling thread, if the team has one thread for each CPU that the process may use.
  void pin(int rank, int size) {
    const std::vector<int>& cpus = allowed_cpus();
    if (size == 1 || size != (int)cpus.size()) return;
    PinnedThread& self = this_thread();
    int index = self.cpu_index < 0 ? rank : self.cpu_index;
    // Another thread of this team may have that CPU, because teams change. There are as many CPUs as threads.
    while (is_taken_[index].exchange(true)) index = (index + 1) % size;
    if (index != self.cpu_index) set_affinity(self.id, cpus[index]);
    self.cpu_index = index;
    threads_[rank].store(&self, std::memory_order_release);
  }

  // Gives the CPU of the calling thread to a thread that still works (`is_working(rank)`) but does not run.
  // `spin` waits for some microseconds and returns true if the wait is over; so does this function.
  template <class IsWorking, class Spin>
  bool help_preempted(int rank, int size, const IsWorking& is_working, const Spin& spin) {
    int other = (rank + 1) % size;
    while (other != rank && !is_working(other)) other = (other + 1) % size;
    const int64_t used_ns = other == rank ? -1 : cpu_time_ns(other);
    if (used_ns < 0) return false;
    if (spin()) return true;
    if (is_working(other) && cpu_time_ns(other) == used_ns) swap_cpus(rank, other);
    return false;
  }

 private:
  struct PinnedThread {
    pid_t id = (pid_t)syscall(SYS_gettid);
    clockid_t clock;
    int cpu_index = -1;  // into allowed_cpus(); -1 before the first pin

    PinnedThread() { pthread_getcpuclockid(pthread_self(), &clock); }
  };

  static PinnedThread& this_thread() {
    static thread_local PinnedThread thread;
    return thread;
  }

  // The CPUs that the process was allowed to use at the first call.
  static const std::vector<int>& allowed_cpus() {
    static const std::vector<int> found = [] {
      std::vector<int> cpus;
      cpu_set_t set;
      if (sched_getaffinity(0, sizeof set, &set) == 0)
        for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
          if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
      return cpus;
    }();
    return found;
  }

  // A failure is ignored: affinity changes the speed only.
  static void set_affinity(pid_t thread, int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(thread, sizeof set, &set);
  }

  // The CPU time that a thread has used; -1 if it is not pinned.
  int64_t cpu_time_ns(int rank) const {
    const PinnedThread* thread = threads_[rank].load(std::memory_order_acquire);
    timespec used;
    if (!thread || clock_gettime(thread->clock, &used)) return -1;
    return used.tv_sec * int64_t(1000000000) + used.tv_nsec;
  }

  // Does nothing while another swap is in progress.
  void swap_cpus(int rank, int other) {
    if (swapping_.test_and_set(std::memory_order_acquire)) return;
    PinnedThread& self = *threads_[rank].load(std::memory_order_relaxed);
    PinnedThread& preempted = *threads_[other].load(std::memory_order_acquire);
    std::swap(self.cpu_index, preempted.cpu_index);
    set_affinity(preempted.id, allowed_cpus()[preempted.cpu_index]);
    set_affinity(self.id, allowed_cpus()[self.cpu_index]);
    swapping_.clear(std::memory_order_release);
  }

  std::atomic<bool> is_taken_[kMaxThreads] = {};
  std::atomic<PinnedThread*> threads_[kMaxThreads] = {};
  std::atomic_flag swapping_ = ATOMIC_FLAG_INIT;
};

#else

class CpuAffinity {
 public:
  void pin(int, int) {}
  template <class IsWorking, class Spin>
  bool help_preempted(int, int, const IsWorking&, const Spin&) { return false; }
};

#endif

}  // namespace headrace
