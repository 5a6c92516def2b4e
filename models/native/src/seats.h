// Which CPU each thread of a team keeps to, and how a thread that waits gives its own to one that is held up.
//
// Where there is a thread for each CPU, each keeps to one. A thread that wakes while another process has its CPU for a
// moment is otherwise put behind the very thread that waits for it, and stays there while its CPU idles. But one that
// keeps to its CPU cannot leave it to another process either. So whoever waits for a thread that does not run changes
// CPUs with it: the work goes on at once, and the other process has the CPU of somebody who has nothing to do.
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

constexpr int kMostThreads = 256;

#ifdef __linux__

class Seats {
 public:
  // A thread's CPU is one of those that the process was allowed when it came here first.
  void sit_down(int rank, int size) {
    const std::vector<int>& cpus = allowed();
    if (size == 1 || size != (int)cpus.size()) return;
    Seat& own = own_seat();
    int place = own.place < 0 ? rank : own.place;
    // Somebody else of this team may have it, for teams change: there are as many as threads.
    while (taken_[place].exchange(true)) place = (place + 1) % size;
    if (place != own.place) keep_to(own.thread, cpus[place]);
    own.place = place;
    seats_[rank].store(&own, std::memory_order_release);
  }

  // What a thread has had of a processor so far; below 0 where that is not known or of no use.
  int64_t used_ns(int rank) const {
    const Seat* seat = seats_[rank].load(std::memory_order_acquire);
    timespec used;
    if (!seat || clock_gettime(seat->clock, &used)) return -1;
    return used.tv_sec * int64_t(1000000000) + used.tv_nsec;
  }

  // Let two threads change CPUs, the one that calls and another, unless others are doing so.
  void change(int rank, int other) {
    if (changing_.test_and_set(std::memory_order_acquire)) return;
    Seat& own = *seats_[rank].load(std::memory_order_relaxed);
    Seat& theirs = *seats_[other].load(std::memory_order_acquire);
    std::swap(own.place, theirs.place);
    keep_to(theirs.thread, allowed()[theirs.place]);
    keep_to(own.thread, allowed()[own.place]);
    changing_.clear(std::memory_order_release);
  }

 private:
  struct Seat {
    pid_t thread = (pid_t)syscall(SYS_gettid);
    clockid_t clock;
    int place = -1;  // which of the allowed CPUs; none yet

    Seat() { pthread_getcpuclockid(pthread_self(), &clock); }
  };

  static Seat& own_seat() {
    static thread_local Seat seat;
    return seat;
  }

  static const std::vector<int>& allowed() {
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

  // Only a hint: refused, the pass goes on as before.
  static void keep_to(pid_t thread, int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(thread, sizeof set, &set);
  }

  std::atomic<bool> taken_[kMostThreads] = {};
  std::atomic<Seat*> seats_[kMostThreads] = {};
  std::atomic_flag changing_ = ATOMIC_FLAG_INIT;
};

#else

class Seats {
 public:
  void sit_down(int, int) {}
  int64_t used_ns(int) const { return -1; }
  void change(int, int) {}
};

#endif

}  // namespace headrace
