// One pool of threads for a process. A step is a row of phases, a phase some pieces of work that whoever is
// free takes. A phase is over when its work is done, not when every thread has come by: a thread that the
// system has put aside, on a host where others compute too, is waited for only while it holds a piece. Who
// has nothing to do spins for some microseconds and then sleeps.
#pragma once
#include <immintrin.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

class Team;

// A thread's way through one job.
class Phases {
 public:
  Phases(Team& team, uint32_t job) : team_(team), job_(job) {}
  // f(first, stop) for parts of [0, count), then, once, ``after()``; all of it is done, and seen by everybody,
  // when this returns. Returns at once where the job is over.
  template <class F, class After> void each(int count, int piece, F f, After after);
  template <class F> void each(int count, int piece, F f) { each(count, piece, f, [] {}); }

 private:
  Team& team_;
  uint32_t job_, phase_ = 0;
};

class Job {
 public:
  virtual ~Job() = default;
  // In every thread; what it reads outside of phases must not change while threads may be late.
  virtual void work(int thread, Phases& phases) = 0;
};

class Team {
 public:
  // ``job`` with so many threads, this one among them, or with as many as the system gives.
  void run(Job& job, int threads) {
    threads = grown(threads);
    size_ = threads, job_ = &job, done_ = 0;
    number_ = (number_ + 1) & 0xffffff;
    ticket_ = ticket(number_, 0, 0);
    if (threads > 1) {
      spread(threads);
      order_.fetch_add(1);
      order_.notify_all();
    }
    Phases phases(*this, number_);
    job.work(0, phases);
    ticket_ = ticket(number_, 0xffff, 0);  // whoever is late does nothing
  }

  // No thread is in ``job`` any more, nor will be.
  void leave(Job& job) {
    if (job_ == &job) job_ = nullptr;
    while (busy_.load() != 0) std::this_thread::yield();
  }

  int size() const { return size_; }
  // So that each thread comes back some four times.
  int piece(int count) const { return std::max(1, count / (4 * size_)); }

 private:
  friend class Phases;
  static constexpr int SPINS = 1000, FEW_CORES = 16;

  static uint64_t ticket(uint64_t job, uint64_t phase, uint64_t taken) { return job << 40 | phase << 24 | taken; }
  static uint64_t phase_of(uint64_t ticket) { return ticket >> 24; }  // with its job

  template <class T, class Done> static void await(std::atomic<T>& on, Done done) {
    for (int i = 0; i < SPINS; i++) {
      if (done(on.load(std::memory_order_acquire))) return;
      _mm_pause();
    }
    for (T now = on.load(); !done(now); now = on.load()) on.wait(now);
  }

  // Where all cores are wanted the others stay off this thread's. One that wakes there waits behind it, and Linux
  // looks for balance only every some tens of milliseconds where no core is idle, be it that what gives way to
  // everybody has one for itself: two would compute as one meanwhile. Of many threads one is no loss, and to bind
  // them all is work.
  void spread(int threads) {
    const int here = sched_getcpu();
    if (here < 0 || here == here_) return;
    cpu_set_t others;
    if (sched_getaffinity(0, sizeof others, &others) != 0) return;
    CPU_CLR(here, &others);
    const int left = CPU_COUNT(&others);
    if (left == 0 || left >= threads || left > FEW_CORES) return;
    for (auto& one : threads_) pthread_setaffinity_np(one.native_handle(), sizeof others, &others);
    here_ = here;
  }

  int grown(int threads) {
    try {
      while ((int)threads_.size() < threads - 1) {
        const int number = threads_.size() + 1;
        threads_.emplace_back([this, number, seen = order_.load()] { serve(number, seen); });
        here_ = -1;
      }
    } catch (const std::system_error&) {  // a limit of threads, a user's or a control group's
    }
    return std::min<int>(threads, threads_.size() + 1);
  }

  void serve(int number, int seen) {
    for (;;) {
      await(order_, [seen](int now) { return now != seen; });
      seen = order_.load();
      busy_.fetch_add(1);
      const uint32_t job = ticket_.load() >> 40;
      if (Job* one = job_.load(); one != nullptr && number < size_) {
        Phases phases(*this, job);
        one->work(number, phases);
      }
      busy_.fetch_sub(1);
    }
  }

  std::vector<std::thread> threads_;
  int here_ = -1;  // the core that the others stay off
  std::atomic<Job*> job_{nullptr};
  std::atomic<int> size_{1}, busy_{0};
  uint32_t number_ = 0;
  alignas(64) std::atomic<int> order_{0};
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int> done_{0};
  alignas(64) std::atomic<int> passed_{0};  // phases, for those who sleep
};

template <class F, class After> void Phases::each(int count, int piece, F f, After after) {
  if (count <= 0) return;
  const uint64_t here = Team::phase_of(Team::ticket(job_, phase_++, 0));
  uint64_t now = team_.ticket_.load(std::memory_order_acquire);
  while (Team::phase_of(now) == here) {
    const int first = now & 0xffffff;
    if (first >= count) break;
    const int stop = std::min(count, first + piece);
    if (!team_.ticket_.compare_exchange_weak(now, now + (stop - first), std::memory_order_acq_rel)) continue;
    f(first, stop);
    if (team_.done_.fetch_add(stop - first, std::memory_order_acq_rel) + stop - first == count) {
      after();
      team_.done_.store(0, std::memory_order_relaxed);
      team_.ticket_.store((here + 1) << 24, std::memory_order_release);
      if (team_.size_ > 1) {
        team_.passed_.fetch_add(1);
        team_.passed_.notify_all();
      }
    }
    now = team_.ticket_.load(std::memory_order_acquire);
  }
  auto over = [&] { return Team::phase_of(team_.ticket_.load(std::memory_order_acquire)) != here; };
  for (int i = 0; i < Team::SPINS && !over(); i++) _mm_pause();
  for (int passed = team_.passed_.load(); !over(); passed = team_.passed_.load()) team_.passed_.wait(passed);
}
