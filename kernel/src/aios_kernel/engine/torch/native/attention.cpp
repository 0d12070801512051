// Attention over KV blocks of 16 tokens, read in place: no gathered copy, no padding, a shared prefix read once.
//
// Scores and values are computed tile by tile with a running maximum and sum (online softmax: Milakov and Gimelshein
// 2018; FlashAttention, Dao 2022). Everything is counted in words of 32 bits: one float32, or two bfloat16 that one
// instruction multiplies and adds. A block of a head holds
//   keys:   [words of a key][16 tokens]                 a word is one number of a key (two neighbours in bfloat16)
//   values: [words of 16 tokens][padded value size]     a word is one token's number (of two neighbours in bfloat16)
// so that both products run over whole vectors of 16 words without a shuffle.
#include <vector>

#include "words.h"

namespace {

constexpr int BLOCK = 16;
constexpr int TILE_BLOCKS = 8;
constexpr int TILE = TILE_BLOCKS * BLOCK;
constexpr int MOST_ROWS = 64;  // query rows (tokens times heads of a group) that are attended together
constexpr int FEW_ROWS = 16;
constexpr int FETCHING = 4;  // rows of a head up to which attention waits for memory, and fetches what comes next
constexpr float LOWEST = -1e30f;

struct Call {
  const char *query, *key, *value;
  char *out;
  int32_t *keys, *values;
  const int64_t *slots, *positions, *tables, *offsets, *units;
  int64_t query_head, query_row, key_head, key_row, value_head, value_row;
  int64_t rows, n_units, heads, kv_heads, key_dim, value_dim, window, threads;
  float scale, softcap;
};

Floats turned(Floats x, int by) {
  const Words lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return __builtin_shuffle(x, (lanes + by) & 15);
}

float largest(Floats x) {
  for (int by = 8; by; by /= 2) {
    const Floats other = turned(x, by);
    x = x > other ? x : other;
  }
  return x[0];
}

float total(Floats x) {
  for (int by = 8; by; by /= 2) x += turned(x, by);
  return x[0];
}

// Rows `first` to `end` with the heads `head` to `last_head`. `puts`: their own keys and values are still to be written.
struct Task {
  int64_t first, end, shared, head, last_head;
  bool puts;
  bool single() const { return end - first == 1; }
};

// What one thread works with: query rows, their running softmax, one tile of scores.
struct Scratch {
  std::vector<int32_t> query, weights;
  std::vector<float> maxima;
  std::vector<Floats> scores, sums, totals;
  std::vector<int64_t> positions;
  void size(int rows, int key_words, int width) {
    query.resize((size_t)rows * key_words);
    weights.resize((size_t)rows * TILE);
    scores.resize((size_t)rows * TILE_BLOCKS);
    sums.resize((size_t)rows * width / BLOCK);
    maxima.resize(rows);
    totals.resize(rows);
    positions.resize(rows);
  }
};

template <class T>
struct Attention {
  const Call &call;
  Scratch &s;
  int group, key_words, width;

  static constexpr int VALUE_WORDS = BLOCK / T::PER_WORD;

  Attention(const Call &call, Scratch &scratch)
      : call(call),
        s(scratch),
        group((int)(call.heads / call.kv_heads)),
        key_words((int)((call.key_dim + T::PER_WORD - 1) / T::PER_WORD)),
        width((int)((call.value_dim + 15) / 16 * 16)) {}

  float *scores() const { return (float *)s.scores.data(); }
  float *sums() const { return (float *)s.sums.data(); }
  int32_t *weight_row(int row) const {
    return (T::PER_WORD > 1 ? s.weights.data() : (int32_t *)s.scores.data()) + (size_t)row * TILE;
  }
  const int32_t *key_block(int64_t block, int64_t head) const {
    return call.keys + (block * call.kv_heads + head) * key_words * BLOCK;
  }
  const int32_t *value_block(int64_t block, int64_t head) const {
    return call.values + (block * call.kv_heads + head) * VALUE_WORDS * width;
  }

  // `next`: for each block what is read after it, to be fetched meanwhile by rows so few that they wait for memory.
  template <int R, int B>
  void score(int row, const int32_t *const *keys, const int32_t *const *next, int column) const {
    Floats sum[R][B] = {};
    const int32_t *query = s.query.data() + (size_t)row * key_words;
    for (int word = 0; word < key_words; word++) {
      Words key[B];
#pragma GCC unroll 8
      for (int b = 0; b < B; b++) {
        std::memcpy(&key[b], keys[b] + word * BLOCK, 64);
        if (R <= FETCHING && next) __builtin_prefetch(next[b] + word * BLOCK, 0, 3);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int b = 0; b < B; b++) sum[r][b] = T::multiply_add(sum[r][b], key[b], query[r * key_words + word]);
    }
    for (int r = 0; r < R; r++)
      for (int b = 0; b < B; b++) save(scores() + (row + r) * TILE + column + b * BLOCK, sum[r][b]);
  }

  template <int R>
  void score_rows(int &row, int end, const int32_t *const *keys, const int32_t *const *next, int blocks,
                  int column = 0) const {
    constexpr int B = R > 2 ? 2 : 4;
    for (; row + R <= end; row += R) {
      int b = 0;
      for (; b + B <= blocks; b += B) score<R, B>(row, keys + b, next, column + b * BLOCK);
      for (; b < blocks; b++) score<R, 1>(row, keys + b, next, column + b * BLOCK);
    }
  }

  template <int R, int D>
  void weigh(int row, const int32_t *const *values, const int32_t *const *next, int first, int blocks,
             int column) const {
    Floats sum[R][D];
    float *to = sums() + (size_t)row * width + column;
    const int32_t *weights = weight_row(row) + first * VALUE_WORDS;
    for (int r = 0; r < R; r++)
      for (int d = 0; d < D; d++) sum[r][d] = load(to + r * width + d * 16);
    for (int b = 0; b < blocks; b++)
      for (int word = 0; word < VALUE_WORDS; word++) {
        Words value[D];
#pragma GCC unroll 8
        for (int d = 0; d < D; d++) {
          std::memcpy(&value[d], values[b] + word * width + column + d * 16, 64);
          if (R <= FETCHING && next) __builtin_prefetch(next[b] + word * width + column + d * 16, 0, 3);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
          for (int d = 0; d < D; d++)
            sum[r][d] = T::multiply_add(sum[r][d], value[d], weights[r * TILE + b * VALUE_WORDS + word]);
      }
    for (int r = 0; r < R; r++)
      for (int d = 0; d < D; d++) save(to + r * width + d * 16, sum[r][d]);
  }

  template <int R>
  void weigh_rows(int &row, int end, const int32_t *const *values, const int32_t *const *next, int blocks,
                  int first = 0) const {
    for (; row + R <= end; row += R) {
      int column = 0;
      for (; column + 64 <= width; column += 64) weigh<R, 4>(row, values, next, first, blocks, column);
      for (; column < width; column += 16) weigh<R, 1>(row, values, next, first, blocks, column);
    }
  }

  // Scores of one row to weights; what the row summed before shrinks when its maximum grows.
  void soften(int row, int blocks, int64_t start, bool masked) const {
    float *row_scores = scores() + row * TILE;
    const int64_t position = s.positions[row];
    const Words lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const int32_t window = call.window > 0 && call.window < INT32_MAX ? (int32_t)call.window : INT32_MAX;
    Floats x[TILE_BLOCKS], most = Floats{} + LOWEST;
    for (int b = 0; b < blocks; b++) {
      x[b] = load(row_scores + b * BLOCK) * call.scale;
      if (call.softcap > 0) x[b] = call.softcap * (1.0f - 2.0f / (exponential(x[b] * (2.0f / call.softcap)) + 1.0f));
      if (masked) {
        // How far each token is behind the row's own, within what 32 bits can hold.
        const Words behind = (int32_t)(position - start - b * BLOCK) - lanes;
        x[b] = (behind < 0) | (behind >= window) ? Floats{} - __builtin_inff() : x[b];
      }
      most = most > x[b] ? most : x[b];
    }
    const float before = s.maxima[row], found = largest(most), now = before > found ? before : found;
    if (now != before) {
      const float shrink = exponential(Floats{} + (before - now))[0];
      s.totals[row] *= shrink;
      float *to = sums() + (size_t)row * width;
      for (int d = 0; d < width; d += 16) save(to + d, load(to + d) * shrink);
      s.maxima[row] = now;
    }
    for (int b = 0; b < blocks; b++) {
      x[b] = exponential(x[b] - now);
      s.totals[row] += x[b];
      save(row_scores + b * BLOCK, x[b]);
    }
    // In float32 the weights stay where the scores were.
    if (T::PER_WORD > 1) T::pack(weight_row(row), row_scores, blocks * BLOCK);
  }

  // Rows `row` to `end` of every head of a task attend to the blocks `first` to `last` of a table. The heads take turns
  // at each tile, because their blocks are neighbours in memory.
  void attend(const Task &task, int row, int end, const int64_t *table, int64_t first, int64_t last,
              const int32_t *following) const {
    const int rows = (int)(task.end - task.first) * group;
    int64_t low = s.positions[row], high = low;
    for (int r = row; r < end; r++) {
      low = low < s.positions[r] ? low : s.positions[r];
      high = high > s.positions[r] ? high : s.positions[r];
    }
    last = last < high / BLOCK + 1 ? last : high / BLOCK + 1;
    if (call.window > 0 && low - call.window + 1 > first * BLOCK) first = (low - call.window + 1) / BLOCK;
    for (int64_t at = first; at < last; at += TILE_BLOCKS) {
      const int blocks = (int)(last - at < TILE_BLOCKS ? last - at : TILE_BLOCKS);
      const bool masked = (at + blocks) * BLOCK - 1 > low || (call.window > 0 && at * BLOCK <= high - call.window);
      if (end - row <= FETCHING) {
        const int32_t *next = at + blocks < last ? key_block(table[at + blocks], task.head) : following;
        across(task, row, end, table, at, blocks, next, masked);
        continue;
      }
      for (int64_t head = task.head; head < task.last_head; head++) {
        const int before = (int)(head - task.head) * rows;
        tile(before + row, before + end, table + at, blocks, head, at * BLOCK, masked);
      }
    }
  }

  // Few rows of every head attend to a tile, block after block: all of a block lies together, and the next one is
  // fetched meanwhile. `following` is what is read after the tile. What the only row of a task writes itself is written
  // when its block has come.
  void across(const Task &task, int row, int end, const int64_t *table, int64_t at, int blocks, const int32_t *following,
              bool masked) const {
    const int rows = (int)(task.end - task.first) * group, heads = (int)(task.last_head - task.head);
    const int own = task.puts && task.single() ? (int)(call.positions[task.first] / BLOCK - at) : blocks;
    for (int b = 0; b < blocks; b++)
      for (int h = 0; h < heads; h++) {
        const int64_t head = task.head + h;
        if (b == own) put_key(task.first, head, 0);
        const int32_t *keys = key_block(table[at + b], head);
        const int32_t *next = b + 1 < blocks ? key_block(table[at + b + 1], head) : value_block(table[at], head);
        int r = h * rows + row;
        score_few(r, h * rows + end, &keys, &next, b * BLOCK);
      }
    for (int h = 0; h < heads; h++)
      for (int r = h * rows + row; r < h * rows + end; r++) soften(r, blocks, at * BLOCK, masked);
    for (int b = 0; b < blocks; b++)
      for (int h = 0; h < heads; h++) {
        const int64_t head = task.head + h;
        if (b == own) put_value(task.first, head);
        const int32_t *values = value_block(table[at + b], head);
        const int32_t *next = b + 1 < blocks ? value_block(table[at + b + 1], head) : following + h * key_words * BLOCK;
        int r = h * rows + row;
        weigh_few(r, h * rows + end, &values, &next, b);
      }
  }

  void score_few(int &row, int end, const int32_t *const *keys, const int32_t *const *next, int column) const {
    score_rows<4>(row, end, keys, next, 1, column);
    score_rows<2>(row, end, keys, next, 1, column);
    score_rows<1>(row, end, keys, next, 1, column);
  }

  void weigh_few(int &row, int end, const int32_t *const *values, const int32_t *const *next, int first) const {
    weigh_rows<4>(row, end, values, next, 1, first);
    weigh_rows<2>(row, end, values, next, 1, first);
    weigh_rows<1>(row, end, values, next, 1, first);
  }

  void tile(int row, int end, const int64_t *table, int blocks, int64_t head, int64_t start, bool masked) const {
    const int32_t *keys[TILE_BLOCKS], *values[TILE_BLOCKS];
    for (int b = 0; b < blocks; b++) {
      keys[b] = key_block(table[b], head);
      values[b] = value_block(table[b], head);
    }
    int r = row;
    score_rows<8>(r, end, keys, nullptr, blocks);
    score_rows<4>(r, end, keys, nullptr, blocks);
    score_rows<2>(r, end, keys, nullptr, blocks);
    score_rows<1>(r, end, keys, nullptr, blocks);
    for (r = row; r < end; r++) soften(r, blocks, start, masked);
    r = row;
    weigh_rows<4>(r, end, values, nullptr, blocks);
    weigh_rows<2>(r, end, values, nullptr, blocks);
    weigh_rows<1>(r, end, values, nullptr, blocks);
  }

  // `following`: what the next task begins with.
  void run(const Task &task, const int32_t *following) const {
    const int rows = (int)(task.end - task.first) * group, all = rows * (int)(task.last_head - task.head);
    s.size(all, key_words, width);
    std::memset(sums(), 0, sizeof(float) * (size_t)all * width);
    for (int row = 0; row < all; row++) begin(row, task.first + row % rows / group, query_head(task, row, rows));
    if (task.puts && !(task.single() && group <= FETCHING)) put_task(task);
    if (task.shared && !task.single())
      attend(task, 0, rows, call.tables + call.offsets[task.first], 0, task.shared, following);
    for (int64_t token = task.first; token < task.end; token++) {
      const int64_t last = call.positions[token] / BLOCK + 1;
      const int row = (int)(token - task.first) * group;
      const int64_t *table = call.tables + call.offsets[token];
      const int64_t shared = task.single() ? 0 : task.shared;
      if (last > shared) attend(task, row, row + group, table, shared, last, following);
    }
    for (int row = 0; row < all; row++) finish(row, task.first + row % rows / group, query_head(task, row, rows));
  }

  // The first keys that a task reads.
  const int32_t *begins(const Task &task) const { return key_block(call.tables[call.offsets[task.first]], task.head); }

  void put_task(const Task &task) const {
    for (int64_t token = task.first; token < task.end; token++)
      for (int64_t head = task.head; head < task.last_head; head++) put(token, head);
  }

  int64_t query_head(const Task &task, int row, int rows) const {
    return (task.head + row / rows) * group + row % group;
  }

  void begin(int row, int64_t token, int64_t head) const {
    int32_t *query = s.query.data() + (size_t)row * key_words;
    query[key_words - 1] = 0;
    const auto *from = (const typename T::Number *)call.query + head * call.query_head + token * call.query_row;
    std::memcpy(query, from, sizeof(typename T::Number) * call.key_dim);
    s.maxima[row] = LOWEST;
    s.totals[row] = Floats{};
    s.positions[row] = call.positions[token];
  }

  void finish(int row, int64_t token, int64_t head) const {
    const float scale = 1.0f / total(s.totals[row]);
    const float *from = sums() + (size_t)row * width;
    auto *out = (typename T::Number *)call.out + (token * call.heads + head) * call.value_dim;
    for (int d = 0; d < call.value_dim; d++) T::store(out + d, from[d] * scale);
  }

  // Write the keys and values of the rows `row` to `end` of a head to their slots, whole blocks at once where they fill.
  void put_rows(int64_t row, int64_t end, int64_t head) const {
    while (row < end) {
      const int64_t slot = call.slots[row];
      const bool fills = slot % BLOCK == 0 && row + BLOCK <= end && call.slots[row + BLOCK - 1] == slot + BLOCK - 1;
      if (fills) put_block(row, head);
      else put(row, head);
      row += fills ? BLOCK : 1;
    }
  }

  void put_block(int64_t row, int64_t head) const {
    using Number = typename T::Number;
    const int64_t block = call.slots[row] / BLOCK, whole = call.key_dim / T::PER_WORD / LANES * LANES;
    const Number *key = (const Number *)call.key + head * call.key_head + row * call.key_row;
    int32_t *keys = (int32_t *)key_block(block, head), *values = (int32_t *)value_block(block, head);
    for (int64_t word = 0; word < whole; word += LANES) {
      Words square[LANES];
      for (int i = 0; i < BLOCK; i++) std::memcpy(&square[i], key + i * call.key_row + word * T::PER_WORD, sizeof *square);
      transpose(square);
      std::memcpy(keys + word * BLOCK, square, sizeof square);
    }
    for (int i = 0; i < BLOCK; i++) put_key(row + i, head, whole);
    const Number *value = (const Number *)call.value + head * call.value_head + row * call.value_row;
    for (int word = 0; word < VALUE_WORDS; word++) {
      const Number *one = value + word * T::PER_WORD * call.value_row, *other = one + call.value_row;
      if (T::PER_WORD == 1) std::memcpy(values + word * width, one, sizeof(Number) * call.value_dim);
      else for (int64_t d = 0; d < call.value_dim; d++) values[word * width + d] = T::join(one[d], other[d]);
    }
  }

  // Write one token's key and value of a head to its slot.
  void put(int64_t row, int64_t head) const {
    put_key(row, head, 0);
    put_value(row, head);
  }

  void put_value(int64_t row, int64_t head) const {
    const int64_t lane = call.slots[row] % BLOCK;
    const auto *value = (const typename T::Number *)call.value + head * call.value_head + row * call.value_row;
    auto *values = (typename T::Number *)value_block(call.slots[row] / BLOCK, head);
    values += lane / T::PER_WORD * width * T::PER_WORD + lane % T::PER_WORD;
    for (int64_t d = 0; d < call.value_dim; d++) values[d * T::PER_WORD] = value[d];
  }

  // Write one token's key from a word on.
  void put_key(int64_t row, int64_t head, int64_t word) const {
    const int64_t lane = call.slots[row] % BLOCK, whole = call.key_dim / T::PER_WORD;
    const auto *key = (const typename T::Number *)call.key + head * call.key_head + row * call.key_row;
    auto *keys = (typename T::Number *)key_block(call.slots[row] / BLOCK, head);
    for (; word < whole; word++)
      std::memcpy(keys + (word * BLOCK + lane) * T::PER_WORD, key + word * T::PER_WORD, 4);
    if (word < key_words) keys[(word * BLOCK + lane) * T::PER_WORD] = key[call.key_dim - 1];
  }
};

// Whether a unit's rows are those of one context, which attend to each other.
bool is_chunk(const Call &call, int64_t unit) {
  const int64_t first = call.units[unit * 3], end = call.units[unit * 3 + 1];
  return end - first > 1 && call.offsets[first] == call.offsets[end - 1];
}

// What can run beside each other. Few rows wait for memory, and all heads together read it in one stream; many rows
// compute, and one head's blocks stay in the cache.
std::vector<Task> tasks_of(const Call &call) {
  const int64_t group = call.heads / call.kv_heads, most = group < MOST_ROWS ? MOST_ROWS / group : 1;
  const int64_t split = call.n_units < 2 * call.threads ? call.threads : 1;
  std::vector<Task> tasks;
  for (int64_t unit = 0; unit < call.n_units; unit++) {
    const int64_t first = call.units[unit * 3], end = call.units[unit * 3 + 1], shared = call.units[unit * 3 + 2];
    const bool chunk = is_chunk(call, unit), many = chunk && (end - first) * group > FEW_ROWS;
    const int64_t together = many ? 1 : (call.kv_heads + split - 1) / split;
    for (int64_t head = 0; head < call.kv_heads; head += together)
      for (int64_t row = first; row < end; row += most) {
        const int64_t last_head = head + together < call.kv_heads ? head + together : call.kv_heads;
        tasks.push_back({row, row + most < end ? row + most : end, shared, head, last_head, !chunk});
      }
  }
  return tasks;
}

// The first row of a chunk; these come last, and are written before anything attends to them.
int64_t chunks_begin(const Call &call) {
  for (int64_t unit = 0; unit < call.n_units; unit++)
    if (is_chunk(call, unit)) return call.units[unit * 3];
  return call.rows;
}

template <class T>
void run(const Call &call) {
  const std::vector<Task> tasks = tasks_of(call);
  const int64_t n_tasks = (int64_t)tasks.size(), first = chunks_begin(call), rows = call.rows - first;
  const int64_t n_puts = rows ? call.threads * call.kv_heads : 0;
#pragma omp parallel num_threads(call.threads) if (call.threads > 1)
  {
    thread_local Scratch scratch;
    const Attention<T> attention(call, scratch);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < n_puts; i++) {
      const int64_t part = i / call.kv_heads;
      attention.put_rows(first + rows * part / call.threads, first + rows * (part + 1) / call.threads, i % call.kv_heads);
    }
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < n_tasks; i++) {
      const Task &following = tasks[i + 1 < n_tasks ? i + 1 : i];
      attention.run(tasks[i], attention.begins(following));
    }
  }
}

}  // namespace

extern "C" void aios_attend_float32(const Call *call) { run<Float32>(*call); }
extern "C" void aios_attend_bfloat16(const Call *call) { run<BFloat16>(*call); }
