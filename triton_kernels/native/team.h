// One pool of threads for a process. A step asks for as many as its share is; the others sleep. Work is taken
// in pieces by whoever is free, so that a core that something else has taken holds nobody up for long; who
// waits spins a few microseconds and then sleeps.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

class Team {
 public:
  ~Team() {
    stop_ = true;
    order_.fetch_add(1);
    order_.notify_all();
    for (auto& one : threads_) one.join();
  }

  // Runs job(0) here and job(1) ... job(threads - 1) beside it.
  void run(int threads, const std::function<void(int)>& job) {
    size_ = threads, job_ = &job;
    arrived_ = 0;
    taken_[0] = taken_[1] = 0;
    while ((int)threads_.size() < threads - 1) {
      const int number = threads_.size() + 1, seen = order_.load();
      threads_.emplace_back([this, number, seen] { serve(number, seen); });
    }
    running_ = threads_.size();
    order_.fetch_add(1);
    order_.notify_all();
    job(0);
    await(running_, [](int left) { return left == 0; });
  }

  // All of the step's threads have come here: what they wrote can be read. ``phase`` is each one's own count.
  void sync(int& phase) {
    if (size_ > 1) {
      const int number = passed_.load();
      if (arrived_.fetch_add(1) == size_ - 1) {
        arrived_ = 0;
        taken_[phase & 1] = 0;
        passed_.fetch_add(1);
        passed_.notify_all();
      } else {
        await(passed_, [number](int now) { return now != number; });
      }
    } else {
      taken_[phase & 1] = 0;
    }
    phase++;
  }

  // Calls f(first, stop) for parts of [0, count) until none is left; once for each phase.
  template <class F> void share(int phase, int count, int piece, F f) {
    auto& taken = taken_[phase & 1];
    for (int first; (first = taken.fetch_add(piece)) < count;) f(first, std::min(count, first + piece));
  }

  int size() const { return size_; }
  // So that each thread comes back some four times.
  int piece(int count, int least = 1) const { return std::max(least, count / (4 * size_)); }

 private:
  static constexpr int SPINS = 1000;

  template <class Done> static void await(std::atomic<int>& on, Done done) {
    for (int i = 0; i < SPINS; i++) {
      if (done(on.load(std::memory_order_acquire))) return;
      _mm_pause();
    }
    for (int now = on.load(); !done(now); now = on.load()) on.wait(now);
  }

  void serve(int number, int seen) {
    for (;; seen++) {
      await(order_, [seen](int now) { return now != seen; });
      if (stop_) return;
      if (number < size_) (*job_)(number);
      if (running_.fetch_sub(1) == 1) running_.notify_all();
    }
  }

  std::vector<std::thread> threads_;
  const std::function<void(int)>* job_ = nullptr;
  int size_ = 1;
  std::atomic<bool> stop_{false};
  alignas(64) std::atomic<int> order_{0};
  alignas(64) std::atomic<int> running_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> passed_{0};
  alignas(64) std::atomic<int> taken_[2] = {0, 0};
};
