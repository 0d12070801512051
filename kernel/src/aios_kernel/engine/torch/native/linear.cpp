// Products of rows with a weight that lies in the order in which it is read (after BLIS: Van Zee and van de Geijn 2015).
//
// A weight is cut into panels of 32 outputs, each [words of an input][32 outputs]; a word is as in words.h. Rows are cut
// into blocks of at most 14, whose 28 sums stay in registers while a panel passes by, and are laid down as [words][rows
// of the block]. While one panel is multiplied the next one is fetched: with few rows a product waits for memory alone.
// Every output is summed in the order of the inputs, whatever the number of rows: a row's result does not depend on
// the rows beside it.
#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "lora.h"

namespace {

constexpr int PANEL = 2 * LANES;
constexpr int MOST_ROWS = 14;
constexpr int MOST_BLOCKS = 8;      // blocks of rows that share a panel: their rows stay in the second-level cache
constexpr int64_t MOST_WORDS = 1536;  // of an input at once, for the same reason
constexpr int LINE = 64;

enum Activation { NONE = 0, SILU = 1, GELU_TANH = 2 };

struct Call {
  const int32_t *rows, *weight, *gate;  // gate: the weight of the gating half, or null
  const float *bias;                    // of whole panels, or null
  char *out;
  int64_t n_rows, words, width, activation, threads;
  const Table *table;  // of the rows' adapters, or null
  int64_t site, gate_site, next_site;  // layers: this one, its gate, and what is computed after it; -1: none
};

// x * sigmoid(by * ...): both activations have this form.
Floats activated(Floats x, int64_t activation) {
  if (activation == SILU) return x / (1.0f + exponential(-x));
  return x / (1.0f + exponential(x * (x * x * -0.0713548163f - 1.5957691216f)));
}

// Add to `sums` the products of a block of R rows and a panel, or begin them; fetch `lines` cache lines from `next` on
// meanwhile, and what of adapters is `ahead`, if anything.
template <class T, bool ADAPTED, int R>
void multiply(const int32_t *rows, const int32_t *panel, int64_t words, bool begin, float *sums, const char *next,
              int64_t lines, Ahead<typename T::Number> *ahead) {
  const char *at = nullptr, *end = nullptr;
  bool more = ADAPTED;
  Floats sum[R][2] = {};
  if (!begin) {
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
      for (int half = 0; half < 2; half++) sum[r][half] = load(sums + r * PANEL + half * LANES);
  }
  for (int64_t word = 0; word < words; word++) {
    Words low, high;
    std::memcpy(&low, panel + word * PANEL, sizeof low);
    std::memcpy(&high, panel + word * PANEL + LANES, sizeof high);
    if (word < lines) __builtin_prefetch(next + word * LINE, 0, 2);
    if (word + words < lines) __builtin_prefetch(next + (word + words) * LINE, 0, 2);
    if (ADAPTED && more && (at < end || (more = ahead->next(at, end)))) {
      __builtin_prefetch(at, 0, 2);
      at += LINE;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      sum[r][0] = T::multiply_add(sum[r][0], low, rows[word * R + r]);
      sum[r][1] = T::multiply_add(sum[r][1], high, rows[word * R + r]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) save(sums + r * PANEL + half * LANES, sum[r][half]);
}

template <class T>
using Multiply = void (*)(const int32_t *, const int32_t *, int64_t, bool, float *, const char *, int64_t,
                          Ahead<typename T::Number> *);

template <class T, bool ADAPTED, int... R>
constexpr std::array<Multiply<T>, sizeof...(R)> multiplies(std::integer_sequence<int, R...>) {
  return {multiply<T, ADAPTED, R + 1>...};
}

// `n` cut into parts of at most `most`, as equal as can be: where part `i` begins.
struct Parts {
  int64_t n, count;
  Parts(int64_t n, int64_t most) : n(n), count((n + most - 1) / most) {}
  int64_t begin(int64_t i) const { return n * i / count; }
  int64_t size(int64_t i) const { return begin(i + 1) - begin(i); }
};

// What rows that share a panel pass look like in memory: for each part of the input, block after block.
template <class T>
struct Chunk {
  const Call &call;
  int64_t first, n_rows;
  Parts inputs, blocks;
  int32_t *laid;
  const Added *added, *gate_added;  // to each row of the call, or null

  Chunk(const Call &call, int64_t first, int64_t n_rows, int32_t *laid, const Added *added, const Added *gate_added)
      : call(call), first(first), n_rows(n_rows), inputs(call.words, MOST_WORDS), blocks(n_rows, MOST_ROWS), laid(laid),
        added(added), gate_added(gate_added) {}

  int32_t *block(int64_t part, int64_t b) const {
    return laid + inputs.begin(part) * n_rows + blocks.begin(b) * inputs.size(part);
  }

  void lay(int64_t b) const {
    const int64_t rows = blocks.size(b);
    for (int64_t part = 0; part < inputs.count; part++) {
      int32_t *to = block(part, b);
      const int64_t words = inputs.size(part);
      const int32_t *from = call.rows + (first + blocks.begin(b)) * call.words + inputs.begin(part);
      int64_t word = 0;
      for (; word + LANES <= words; word += LANES) {
        Words square[LANES] = {};
        for (int64_t row = 0; row < rows; row++) {
          std::memcpy(&square[row], from + row * call.words + word, sizeof *square);
          __builtin_prefetch(from + row * call.words + word + 4 * LANES, 0, 3);
        }
        transpose(square);
        // A whole vector also writes what belongs to the next places, which the next stores put right; not so at the end.
        const bool end = (word + LANES) * rows + LANES > words * rows;
        for (int i = 0; i < LANES; i++)
          std::memcpy(to + (word + i) * rows, &square[i], end ? rows * sizeof(int32_t) : sizeof *square);
      }
      for (; word < words; word++)
        for (int64_t row = 0; row < rows; row++) to[word * rows + row] = from[row * call.words + word];
    }
  }

  // What of adapters to fetch while block `b` passes panel `p`: what it adds to the next panel, and then, of the last
  // pass of a panel, a share of what the next layer begins with.
  Ahead<typename T::Number> ahead(const Added *rows, int64_t p, int64_t b, bool last) const {
    const int64_t panels = (call.width + PANEL - 1) / PANEL, begin = first + blocks.begin(b);
    const int64_t wanted = p + 1 < panels ? blocks.size(b) : 0;
    const bool next = last && first == 0 && call.next_site >= 0;
    const int64_t part = p * blocks.count + b, parts = panels * blocks.count;
    return {rows + begin, rows + begin + wanted, p + 1, PANEL, call.table, call.next_site,
            next ? call.table->n_units * part / parts : 0, next ? call.table->n_units * (part + 1) / parts : 0};
  }

  // All rows through panel `p` of `weight`; `next` is what is read after it; `rows` have adapters, or it is null. A
  // block's results are `finished` while its sums are still near.
  template <class Finish>
  void pass(const int32_t *panel, const int32_t *next, float *sums, const Added *rows, int64_t p, bool last,
            Finish finished) const {
    constexpr auto each = std::make_integer_sequence<int, MOST_ROWS>{};
    static constexpr auto plain = multiplies<T, false>(each), adapted = multiplies<T, true>(each);
    const auto &by_rows = rows ? adapted : plain;
    for (int64_t part = 0; part < inputs.count; part++) {
      const int64_t words = inputs.size(part), skipped = inputs.begin(part) * PANEL;
      const int64_t lines = (words * PANEL * 4 / LINE + blocks.count - 1) / blocks.count;
      for (int64_t b = 0; b < blocks.count; b++) {
        Ahead<typename T::Number> wanted{};
        if (rows && part == 0) wanted = ahead(rows, p, b, last);
        by_rows[blocks.size(b) - 1](block(part, b), panel + skipped, words, part == 0, sums + blocks.begin(b) * PANEL,
                                    (const char *)(next + skipped) + b * lines * LINE, lines, &wanted);
        if (part + 1 == inputs.count) finished(blocks.begin(b), blocks.begin(b + 1));
      }
    }
  }

  void run(int64_t p, float *sums, float *gates) const {
    const int64_t size = call.words * PANEL;
    if (p == 0) fetch(added), fetch(gate_added);
    if (call.gate)
      pass(call.gate + p * size, call.weight + p * size, gates, gate_added, p, false, [](int64_t, int64_t) {});
    for (int64_t row = 0; row < n_rows; row++) {
      const char *o = (const char *)((typename T::Number *)call.out + (first + row) * call.width + p * PANEL);
      __builtin_prefetch(o, 1, 3);
      if (sizeof(typename T::Number) == 4) __builtin_prefetch(o + LINE, 1, 3);
    }
    const int32_t *next = (call.gate ? call.gate : call.weight) + (p + 1) * size;
    pass(call.weight + p * size, next, sums, added, p, true, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; row++) finish(row, p, sums + row * PANEL, gates + row * PANEL);
    });
  }

  // Have what the adapters add to the first panel fetched.
  void fetch(const Added *rows) const {
    if (!rows) return;
    Ahead<typename T::Number> wanted{rows + first, rows + first + n_rows, 0, PANEL, nullptr, -1, 0, 0};
    for (const char *at, *end; wanted.next(at, end);)
      for (; at < end; at += LINE) __builtin_prefetch(at, 0, 2);
  }

  void finish(int64_t row, int64_t p, float *sums, float *gates) const {
    if (added) expand<typename T::Number>(added[first + row], p, sums);
    if (gate_added) expand<typename T::Number>(gate_added[first + row], p, gates);
    for (int at = 0; at < PANEL; at += LANES) {
      Floats x = load(sums + at);
      if (call.bias) x += load(call.bias + p * PANEL + at);
      if (call.gate) x *= activated(load(gates + at), call.activation);
      save(sums + at, x);
    }
    const int64_t column = p * PANEL, count = call.width - column;
    auto *out = (typename T::Number *)call.out + (first + row) * call.width + column;
    if (count >= PANEL) return T::pack((int32_t *)out, sums, PANEL);
    typename T::Number numbers[PANEL];
    T::pack((int32_t *)numbers, sums, PANEL);
    std::memcpy(out, numbers, count * sizeof *numbers);
  }
};

template <class T>
void run(const Call &call) {
  const Parts chunks(call.n_rows, MOST_ROWS * MOST_BLOCKS);
  const int64_t panels = (call.width + PANEL - 1) / PANEL;
  static thread_local std::vector<int32_t> laid;
  laid.resize((size_t)(chunks.count ? (call.n_rows + chunks.count - 1) / chunks.count : 0) * call.words);
  int32_t *const shared = laid.data();
  using Number = typename T::Number;
  static thread_local Shrunk<Number> own, gates_own;
  const auto shrunk = [&](Shrunk<Number> &rows, int64_t site) {
    return rows.make(*call.table, site, (const Number *)call.rows, call.words * T::PER_WORD, (int)call.threads);
  };
  const Added *const added = call.table ? shrunk(own, call.site) : nullptr;
  const Added *const gate_added = call.table && call.gate ? shrunk(gates_own, call.gate_site) : nullptr;
#pragma omp parallel num_threads(call.threads) if (call.threads > 1)
  {
    alignas(64) float sums[MOST_ROWS * MOST_BLOCKS * PANEL], gates[MOST_ROWS * MOST_BLOCKS * PANEL];
    for (int64_t c = 0; c < chunks.count; c++) {
      const Chunk<T> chunk(call, chunks.begin(c), chunks.size(c), shared, added, gate_added);
#pragma omp for schedule(static)
      for (int64_t b = 0; b < chunk.blocks.count; b++) chunk.lay(b);
#pragma omp for schedule(static)
      for (int64_t p = 0; p < panels; p++) chunk.run(p, sums, gates);
    }
  }
}

}  // namespace

extern "C" void aios_multiply_float32(const Call *call) { run<Float32>(*call); }
extern "C" void aios_multiply_bfloat16(const Call *call) { run<BFloat16>(*call); }
