// ``delta.h`` by itself, as ``test_native_delta.py`` calls it: a layer's tokens from what is projected to what ``o``
// multiplies, and the states of their sequences in a pool that the test has filled.
#include "delta.h"

namespace {

struct Case final : Job {
  Case(const LinearShape& shape, const LinearFields& fields, const Pool& in) : recurring(shape), l(fields), pool(in) {}
  void work(int thread, Phases& phases) override { recurring.recur(l, spans, pool, thread, phases, [] {}); }

  Recurring recurring;
  const LinearFields& l;
  const Pool& pool;
  std::vector<Span> spans;
};

}  // namespace

// Tokens [n, q | k | v], their gates z [n, values], b and a [n, v_heads]; out [n, values].
extern "C" void delta_case(const LinearShape* shape, const LinearFields* l, const Pool* pool, int spans,
                           const int32_t* start, const int32_t* count, const int32_t* state, float eps, int threads,
                           const float* mixed, const float* z, const float* b, const float* a, float* out) {
  static Team* team = new Team;
  Case one(*shape, *l, *pool);
  int64_t n = 0;
  for (int i = 0; i < spans; i++) {
    one.spans.push_back({start[i], count[i], (int)n, nullptr, state + i * shape->rows});
    n += count[i];
  }
  const int64_t values = one.recurring.given(), channels = 2 * one.recurring.keys() + values, heads = shape->v_heads;
  one.recurring.lay_out(n, threads);
  for (int64_t t = 0; t < n; t++) {
    memcpy(one.recurring.mixed(t), mixed + t * channels, sizeof(float) * channels);
    memcpy(one.recurring.z(t), z + t * values, sizeof(float) * values);
    memcpy(one.recurring.b(t), b + t * heads, sizeof(float) * heads);
    memcpy(one.recurring.a(t), a + t * heads, sizeof(float) * heads);
  }
  team->run(one, threads);
  team->leave(one);
  for (int64_t t = 0; t < n; t++) one.recurring.gate(*l, t, eps, out + t * values);
}
