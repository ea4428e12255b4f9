// The passes in vectors of eight: AVX2, FMA and F16C.

#include "path.h"
#include "powers.h"

#ifdef ARTURO_X86

#include <cstring>
#include <immintrin.h>

namespace {

using arturo::Pair;

typedef float V __attribute__((vector_size(32)));
typedef int32_t VI __attribute__((vector_size(32)));
typedef uint32_t VU __attribute__((vector_size(32)));

inline V multiply_add(V a, V b, V c) { return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }

// NaN in x stays: the instruction returns its second operand then.
inline V minimum(V bound, V x) { return (V)_mm256_min_ps((__m256)bound, (__m256)x); }
inline V maximum(V bound, V x) { return (V)_mm256_max_ps((__m256)bound, (__m256)x); }

inline V root(V x) { return (V)_mm256_sqrt_ps((__m256)x); }

// a/b of a b between 1e-30 and 1e30.
inline V ratio(V a, V b) { return a / b; }

inline VI whole(V x) { return (VI)_mm256_cvttps_epi32((__m256)x); }
inline V number(VI x) { return (V)_mm256_cvtepi32_ps((__m256i)x); }
inline V rounded_down(V x) { return (V)_mm256_floor_ps((__m256)x); }

// By three bits at a time, which are all that the instruction looks at.
inline V power_of_codes(VI codes) {
    const auto table = [](const float *from) { return _mm256_loadu_ps(from); };
    const __m256i ones = (__m256i)codes, eights = (__m256i)(codes >> 3), rest = (__m256i)(codes >> 6);
    return (V)_mm256_permutevar8x32_ps(table(arturo::POWERS.ones), ones) *
           (V)_mm256_permutevar8x32_ps(table(arturo::POWERS.eights), eights) *
           (V)_mm256_permutevar8x32_ps(table(arturo::POWERS.sixtyfours), rest);
}

// The largest, everywhere.
inline V largest(V x) {
    x = maximum(x, (V)_mm256_permute2f128_ps((__m256)x, (__m256)x, 1));
    x = maximum(x, (V)_mm256_permute_ps((__m256)x, 0x4e));
    return maximum(x, (V)_mm256_permute_ps((__m256)x, 0xb1));
}

inline void read(V &x, const uint16_t *from) {
    const __m128i bits = _mm_loadu_si128((const __m128i *)from);
    x = (V)_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16);
}
inline void write(uint16_t *to, V x) {
    const __m256i high = _mm256_srli_epi32((__m256i)x, 16);
    const __m128i bits = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    _mm_storeu_si128((__m128i *)to, bits);
}

// Sixteen at once: the halves of what an instruction packs lie crosswise.
inline void write(uint16_t *to, Pair<V> x) {
    const __m256i low = _mm256_srli_epi32((__m256i)x.low, 16), high = _mm256_srli_epi32((__m256i)x.high, 16);
    const __m256i bits = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
    _mm256_storeu_si256((__m256i *)to, bits);
}

inline void read(VI &x, const int8_t *from) {
    x = (VI)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from));
}
inline void write(int8_t *to, Pair<VI> x) {
    const __m256i crosswise = _mm256_packs_epi32((__m256i)x.low, (__m256i)x.high);
    const __m256i words = _mm256_permute4x64_epi64(crosswise, 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i *)to, bytes);
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

// What the passes compute with at a time.
typedef Pair<V> F;

}  // namespace

#include "passes.h"

const arturo::Path arturo::avx2 = {survey, observe, apply, squares};

#endif
