// The passes in vectors of sixteen: AVX-512 V, BW, DQ and VL.

#include "path.h"
#include "powers.h"

#ifdef ARTURO_X86

#include <cstring>
#include <immintrin.h>

namespace {

using arturo::Pair;

typedef float V __attribute__((vector_size(64)));
typedef int32_t VI __attribute__((vector_size(64)));
typedef uint32_t VU __attribute__((vector_size(64)));

inline V multiply_add(V a, V b, V c) { return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }

// NaN in x stays: the instruction returns its second operand then.
inline V minimum(V bound, V x) { return (V)_mm512_min_ps((__m512)bound, (__m512)x); }
inline V maximum(V bound, V x) { return (V)_mm512_max_ps((__m512)bound, (__m512)x); }

// From fourteen bits by one step of Goldschmidt's iteration; x is neither zero nor subnormal.
inline V root(V x) {
    const V guess = (V)_mm512_rsqrt14_ps((__m512)x), near = x * guess;
    return multiply_add(near, multiply_add(-near, guess * 0.5f, 0.5f - V{}), near);
}

// a/b of a b between 1e-30 and 1e30.
inline V ratio(V a, V b) {
    const V guess = (V)_mm512_rcp14_ps((__m512)b);
    return a * multiply_add(guess, multiply_add(-b, guess, 1.0f - V{}), guess);
}

inline VI whole(V x) { return (VI)_mm512_cvttps_epi32((__m512)x); }
inline V number(VI x) { return (V)_mm512_cvtepi32_ps((__m512i)x); }
inline V rounded_down(V x) {
    return (V)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}

// By four bits at a time, which are all that the instruction looks at.
inline V power_of_codes(VI codes) {
    const __m512i ones = (__m512i)codes, sixteens = (__m512i)(codes >> 4);
    return (V)_mm512_permutexvar_ps(ones, _mm512_loadu_ps(arturo::POWERS.ones)) *
           (V)_mm512_permutexvar_ps(sixteens, _mm512_loadu_ps(arturo::POWERS.sixteens));
}

// The largest, everywhere.
inline V largest(V x) {
    x = maximum(x, (V)_mm512_shuffle_f32x4((__m512)x, (__m512)x, 0x4e));
    x = maximum(x, (V)_mm512_shuffle_f32x4((__m512)x, (__m512)x, 0xb1));
    x = maximum(x, (V)_mm512_permute_ps((__m512)x, 0x4e));
    return maximum(x, (V)_mm512_permute_ps((__m512)x, 0xb1));
}

inline void read(V &x, const uint16_t *from) {
    const __m256i bits = _mm256_loadu_si256((const __m256i *)from);
    x = (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
}
inline void write(uint16_t *to, V x) {
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)x, 16)));
}

inline void read(VI &x, const int8_t *from) {
    x = (VI)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from));
}
inline void write(int8_t *to, VI x) { _mm_storeu_si128((__m128i *)to, _mm512_cvtsepi32_epi8((__m512i)x)); }

inline void half_to_float(const uint16_t *from, float *to, int count) {
    int i = 0;
    for (; i + 16 <= count; i += 16)
        _mm512_storeu_ps(to + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(from + i))));
    for (; i < count; i++) to[i] = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(from[i])));
}
inline void float_to_half(const float *from, uint16_t *to, int count) {
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    int i = 0;
    for (; i + 16 <= count; i += 16)
        _mm256_storeu_si256((__m256i *)(to + i), _mm512_cvtps_ph(_mm512_loadu_ps(from + i), nearest));
    for (; i < count; i++) to[i] = (uint16_t)_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(from[i]), nearest));
}

// What the passes compute with at a time.
typedef Pair<V> F;

}  // namespace

#include "passes.h"

const arturo::Path arturo::avx512 = {survey, observe, apply, squares};

#endif
