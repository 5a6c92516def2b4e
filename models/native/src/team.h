// The threads of one pass: each takes its share of every phase, and all wait for each other between phases.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace headrace {

struct Range {
  int64_t begin, end;
};

struct Team {
  int rank, size;

  Range share(int64_t count) const { return {count * rank / size, count * (rank + 1) / size}; }

  void wait() const {
#ifdef _OPENMP
#pragma omp barrier
#endif
  }
};

template <class Work>
void together(int threads, const Work& work) {
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
  work(Team{omp_get_thread_num(), omp_get_num_threads()});
#else
  (void)threads;
  work(Team{0, 1});
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
