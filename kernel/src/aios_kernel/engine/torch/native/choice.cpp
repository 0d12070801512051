// The largest logit of each row, of those that a mask allows: what greedy decoding chooses.
//
// One pass over the logits as the model gives them, without writing to them: a step of 32 rows over 8,192 tokens reads
// a megabyte of float32, or half of it. Of equal logits the first one counts, and NaN counts as the largest, as in numpy.
#include <initializer_list>

#include "words.h"

namespace {

constexpr int AT_ONCE = 2 * LANES;  // a word of the mask
constexpr float LOWEST = -__builtin_inff();
const Words LANE = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

struct Best {
  Floats value = Floats{} + LOWEST;
  Words at = LANE - LANE;

  void look(Floats x, int32_t first) {
    const Words larger = x > value;
    value = larger ? x : value;
    at = larger ? LANE + first : at;
  }
};

bool bit(const int32_t *mask, int64_t token) { return !mask || ((uint32_t)mask[token >> 5] >> (token & 31) & 1); }

// The scalar way: for what is left behind whole words, and for rows with NaN.
template <class Number>
void look(const Number *logits, const int32_t *mask, int64_t from, int64_t to, int64_t &at, float &value) {
  for (int64_t token = from; token < to; token++) {
    const float x = widened_one(logits[token]);
    if (!bit(mask, token) || value != value) continue;
    if (x > value || x != x) at = token, value = x;
  }
}

template <class Number>
void choose(const Number *logits, const int32_t *mask, int64_t width, int64_t &at, float &value) {
  const int64_t whole = width / AT_ONCE * AT_ONCE;
  Best low, high;
  Words strange = LANE - LANE;
  for (int64_t token = 0; token < whole; token += AT_ONCE) {
    const int32_t allowed = mask ? mask[token >> 5] : -1;
    if (!allowed) continue;
    Floats one = widened(logits + token), other = widened(logits + token + LANES);
    if (allowed != -1) {
      one = (allowed >> LANE & 1) ? one : Floats{} + LOWEST;
      other = (allowed >> (LANE + LANES) & 1) ? other : Floats{} + LOWEST;
    }
    strange |= (one != one) | (other != other);
    low.look(one, (int32_t)token);
    high.look(other, (int32_t)token + LANES);
  }
  at = 0, value = LOWEST;
  int32_t any = 0;
  for (int lane = 0; lane < LANES; lane++) any |= strange[lane];
  if (any) return look(logits, mask, 0, width, at, value);
  for (const Best &best : {low, high})
    for (int lane = 0; lane < LANES; lane++)
      if (best.value[lane] > value || (best.value[lane] == value && value > LOWEST && best.at[lane] < at))
        at = best.at[lane], value = best.value[lane];
  look(logits, mask, whole, width, at, value);
}

// `rows` names rows of the logits, or is null: the first `n`. `masks` has `words` words for each of the `n`, or is null.
template <class Number>
void choose_all(const Number *logits, int64_t width, const int64_t *rows, int64_t n, const int32_t *masks,
                int64_t words, int64_t *at, float *value) {
  for (int64_t i = 0; i < n; i++)
    choose(logits + (rows ? rows[i] : i) * width, masks ? masks + i * words : nullptr, width, at[i], value[i]);
}

// Whether a row has a NaN or an infinity, barred or not, that would win.
template <class Number>
bool broken(const Number *logits, int64_t width) {
  const int64_t whole = width / LANES * LANES;
  Words strange = LANE - LANE;
  for (int64_t token = 0; token < whole; token += LANES) strange |= ~(widened(logits + token) < Floats{} - LOWEST);
  for (int lane = 0; lane < LANES; lane++)
    if (strange[lane]) return true;
  for (int64_t token = whole; token < width; token++)
    if (!(widened_one(logits[token]) < -LOWEST)) return true;
  return false;
}

// Each row with the mask that `places` names, or with none: -1. The value of a broken row is NaN.
template <class Number>
void choose_each(const Number *logits, int64_t width, const int64_t *places, int64_t n, const int32_t *masks,
                 int64_t words, int64_t *at, float *value) {
  for (int64_t i = 0; i < n; i++) {
    const Number *row = logits + i * width;
    choose(row, places[i] < 0 ? nullptr : masks + places[i] * words, width, at[i], value[i]);
    if (places[i] >= 0 && broken(row, width)) value[i] = __builtin_nanf("");
  }
}

}  // namespace

#define AIOS_CHOICE(name, Number, function)                                                                     \
  extern "C" void name(const Number *logits, int64_t width, const int64_t *rows, int64_t n, const int32_t *masks, \
                       int64_t words, int64_t *at, float *value) {                                               \
    function(logits, width, rows, n, masks, words, at, value);                                                   \
  }

AIOS_CHOICE(aios_choose_float32, float, choose_all)
AIOS_CHOICE(aios_choose_bfloat16, uint16_t, choose_all)
AIOS_CHOICE(aios_choose_each_float32, float, choose_each)
AIOS_CHOICE(aios_choose_each_bfloat16, uint16_t, choose_each)
