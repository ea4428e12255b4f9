// The state in 8 bits: codes of signed numbers beside a scale for SCALED of them, and codes of logarithms. The
// definition is arturo_core/storage/codes.py.

namespace {

constexpr float CODES_MOST = 127.0f;
constexpr float LEAST_SCALE = 1e-35f;
// Codes for a change of log s by one.
constexpr float CODES_A_UNIT = 127.0 / 2.302585092994045684;

static_assert(SCALED % WIDTH == 0 && STAGE % SCALED == 0 && TILE % STAGE == 0, "scales are of whole vectors");

// Signed numbers from one whose index is a multiple of SCALED; only whole scales may be added to one of these.
struct Signed {
    int8_t *codes;
    uint16_t *scales;
    Signed at(int64_t i) const { return {codes + i, scales + i / SCALED}; }
};

// Logarithms in steps of log(10)/127.
struct Logarithms {
    int8_t *codes;
};

// c/(254 - |c|) of numbers c.
inline F share_of(F code) { return code / (splat(2.0f * CODES_MOST) - magnitude(code)); }

inline F load(const Signed &from, int i) {
    return share_of(number(load_bits(from.codes + i))) * splat(widened(from.scales[i / SCALED]));
}

inline F load(const Logarithms &from, int i) { return power_of_codes(load_bits(from.codes + i)); }

inline void ask(const Signed &from, int i) {
    ask(from.codes, i);
    if (i % STAGE == 0) __builtin_prefetch((const char *)(from.scales + i / SCALED) + ARTURO_AHEAD / 4, 1);
}

// The scale of SCALED numbers of which this is the largest.
inline float write_scale(uint16_t *to, float largest) {
    uint32_t bits;
    memcpy(&bits, &largest, 4);
    *to = largest < LEAST_SCALE ? 0 : (uint16_t)((bits + 0xffffu) >> 16);
    return widened(*to);
}

// How a run of SCALED numbers becomes codes.
struct Encoding {
    F scale, positive, noise, half;
    I present;  // all bits of a magnitude, or none where the run is kept as zeros

    Encoding(float given) {
        scale = splat(given);
        positive = splat(given > 0.0f ? given : 1.0f);
        noise = splat(given * (2.0f * CODES_MOST / 256.0f));
        half = splat(given * (CODES_MOST / 256.0f));
        present = splat_bits(given > 0.0f ? 0x7fffffffu : 0u);
    }

    // The codes as numbers; `random` is 8 bits. Of y = |x|/scale the code below is floor(254 y/(1 + y)), and the next
    // one is taken with probability (y (254 - c) - c) (253 - c)/254. Nothing is divided by the scale.
    F codes(F x, I random) const {
        const F most = splat(2.0f * CODES_MOST), size = real(bits(x) & present);
        F below = rounded_down(size * inverse(positive + size) * most);
        below = minimum(splat(CODES_MOST - 1.0f), below);
        const F left = most - below, excess = multiply_add(size, left, -(below * scale));
        const I up = excess * (left - splat(1.0f)) > multiply_add(number(random), noise, half);
        const F code = below + real(up & bits(splat(1.0f)));
        return real(bits(code) | (bits(x) & splat_bits(0x80000000u)));
    }
};

// Writes SCALED numbers; `then` is given the place of each vector and what is kept there.
template <class Then>
inline void encode(const float *numbers, const Signed &to, const int32_t *random, int shift, const Then &then) {
    F most = {};
    for (int i = 0; i < SCALED; i += WIDTH) most = maximum(magnitude(load(numbers + i)), most);
    const float scale = write_scale(to.scales, largest(most));
    const Encoding by(scale);
    for (int i = 0; i < SCALED; i += WIDTH) {
        const F code = by.codes(load(numbers + i), shifted(load_bits(random + i), shift) & splat_bits(0xff));
        store(to.codes + i, whole(code));
        then(i, code, by.scale);
    }
}

// The codes of logarithms that have changed by `change` codes; `random` is 32 bits.
inline I log_codes(F change, I before, I random) {
    const F noise = number(shifted(random * splat_bits(0x9E3779B1u), 16));
    const F code = rounded_down(multiply_add(noise, splat(1.0f / 65536.0f), number(before) + change));
    return whole(clamp(code, splat(-CODES_MOST), splat(CODES_MOST)));
}

}  // namespace
