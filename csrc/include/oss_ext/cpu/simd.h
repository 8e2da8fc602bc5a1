// Vectors and conversions for the sources that are compiled once for every instruction set. Everything here has
// internal linkage and nothing comes from the standard library: an inline function with external linkage would be
// merged over the instruction sets by the linker, and could bring AVX-512 code to a machine without it.
#pragma once

#include <cstdint>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "oss_ext/types.h"

#define OSS_EXT_INLINE static inline __attribute__((always_inline))

namespace oss_ext::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct Simd;
template <>
struct Simd<float> {
  typedef float Vector __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Mask __attribute__((vector_size(kVectorBytes)));
  typedef float Quad __attribute__((vector_size(16)));
};
template <>
struct Simd<double> {
  typedef double Vector __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Mask __attribute__((vector_size(kVectorBytes)));
  typedef double Quad __attribute__((vector_size(16)));
};
template <class T>
using Vector = typename Simd<T>::Vector;
template <class T>
using Mask = typename Simd<T>::Mask;
template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
OSS_EXT_INLINE Vector<T> load(const T* from) {
  Vector<T> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

// A vector that is used more than once is loaded once: left alone, GCC folds the load into every instruction that uses
// it.
template <class T>
OSS_EXT_INLINE Vector<T> in_register(Vector<T> v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#endif
  return v;
}

template <class T>
OSS_EXT_INLINE void store(T* to, Vector<T> v) {
  __builtin_memcpy(to, &v, sizeof v);
}

// x - 0 is x for every x, -0 and NaN included.
template <class T>
OSS_EXT_INLINE Vector<T> broadcast(T x) {
  return x - Vector<T>{};
}

// All ones in the first `count` lanes.
template <class T>
OSS_EXT_INLINE Mask<T> first_lanes(int count) {
  Mask<T> mask{};
  for (int l = 0; l < kLanes<T>; ++l) mask[l] = l < count ? -1 : 0;
  return mask;
}

template <class T>
OSS_EXT_INLINE Vector<T> keep(Vector<T> v, Mask<T> mask) {
  return (Vector<T>)((Mask<T>)v & mask);
}

// Sum of the lanes: halves are added until 16 bytes are left, those in order.
template <class T>
OSS_EXT_INLINE double sum_lanes(Vector<T> v) {
  typedef typename Simd<T>::Quad Quad;
  constexpr int parts = kVectorBytes / 16;
  Quad part[parts];
  __builtin_memcpy(part, &v, sizeof v);
  for (int half = parts / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) part[i] += part[i + half];
  double sum = 0;
  for (int l = 0; l < 16 / static_cast<int>(sizeof(T)); ++l) sum += static_cast<double>(part[0][l]);
  return sum;
}

OSS_EXT_INLINE float bits_to_float(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

OSS_EXT_INLINE uint32_t float_to_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}

OSS_EXT_INLINE float from_f16(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t body = static_cast<uint32_t>(h & 0x7fffu) << 13;
  uint32_t bits;
  if (body < (1u << 23)) {  // zero or subnormal: m 2^-24, exactly, without touching a float subnormal
    bits = float_to_bits(bits_to_float(body + (113u << 23)) - bits_to_float(113u << 23));
  } else if (body >= (31u << 23)) {
    bits = body | (255u << 23);
  } else {
    bits = body + (112u << 23);
  }
  return bits_to_float(bits | sign);
}

// Round to nearest, ties to even.
OSS_EXT_INLINE uint16_t to_f16(float x) {
  const uint32_t bits = float_to_bits(x);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t body = bits & 0x7fffffffu;
  if (body > (255u << 23)) return sign | 0x7e00u;
  if (body >= (143u << 23)) return sign | 0x7c00u;
  if (body < (113u << 23)) {  // subnormal: adding 0.5 aligns the last kept bit with the last bit of the sum
    return sign | static_cast<uint16_t>(float_to_bits(bits_to_float(body) + 0.5f) - float_to_bits(0.5f));
  }
  const uint32_t rounded = body + 0xfffu + ((body >> 13) & 1u);
  return sign | static_cast<uint16_t>((rounded >> 13) - (112u << 10));
}

OSS_EXT_INLINE uint16_t to_bf16(float x) {
  const uint32_t bits = float_to_bits(x);
  if ((bits & 0x7fffffffu) > (255u << 23)) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static void widen_f16(const uint16_t* from, int count, float* to) {
  int d = 0;
#if defined(__F16C__)
  for (; d + 8 <= count; d += 8)
    _mm256_storeu_ps(to + d, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + d))));
#endif
  for (; d < count; ++d) to[d] = from_f16(from[d]);
}

static void narrow_f16(const float* from, int count, uint16_t* to) {
  int d = 0;
#if defined(__F16C__)
  for (; d + 8 <= count; d += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + d),
                     _mm256_cvtps_ph(_mm256_loadu_ps(from + d), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#endif
  for (; d < count; ++d) to[d] = to_f16(from[d]);
}

// `count` elements of a row that begins at element `first`, as float.
static void read_row(DType dtype, const void* row, int64_t first, int count, float* to) {
  if (dtype == DType::f32) {
    __builtin_memcpy(to, static_cast<const float*>(row) + first, sizeof(float) * count);
  } else if (dtype == DType::bf16) {
    const uint16_t* from = static_cast<const uint16_t*>(row) + first;
    for (int d = 0; d < count; ++d) to[d] = bits_to_float(static_cast<uint32_t>(from[d]) << 16);
  } else {
    widen_f16(static_cast<const uint16_t*>(row) + first, count, to);
  }
}

}  // namespace
}  // namespace oss_ext::cpu
