// The threads of one pass. A pass is a sequence of phases, each so many things to do, in pieces. All threads go through
// the same sequence: each does its share of a phase, then what is left of the others', and a phase is over when its
// things are done, whoever did them. So a thread whose processor another process has for a while is waited for only if
// it has a piece in hand; when it comes back it finds the phases done and goes on to the one that the others are in.
//
// OpenMP lends the threads once a pass. The waiting is ours: OpenMP's spins for milliseconds, and on a CPU that others
// use as well that is spent on keeping the very thread from running that is waited for.
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

#include "seats.h"

namespace headrace {

inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Which phase it is, and who has what of it.
class Meeting {
 public:
  static constexpr uint32_t kFirst = 1;

  Seats seats;

  // The number of the next of a list's pieces that nobody has taken, or -1. Phases of a list that are over have none.
  int64_t take(int list, uint32_t phase, int64_t pieces) {
    std::atomic<uint64_t>& taken = lists_[list].taken;
    for (uint64_t seen = taken.load(std::memory_order_relaxed);;) {
      const uint32_t at = seen >> 32;
      const int64_t next = at == phase ? (uint32_t)seen : 0;
      if (at > phase || next >= pieces) return -1;
      if (taken.compare_exchange_weak(seen, (uint64_t)phase << 32 | (uint64_t)(next + 1), std::memory_order_relaxed))
        return next;
    }
  }

  void begin(int rank, uint32_t phase) { lists_[rank].at.store(phase, std::memory_order_release); }

  // Notes that `count` of the phase's `all` things are done. Whoever does the last ends the phase.
  void done(uint32_t phase, int64_t count, int64_t all) {
    if (done_.fetch_add(count, std::memory_order_acq_rel) + count < all) return;
    done_.store(0, std::memory_order_relaxed);
    change(phase_, phase + 1);
  }

  // Waits for those who have a piece in hand.
  void wait(int rank, int size, uint32_t phase) {
    lists_[rank].at.store(kNowhere, std::memory_order_release);
    wait_for(phase_, phase, rank, size, [&](int other) { return at(other) == phase; });
  }

  // Waits for all threads.
  void leave(int rank, int size) {
    lists_[rank].at.store(kLeft, std::memory_order_release);
    if (left_.fetch_add(1, std::memory_order_acq_rel) + 1 == size)
      change(over_, 1);
    else
      wait_for(over_, 0, rank, size, [&](int other) { return at(other) != kLeft; });
  }

 private:
  using Word = std::atomic<uint32_t>;

  static constexpr int kLooks = 1000;
  static constexpr std::chrono::milliseconds kNap{2};  // then looks again who is held up
  static constexpr uint32_t kNowhere = 0, kLeft = ~0u;

  uint32_t at(int rank) const { return lists_[rank].at.load(std::memory_order_acquire); }

  void change(Word& word, uint32_t to) {
    {
      std::lock_guard lock(sleeping_);
      word.store(to, std::memory_order_release);
    }
    changed_.notify_all();
  }

  // Waits until the word changes: for some tens of microseconds awake, then asleep. (Not by std::atomic's wait: GCC's
  // notify may look for sleepers before its store is seen. Both threads of a pass were once found asleep in it.)
  template <class Missing>
  void wait_for(const Word& word, uint32_t old, int rank, int size, const Missing& is_missing) {
    while (!is_changed(word, old) && !help(word, old, rank, size, is_missing)) {
      std::unique_lock lock(sleeping_);
      if (changed_.wait_for(lock, kNap, [&] { return word.load(std::memory_order_acquire) != old; })) return;
    }
  }

  static bool is_changed(const Word& word, uint32_t old) {
    for (int look = 0; look < kLooks; look++) {
      if (word.load(std::memory_order_acquire) != old) return true;
      pause_briefly();
    }
    return false;
  }

  // Gives this thread's CPU to one that is missing and does not run. Returns true if the word changes meanwhile.
  template <class Missing>
  bool help(const Word& word, uint32_t old, int rank, int size, const Missing& is_missing) {
    int other = (rank + 1) % size;
    while (other != rank && !is_missing(other)) other = (other + 1) % size;
    const int64_t used_ns = other == rank ? -1 : seats.used_ns(other);
    if (used_ns < 0) return false;
    if (is_changed(word, old)) return true;
    if (is_missing(other) && seats.used_ns(other) == used_ns) seats.change(rank, other);
    return false;
  }

  alignas(64) Word phase_{kFirst};
  alignas(64) std::atomic<int64_t> done_{0};
  std::atomic<int> left_{0};
  Word over_{0};
  std::mutex sleeping_;
  std::condition_variable changed_;
  struct alignas(64) List {
    std::atomic<uint64_t> taken{0};  // the phase, and how many of its pieces are taken
    Word at{kNowhere};               // the phase in which this thread takes pieces, kNowhere or kLeft
  };
  List lists_[kMostThreads];
};

class Team {
 public:
  Team(int rank, int size, Meeting& meeting) : rank_(rank), size_(size), meeting_(meeting) {}

  // One phase: `work(begin, end)` for pieces of at most `most` of `count` things. When it returns all are done.
  template <class Work>
  void each(int64_t count, int64_t most, const Work& work) {
    if (count == 0) return;
    meeting_.begin(rank_, phase_);
    for (int next = 0; next < size_; next++) {
      const int whose = (rank_ + next) % size_;
      const int64_t begin = count * whose / size_, end = count * (whose + 1) / size_;
      for (int64_t piece; (piece = meeting_.take(whose, phase_, (end - begin + most - 1) / most)) >= 0;) {
        const int64_t from = begin + piece * most, to = std::min(end, from + most);
        work(from, to);
        meeting_.done(phase_, to - from, count);
      }
    }
    meeting_.wait(rank_, size_, phase_++);
  }

  void sit_down() { meeting_.seats.sit_down(rank_, size_); }
  void leave() { meeting_.leave(rank_, size_); }

 private:
  const int rank_, size_;
  Meeting& meeting_;
  uint32_t phase_ = Meeting::kFirst;
};

template <class Work>
void together(int threads, const Work& work) {
  Meeting meeting;
#ifdef _OPENMP
#pragma omp parallel num_threads(std::min(threads, kMostThreads))
  {
    Team team(omp_get_thread_num(), omp_get_num_threads(), meeting);
    team.sit_down();
    work(team);
    team.leave();
  }
#else
  (void)threads;
  Team team(0, 1, meeting);
  work(team);
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
