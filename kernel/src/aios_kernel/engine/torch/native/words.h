// Vectors of sixteen words of 32 bits: a word is one float32, or two bfloat16 that one instruction multiplies and adds.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Words __attribute__((vector_size(64)));

constexpr int LANES = 16;

inline float as_float(int32_t word) {
  float number;
  std::memcpy(&number, &word, 4);
  return number;
}

inline int32_t as_word(float number) {
  int32_t word;
  std::memcpy(&word, &number, 4);
  return word;
}

inline uint16_t to_bfloat16(float number) {
  uint32_t bits = static_cast<uint32_t>(as_word(number));
  if (number != number) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

struct Float32 {
  using Number = float;
  static constexpr int PER_WORD = 1;
  static Floats multiply_add(Floats sum, Words a, int32_t b) { return sum + (Floats)a * as_float(b); }
  static void store(Number *to, float number) { *to = number; }
  static int32_t join(Number one, Number) { return as_word(one); }
  static void pack(int32_t *to, const float *from, int count) { std::memcpy(to, from, sizeof(float) * count); }
};

struct BFloat16 {
  using Number = uint16_t;
  static constexpr int PER_WORD = 2;
  static Floats multiply_add(Floats sum, Words a, int32_t b) {
#if defined(__AVX512BF16__)
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)_mm512_set1_epi32(b));
#else
    const Floats low = (Floats)(a << 16), high = (Floats)(a & (int32_t)0xffff0000);
    return sum + low * as_float((int32_t)((uint32_t)b << 16)) + high * as_float(b & (int32_t)0xffff0000);
#endif
  }
  static void store(Number *to, float number) { *to = to_bfloat16(number); }
  static int32_t join(Number one, Number other) { return (int32_t)(one | (uint32_t)other << 16); }
  static void pack(int32_t *to, const float *from, int count) {
#if defined(__AVX512BF16__)
    for (int i = 0; i < count; i += LANES)
      _mm256_storeu_si256((__m256i *)((uint16_t *)to + i), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + i)));
#else
    for (int i = 0; i < count; i++) ((uint16_t *)to)[i] = to_bfloat16(from[i]);
#endif
  }
};

inline Floats load(const float *from) {
  Floats numbers;
  std::memcpy(&numbers, from, sizeof numbers);
  return numbers;
}

inline void save(float *to, Floats numbers) { std::memcpy(to, &numbers, sizeof numbers); }

typedef uint16_t Halves __attribute__((vector_size(32)));

inline float widened_one(float number) { return number; }
inline float widened_one(uint16_t number) { return as_float((int32_t)((uint32_t)number << 16)); }
inline Floats widened(const float *from) { return load(from); }

inline Floats widened(const uint16_t *from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

// e^x to about two units in the last place; 0 below -87. NaN stays NaN, so that broken logits are noticed.
inline Floats exponential(Floats x) {
  const Floats bounded = x < -87.0f ? Floats{} - 87.0f : (x > 88.0f ? Floats{} + 88.0f : x);
  const Floats n = (bounded * 1.44269504f + 12582912.0f) - 12582912.0f;
  const Floats r = bounded - n * 0.693359375f + n * 2.12194440e-4f;
  Floats y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  const Words power = (__builtin_convertvector(n, Words) + 127) << 23;
  return x < -87.0f ? Floats{} : y * (Floats)power;
}

// Sixteen words of each of sixteen rows turned into the rows' words of each place.
inline void transpose(Words (&rows)[LANES]) {
  const Words lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#pragma GCC unroll 4
  for (int by = LANES / 2; by; by /= 2) {
    const Words kept = (lanes & by) == 0, upper = lanes + (kept ? lanes - lanes : lanes - lanes + (LANES - by));
    const Words lower = kept ? lanes + by : lanes + LANES;
#pragma GCC unroll 16
    for (int row = 0; row < LANES; row++) {
      if (row & by) continue;
      const Words one = rows[row], other = rows[row + by];
      rows[row] = __builtin_shuffle(one, other, upper);
      rows[row + by] = __builtin_shuffle(one, other, lower);
    }
  }
}

}  // namespace
