// The passes in vectors of eight: AVX2, FMA and F16C.

#include "path.h"

#ifdef ARTURO_X86

#include <cstring>
#include <immintrin.h>

namespace {

constexpr int WIDTH = 8;
typedef float F __attribute__((vector_size(32)));
typedef int32_t I __attribute__((vector_size(32)));
typedef uint32_t U __attribute__((vector_size(32)));

inline F multiply_add(F a, F b, F c) { return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }

// NaN in x stays: the instruction returns its second operand then.
inline F minimum(F bound, F x) { return (F)_mm256_min_ps((__m256)bound, (__m256)x); }
inline F maximum(F bound, F x) { return (F)_mm256_max_ps((__m256)bound, (__m256)x); }

// From twelve bits by one step of Goldschmidt's iteration; the root's remainder corrects its last bit.
inline void root(F x, F &result, F &inverse) {
    const F guess = (F)_mm256_rsqrt_ps((__m256)x), half = guess * 0.5f, near = x * guess;
    const F error = multiply_add(-near, half, 0.5f - F{});
    const F nearer = multiply_add(near, error, near), better = multiply_add(half, error, half);
    result = multiply_add(multiply_add(-nearer, nearer, x), better, nearer);
    inverse = better + better;
}

// a/b of b in [0.1, 10].
inline F ratio(F a, F b) { return a / b; }

inline F load(const uint16_t *from) {
    const __m128i bits = _mm_loadu_si128((const __m128i *)from);
    return (F)_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16);
}
inline void store(uint16_t *to, F x) {
    const __m256i high = _mm256_srli_epi32((__m256i)x, 16);
    const __m128i bits = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    _mm_storeu_si128((__m128i *)to, bits);
}

inline void half_to_float(const uint16_t *from, float *to, int count) {
    int i = 0;
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + i))));
    for (; i < count; i++) to[i] = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(from[i])));
}
inline void float_to_half(const float *from, uint16_t *to, int count) {
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    int i = 0;
    for (; i + 8 <= count; i += 8)
        _mm_storeu_si128((__m128i *)(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), nearest));
    for (; i < count; i++) to[i] = (uint16_t)_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(from[i]), nearest));
}

}  // namespace

#include "passes.h"

const arturo::Path arturo::avx2 = {survey, observe, apply, squares};

#endif
