// The passes in vectors of sixteen: AVX-512 F, BW, DQ and VL.

#include "path.h"

#ifdef ARTURO_X86

#include <cstring>
#include <immintrin.h>

namespace {

constexpr int WIDTH = 16;
typedef float F __attribute__((vector_size(64)));
typedef int32_t I __attribute__((vector_size(64)));
typedef uint32_t U __attribute__((vector_size(64)));

inline F multiply_add(F a, F b, F c) { return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }

// NaN in x stays: the instruction returns its second operand then.
inline F minimum(F bound, F x) { return (F)_mm512_min_ps((__m512)bound, (__m512)x); }
inline F maximum(F bound, F x) { return (F)_mm512_max_ps((__m512)bound, (__m512)x); }

// From fourteen bits by one step of Goldschmidt's iteration; the root's remainder corrects its last bit.
inline void root(F x, F &result, F &inverse) {
    const F guess = (F)_mm512_rsqrt14_ps((__m512)x), half = guess * 0.5f, near = x * guess;
    const F error = multiply_add(-near, half, 0.5f - F{});
    const F nearer = multiply_add(near, error, near), better = multiply_add(half, error, half);
    result = multiply_add(multiply_add(-nearer, nearer, x), better, nearer);
    inverse = better + better;
}

// a/b of b in [0.1, 10].
inline F ratio(F a, F b) {
    const F guess = (F)_mm512_rcp14_ps((__m512)b);
    return a * multiply_add(guess, multiply_add(-b, guess, 1.0f - F{}), guess);
}

inline F load(const uint16_t *from) {
    const __m256i bits = _mm256_loadu_si256((const __m256i *)from);
    return (F)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
}
inline void store(uint16_t *to, F x) {
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)x, 16)));
}

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

}  // namespace

#include "passes.h"

const arturo::Path arturo::avx512 = {survey, observe, apply, squares};

#endif
