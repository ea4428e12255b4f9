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

// c/(254 - |c|) of numbers c.
inline F share_of(F code) { return code / (splat(2.0f * CODES_MOST) - magnitude(code)); }

inline F load(const Signed &from, int i) {
    return share_of(number(load_bits(from.codes + i))) * splat(widened(from.scales[i / SCALED]));
}

inline void ask(const Signed &from, int i) {
    ask(from.codes, i);
    if (i % STAGE == 0) __builtin_prefetch((const char *)(from.scales + i / SCALED) + ARTURO_AHEAD / 16, 1);
}

// Writes the scale of SCALED numbers, zero where they are kept as zeros, and returns it, everywhere alike.
inline V write_scale(uint16_t *to, const float *numbers) {
    F most = {};
    for (int i = 0; i < SCALED; i += WIDTH) most = maximum(magnitude(load(numbers + i)), most);
    const V above = largest(most);
    const VI up = (bits(above) + (0xffff - VI{})) & ((int32_t)0xffff0000 - VI{});
    const V scale = real(up & ~(above < LEAST_SCALE - V{}));
    float first[sizeof(V) / 4];
    write(first, scale);
    uint32_t number;
    memcpy(&number, first, 4);
    *to = (uint16_t)(number >> 16);
    return scale;
}

// How SCALED numbers become codes. With y = |x|/scale and z = 254/(1 + y) the code below is 253 - floor(z), and the
// next one is taken with probability (1 - z + floor(z)) floor(z)/z: then the mean is y.
struct Encoding {
    F scale, most;
    I present;  // all bits of a magnitude, or none where everything is kept as zeros

    explicit Encoding(V given) {
        const VI some = given > V{};
        const V positive = real(bits(given) | (bits(1.0f - V{}) & ~some));
        scale = splat(positive);
        most = splat(positive * (2.0f * CODES_MOST));
        fill(present, some & (0x7fffffff - VI{}));
    }

    // Magnitudes of codes, as numbers; of the random bits the lowest 8 count.
    F magnitudes(F x, I random) const {
        const F z = most / (scale + real(bits(x) & present)), whole = rounded_down(z);
        const F noise = multiply_add(number(random & splat_bits(0xff)), splat(1.0f / 256.0f), splat(0.5f / 256.0f));
        const I up = multiply_add(whole - z, whole, whole) > noise * z;
        return (splat(2.0f * CODES_MOST - 1.0f) - whole) + real(up & bits(splat(1.0f)));
    }
};

inline void store_codes(int8_t *to, F magnitudes, F signs) {
    store(to, whole(real(bits(magnitudes) | (bits(signs) & splat_bits(0x80000000u)))));
}

// Writes `count` numbers. Scales come first, since to find one takes long and little work.
inline void encode(const float *numbers, const Signed &to, const int32_t *random, int shift, int count) {
    V scales[STAGE / SCALED];
    for (int k = 0; k < count / SCALED; k++) scales[k] = write_scale(to.scales + k, numbers + k * SCALED);
    for (int at = 0; at < count; at += SCALED) {
        const Encoding by(scales[at / SCALED]);
        for (int i = at; i < at + SCALED; i += WIDTH) {
            const F x = load(numbers + i);
            store_codes(to.codes + i, by.magnitudes(x, shifted(load_bits(random + i), shift)), x);
        }
    }
}

// The codes of numbers whose logarithms change.
inline I log_codes(F change, I before, I random) {
    const F noise = number(shifted(random * splat_bits(0x9E3779B1u), 16));
    const F exact = multiply_add(change, splat(CODES_A_UNIT), number(before));
    const F code = rounded_down(multiply_add(noise, splat(1.0f / 65536.0f), exact));
    return whole(clamp(code, splat(-CODES_MOST), splat(CODES_MOST)));
}

struct Coded {
    Signed direction;
    uint16_t *deviation;
    int8_t *curvature;
    Signed displacement;
    Coded at(int64_t i) const { return {direction.at(i), deviation + i, curvature + i, displacement.at(i)}; }
};

inline Coded coded(const Source &source) {
    return {
        {(int8_t *)source.direction, (uint16_t *)source.direction_scale},
        (uint16_t *)source.deviation,
        (int8_t *)source.curvature,
        {(int8_t *)source.displacement, (uint16_t *)source.displacement_scale},
    };
}

}  // namespace
