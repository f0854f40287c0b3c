// Adapters: scale · B (A x) joins a product for the tokens that have one. A x is a phase of its own before the
// product, B goes with it: so nothing of a product is read or written twice.
#pragma once
#include <algorithm>
#include <vector>

#include "model.h"
#include "team.h"

class Adapting {
 public:
  static constexpr int PARTS = 3;  // of one product, at most

  // Of a batch: tokens of one adapter side by side, a few at a time.
  void group(const ModelFields& m, const BatchFields& b) {
    runs_.clear(), tokens_.clear(), whose_ = b.adapter;
    if (whose_ == nullptr) return;
    layers_ = m.layers, width_ = padded(m.rank, LANES), of_ = m.lora;
    for (int t = 0; t < b.tokens; t++)
      if (whose_[t]) tokens_.push_back(t);
    std::stable_sort(tokens_.begin(), tokens_.end(), [&](int s, int t) { return whose_[s] < whose_[t]; });
    const int count = tokens_.size();
    for (int from = 0, to; from < count; from = to) {
      for (to = from + 1; to < count && to - from < TOGETHER && whose_[tokens_[to]] == whose_[tokens_[from]];) to++;
      runs_.push_back({from, to - from});
    }
    low_.need((int64_t)b.tokens * PARTS * width_);
  }

  // A x of ``parts`` of layer ``i``, in all threads.
  void lower(int i, std::initializer_list<int> parts, const Activation* a, Phases& phases) {
    const int many = parts.size();
    phases.each(runs_.size() * many, 1, [&](int piece, int) {
      const Run& run = runs_[piece / many];
      const int place = piece % many, *token = tokens_.data() + run.from;
      const Matrix& m = low(token[0], i, parts.begin()[place]).a;
      if (m.w == nullptr) return;
      Activation own[TOGETHER];
      for (int k = 0; k < run.count; k++) own[k] = a[token[k]];
      const int64_t stride = block_bytes(m.format, m.columns);
      Floats sums[TOGETHER];
      for (int64_t j = 0; j < padded(m.rows, LANES) / LANES; j++) {
        row_block(m, stride, j, own, run.count, sums);
        for (int k = 0; k < run.count; k++) store(at(token[k], place) + j * LANES, sums[k]);
      }
    });
  }

  // ``v`` is row block ``j`` of token t's product with ``part``, which was the one at ``place`` in ``lower``.
  Floats add_to(Floats v, int t, int i, int part, int place, int64_t j) const {
    if (whose_ == nullptr || whose_[t] == 0) return v;
    const Low& l = low(t, i, part);
    if (l.b.w == nullptr) return v;
    Activation own = {};
    own.f = at(t, place);
    Floats sum;
    // Of its columns those there are: what pads them to a group would be half of the bytes of a small rank.
    const uint8_t* block = l.b.w + j * block_bytes(F32, l.b.columns);
    float_block<F32, 1>(block, padded(l.b.columns, 2), &own, &sum);
    return fma(all(l.scale), sum, v);
  }

 private:
  struct Run { int from, count; };

  const Low& low(int t, int i, int part) const { return of_[(int64_t)(whose_[t] - 1) * layers_ + i].of[part]; }
  float* at(int t, int place) const { return low_.get() + ((int64_t)t * PARTS + place) * width_; }

  const int32_t* whose_ = nullptr;
  const LayerLows* of_ = nullptr;
  int64_t layers_ = 0, width_ = 0;
  std::vector<int> tokens_;
  std::vector<Run> runs_;
  Buffer<float> low_;
};
