// A step's logits, a register of them at a time: scaled, capped, kept where somebody looks at them, and the largest.
#pragma once
#include <algorithm>
#include <cmath>

#include "model.h"

// Where the largest logit so far is; NaN where there was one.
struct Best {
  float logit;
  int64_t at;

  // That of another part of the row; of equal ones the first.
  void join(const Best& other) {
    if (other.logit != other.logit) logit = NAN;
    if (other.logit > logit || (other.logit == logit && other.at >= 0 && other.at < at)) *this = other;
  }
};

// Logits ``at`` and on, of a row that goes ``to`` somewhere, or nowhere.
inline void take_logits(const ModelFields& m, int64_t at, Floats v, float* to, Best& best) {
  const int count = std::min<int64_t>(LANES, m.head.rows - at);
  alignas(64) float all_of[LANES];
  v = mul(v, all(m.logit_scale));
  if (m.softcap != 0) {
    store(all_of, v);
    for (int k = 0; k < LANES; k++) all_of[k] = tanhf(all_of[k] / m.softcap) * m.softcap;
    v = load(all_of);
  }
  if (to) store_some(to + at, v, count);
  if (has_nan(v)) best.logit = NAN;
  unsigned more = above(v, all(best.logit)) & ((1u << count) - 1);
  if (!more) return;
  store(all_of, v);
  for (; more; more &= more - 1) {
    const int k = __builtin_ctz(more);
    if (all_of[k] > best.logit) best = {all_of[k], at + k};
  }
}
