// The passes in whatever vectors of four the compiler's target has: SSE2, NEON, or none.

#include "path.h"
#include "powers.h"

#include <cmath>
#include <cstring>

namespace {

using arturo::Pair;

typedef float V __attribute__((vector_size(16)));
typedef int32_t VI __attribute__((vector_size(16)));
typedef uint32_t VU __attribute__((vector_size(16)));
typedef uint16_t H __attribute__((vector_size(8)));
typedef int8_t B __attribute__((vector_size(4)));

inline V multiply_add(V a, V b, V c) { return a * b + c; }

// NaN in x stays.
inline V minimum(V bound, V x) {
    const VI over = x > bound;
    return (V)((over & (VI)bound) | (~over & (VI)x));
}
inline V maximum(V bound, V x) {
    const VI under = x < bound;
    return (V)((under & (VI)bound) | (~under & (VI)x));
}

inline V root(V x) {
    for (int j = 0; j < 4; j++) x[j] = std::sqrt(x[j]);
    return x;
}

// a/b of a b between 1e-30 and 1e30.
inline V ratio(V a, V b) { return a / b; }

inline VI whole(V x) { return __builtin_convertvector(x, VI); }
inline V number(VI x) { return __builtin_convertvector(x, V); }
// Of numbers that fit in 32 bits.
inline V rounded_down(V x) {
    const V towards_zero = number(whole(x));
    return towards_zero + number(towards_zero > x);
}

inline V power_of_codes(VI codes) {
    V powers;
    for (int j = 0; j < 4; j++) powers[j] = arturo::POWERS.all[codes[j] & 255];
    return powers;
}

// The largest, everywhere.
inline V largest(V x) {
    x = maximum(x, V{x[2], x[3], x[0], x[1]});
    return maximum(x, V{x[1], x[0], x[3], x[2]});
}

inline void read(V &x, const uint16_t *from) {
    H bits;
    memcpy(&bits, from, sizeof bits);
    x = (V)(__builtin_convertvector(bits, VI) << 16);
}
inline void write(uint16_t *to, V x) {
    const H bits = __builtin_convertvector((VU)x >> 16, H);
    memcpy(to, &bits, sizeof bits);
}

inline void read(VI &x, const int8_t *from) {
    B bytes;
    memcpy(&bytes, from, sizeof bytes);
    x = __builtin_convertvector(bytes, VI);
}
inline void write(int8_t *to, VI x) {
    const B bytes = __builtin_convertvector(x, B);
    memcpy(to, &bytes, sizeof bytes);
}

void half_to_float(const uint16_t *from, float *to, int count) {
    for (int i = 0; i < count; i++) {
        const uint32_t magnitude = from[i] & 0x7fffu, sign = (uint32_t)(from[i] & 0x8000u) << 16;
        uint32_t bits;
        if (magnitude < 0x400u) {
            const float x = (float)magnitude * 5.9604644775390625e-8f;  // 2^-24
            memcpy(&bits, &x, 4);
        } else {
            bits = (magnitude << 13) + (magnitude < 0x7c00u ? 112u << 23 : 224u << 23);
        }
        bits |= sign;
        memcpy(to + i, &bits, 4);
    }
}

void float_to_half(const float *from, uint16_t *to, int count) {
    for (int i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, from + i, 4);
        const uint32_t magnitude = bits & 0x7fffffffu;
        uint32_t half;
        if (magnitude > 0x7f800000u) {
            half = 0x7e00u;
        } else if (magnitude >= 0x477ff000u) {
            half = 0x7c00u;  // 65520 and more
        } else if (magnitude < 0x38800000u) {
            float x;
            memcpy(&x, &magnitude, 4);
            x += 0.5f;  // whose last bit is 2^-24, that of the smallest number
            memcpy(&half, &x, 4);
            half -= 0x3f000000u;
        } else {
            half = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
        }
        to[i] = (uint16_t)(half | (bits >> 16 & 0x8000u));
    }
}

// What the passes compute with at a time.
typedef Pair<Pair<V>> F;

}  // namespace

#include "passes.h"

const arturo::Path arturo::plain = {survey, observe, apply, squares};
