// Narrow types: how they are read, rounded and written.

namespace {

// How numbers of the state are rounded: each of these returns what is kept, as float32.
inline F at_random(float *, F x, I) { return x; }
inline F to_nearest(float *, F x) { return x; }
inline F at_random(uint16_t *, F x, I noise) { return real((bits(x) + noise) & splat_bits(0xffff0000u)); }
inline F to_nearest(uint16_t *to, F x) {
    return at_random(to, x, (shifted(bits(x), 16) & splat_bits(1)) + splat_bits(0x7fff));
}

inline float widened(float x) { return x; }
inline float widened(uint16_t bits) {
    const uint32_t wide = (uint32_t)bits << 16;
    float x;
    memcpy(&x, &wide, 4);
    return x;
}
inline uint16_t narrowed(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

inline void widen(const uint16_t *from, uint8_t kind, float *to, int count) {
    if (kind == BFLOAT16)
        for (int i = 0; i < count; i++) to[i] = widened(from[i]);
    else
        half_to_float(from, to, count);
}
inline void narrow(const float *from, uint8_t kind, uint16_t *to, int count) {
    if (kind == BFLOAT16)
        for (int i = 0; i < count; i++) to[i] = narrowed(from[i]);
    else
        float_to_half(from, to, count);
}
// A tile as float32: the tensor itself, or a copy of it in the buffer.
inline const float *as_float(const void *tensor, uint8_t kind, int64_t at, float *buffer, int count) {
    if (kind == FLOAT32) return (const float *)tensor + at;
    const uint16_t *from = (const uint16_t *)tensor + at;
    for (int i = 0; i < count; i += 2 * LINE) ask((const char *)(from + i) + ARTURO_AHEAD);
    widen(from, kind, buffer, count);
    return buffer;
}

}  // namespace
