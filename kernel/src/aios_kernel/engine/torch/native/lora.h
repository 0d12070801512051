// What low-rank adapters add to a product: x A^T B (Hu et al. 2021), each row with an adapter of its own.
//
// First every row is shrunk to the few numbers of its rank, adapter by adapter, so that A is read once for all of its
// rows; while one adapter is read the next one is fetched. The product then adds the rows of B, weighted by them, to a
// panel's sums while these are still in registers: B lies in panels like the weight itself. Sums have one order
// whatever the number of rows, so that a row does not depend on the rows beside it.
#pragma once
#include <algorithm>
#include <type_traits>
#include <vector>

#include "words.h"

namespace {

constexpr int RANKS = 4;  // ranks are padded to a multiple of it
constexpr int TILE = 3;   // rows that are shrunk together: with 8 ranks, what fits the registers

struct Site {
  int64_t a, b, rank;  // where the matrices begin among the adapter's numbers; rank 0: the layer stays as it is
  double scale;
};

struct Adapter {
  const char *weights;
  const Site *sites;
};

struct Table {
  const int64_t *order, *ends;  // rows by adapter, and where each adapter's end
  const Adapter *adapters;
  int64_t n_units, n_rows;
};

// What is added to a row: `rank` times a row of B, of which a panel has [rank][outputs of a panel].
struct Added {
  const void *b;
  const float *shrunk;
  int64_t rank;
};

template <class Number>
Floats widened_part(const Number *from, int64_t count) {
  Number numbers[LANES] = {};
  std::memcpy(numbers, from, count * sizeof *numbers);
  return widened(numbers);
}

// The sums of four vectors' lanes. Each is summed in the same order, whichever of the four it is.
inline void totals(const Floats *sums, float scale, float *out) {
  const Words low = {0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23}, high = low + LANES / 2;
  const Words even = {0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27}, odd = even + LANES / 4;
  const Words lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Floats one = __builtin_shuffle(sums[0], sums[1], low) + __builtin_shuffle(sums[0], sums[1], high);
  const Floats two = __builtin_shuffle(sums[2], sums[3], low) + __builtin_shuffle(sums[2], sums[3], high);
  Floats all = __builtin_shuffle(one, two, even) + __builtin_shuffle(one, two, odd);
  all += __builtin_shuffle(all, lanes ^ 2);
  all += __builtin_shuffle(all, lanes ^ 1);
  all = __builtin_shuffle(all, lanes << 2 & (LANES - 1)) * scale;
  std::memcpy(out, &all, 4 * sizeof *out);
}

// R rows times K rows of A, `stride` numbers apart; `next` is what is read after A, to be fetched meanwhile or not.
template <int R, int K, bool FETCH, class Number>
void shrink(const Number *const *rows, int64_t inputs, const Number *a, int64_t stride, float scale, const Number *next,
            float *out, int64_t rank) {
  Floats sums[R][K] = {};
  const auto add = [&](int64_t i, auto read) {
    Floats x[R];
    for (int r = 0; r < R; r++) x[r] = read(rows[r] + i);
#pragma GCC unroll 8
    for (int k = 0; k < K; k++) {
      const Floats numbers = widened(a + k * stride + i);
      if (FETCH) __builtin_prefetch(next + k * stride + i, 0, 2);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) sums[r][k] += x[r] * numbers;
    }
  };
  int64_t i = 0;
  for (; i + LANES <= inputs; i += LANES) add(i, [](const Number *from) { return widened(from); });
  if (i < inputs) add(i, [&](const Number *from) { return widened_part(from, inputs - i); });
  for (int r = 0; r < R; r++)
    for (int k = 0; k < K; k += RANKS) totals(sums[r] + k, scale, out + r * rank + k);
}

// Each row's shrunk numbers for one layer.
template <class Number>
class Shrunk {
 public:
  // The rows of a call, [n_rows][inputs]; gives what is added to each.
  const Added *make(const Table &table, int64_t site, const Number *rows, int64_t inputs, int threads) {
    added_.assign(table.n_rows, Added{nullptr, nullptr, 0});
    begins_.assign(table.n_units, 0);
    int64_t size = 0;
    for (int64_t u = 0; u < table.n_units; u++) {
      begins_[u] = size;
      size += rows_of(table, u) * table.adapters[u].sites[site].rank;
    }
    numbers_.resize(size);
    Added *const added = added_.data();
    const int64_t *const begins = begins_.data();
    float *const numbers = numbers_.data();
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t u = 0; u < table.n_units; u++)
      if (table.adapters[u].sites[site].rank) unit(table, u, site, rows, inputs, numbers + begins[u], added);
    return added;
  }

 private:
  static int64_t begin_of(const Table &table, int64_t u) { return u ? table.ends[u - 1] : 0; }
  static int64_t rows_of(const Table &table, int64_t u) { return table.ends[u] - begin_of(table, u); }

  static const Number *matrix(const Table &table, int64_t u, int64_t site) {
    return (const Number *)table.adapters[u].weights + table.adapters[u].sites[site].a;
  }

  static void unit(const Table &table, int64_t u, int64_t site, const Number *rows, int64_t inputs, float *numbers,
                   Added *added) {
    const Adapter &adapter = table.adapters[u];
    const int64_t rank = adapter.sites[site].rank, stride = (inputs + LANES - 1) / LANES * LANES;
    const float scale = (float)adapter.sites[site].scale;
    const Number *const a = matrix(table, u, site), *b = (const Number *)adapter.weights + adapter.sites[site].b;
    const Number *const next = u + 1 < table.n_units ? matrix(table, u + 1, site) : a;
    for (int64_t at = begin_of(table, u); at < table.ends[u]; at += TILE) {
      const int64_t count = std::min<int64_t>(TILE, table.ends[u] - at);
      const Number *x[TILE];
      for (int64_t r = 0; r < count; r++) {
        const int64_t row = table.order[at + r];
        x[r] = rows + row * inputs;
        added[row] = Added{b, numbers + r * rank, rank};
      }
      const auto tiles = [&](auto some, auto first) {
        constexpr int R = some();
        constexpr bool FETCH = first();
        int64_t k = 0;
        for (; k + 2 * RANKS <= rank; k += 2 * RANKS)
          shrink<R, 2 * RANKS, FETCH>(x, inputs, a + k * stride, stride, scale, next + k * stride, numbers + k, rank);
        for (; k < rank; k += RANKS)
          shrink<R, RANKS, FETCH>(x, inputs, a + k * stride, stride, scale, next + k * stride, numbers + k, rank);
      };
      const auto block = [&](auto first) {
        if (count == 1) tiles(std::integral_constant<int, 1>{}, first);
        if (count == 2) tiles(std::integral_constant<int, 2>{}, first);
        if (count == 3) tiles(std::integral_constant<int, 3>{}, first);
      };
      if (at == begin_of(table, u)) block(std::true_type{});
      else block(std::false_type{});
      numbers += count * rank;
    }
  }

  std::vector<Added> added_;
  std::vector<int64_t> begins_;
  std::vector<float> numbers_;
};

// What of adapters is wanted soon, to be fetched while something else is computed: the parts of B that a panel of some
// rows adds, then A of some adapters for the next layer.
template <class Number>
struct Ahead {
  const Added *row, *last;
  int64_t panel, width;
  const Table *table;
  int64_t site, unit, last_unit;

  // The next piece of memory, in whole lines; false: there is none.
  bool next(const char *&at, const char *&end) {
    for (; row != last; row++)
      if (row->rank && (row + 1 == last || row->b != row[1].b)) {
        const int64_t size = row->rank * width * sizeof(Number);
        at = (const char *)row++->b + panel * size;
        end = at + size;
        return true;
      }
    for (; unit < last_unit; unit++)
      if (const Site &wanted = table->adapters[unit].sites[site]; wanted.rank) {
        const auto *weights = (const Number *)table->adapters[unit++].weights;
        at = (const char *)(weights + wanted.a);
        end = (const char *)(weights + wanted.b);
        return true;
      }
    return false;
  }
};

// Add to the sums of a panel, of two vectors, what an adapter adds to it.
template <class Number>
void expand(const Added &added, int64_t panel, float *sums) {
  if (!added.rank) return;
  const Number *b = (const Number *)added.b + panel * added.rank * 2 * LANES;
  Floats even[2] = {load(sums), load(sums + LANES)}, odd[2] = {};  // two sums wait for each other half as long
  for (int64_t k = 0; k < added.rank; k += 2, b += 4 * LANES) {
    const float one = added.shrunk[k], other = added.shrunk[k + 1];
    for (int half = 0; half < 2; half++) {
      even[half] += widened(b + half * LANES) * one;
      odd[half] += widened(b + (2 + half) * LANES) * other;
    }
  }
  for (int half = 0; half < 2; half++) save(sums + half * LANES, even[half] + odd[half]);
}

}  // namespace
