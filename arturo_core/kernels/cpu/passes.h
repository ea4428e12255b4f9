// The passes over one block, in terms of a few vector operations that the including file defines (see plain.cpp).
// They are held to the pure functions of arturo_core/algorithm/compact.py; names are the same.
//
// An element is computed alike wherever a block begins: the last elements of a block go through the
// same operations in a buffer, so an element's numbers do not depend on how tensors are cut.

#include <cstring>

namespace {

using namespace arturo;

// Elements between additions to sums in double precision; also those of the buffers for narrow types.
constexpr int TILE = 512;
// Elements of float32 in a cache line.
constexpr int LINE = 16;
// How far ahead memory is asked for, in bytes.
#ifndef ARTURO_AHEAD
#define ARTURO_AHEAD 1024
#endif

constexpr float NEGLIGIBLE = 1e-30f;
constexpr float LEAST_VARIANCE = 1e-36f;
constexpr float LARGEST_DIRECTION = 1e30f;
constexpr float CURVATURE_STEP = 0.1f;
constexpr float CURVATURE_LEAST = 0.1f, CURVATURE_MOST = 10.0f;
constexpr float PER_MOVED = 1e4f;
constexpr int32_t UNUSABLE = 0x5d5e0b6b;  // the bits of 1e18
// Up to this |level| the exponential needs no reduction of its range.
constexpr float SMALL_LEVEL = 0.25f;

typedef double D __attribute__((vector_size(8 * WIDTH)));

inline F splat(float x) { return x - F{}; }
inline I splat_bits(uint32_t x) { return (int32_t)x - I{}; }
inline F pick(I mask, F yes, F no) { return (F)((mask & (I)yes) | (~mask & (I)no)); }
inline F magnitude(F x) { return (F)((I)x & splat_bits(0x7fffffffu)); }
inline F unless_negligible(F x) { return (F)((I)x & (magnitude(x) > splat(NEGLIGIBLE))); }
inline F clamp(F x, F least, F most) { return minimum(most, maximum(least, x)); }
inline I shifted(I x, int bits) { return (I)((U)x >> bits); }

inline F load(const float *from) {
    F x;
    memcpy(&x, from, sizeof x);
    return x;
}
inline void store(float *to, F x) { memcpy(to, &x, sizeof x); }

inline void ask(const void *address) { __builtin_prefetch(address); }
template <class T> inline void ask_state(const T *address, int at) {
    if (sizeof(T) == 4 || at % (2 * LINE) == 0) __builtin_prefetch((const char *)(address + at) + ARTURO_AHEAD, 1);
}

// exp of |x| <= 3; below 0.36 without reduction of the range.
template <bool SMALL> inline F exponential(F x) {
    I power = {};
    if (!SMALL) {
        const F magic = splat(12582912.0f);
        F turns = multiply_add(x, splat(1.44269504f), magic);
        power = (I)turns << 23;
        turns = turns - magic;
        x = multiply_add(turns, splat(-0.693145752f), x);
        x = multiply_add(turns, splat(-1.42860677e-6f), x);
    }
    F y = multiply_add(x, splat(1.0f / 720.0f), splat(1.0f / 120.0f));
    y = multiply_add(x, y, splat(1.0f / 24.0f));
    y = multiply_add(x, y, splat(1.0f / 6.0f));
    y = multiply_add(x, y, splat(0.5f));
    y = multiply_add(x, y, splat(1.0f));
    y = multiply_add(x, y, splat(1.0f));
    return SMALL ? y : (F)((I)y + power);
}

// 32 random bits of each of WIDTH consecutive elements; `index` is that of the first, `salt` the key and the index's
// upper half. See arturo_core/kernels/random_bits.py.
inline I random_bits(uint32_t index, uint32_t salt) {
    U lane;
    for (int j = 0; j < WIDTH; j++) lane[j] = (uint32_t)j * 0x9E3779B1u;
    U x = (lane + (uint32_t)(index * 0x9E3779B1u)) ^ salt;
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    x ^= x >> 16;
    return (I)x;
}

// How numbers of the state are rounded: each of these returns what is kept, as float32.
inline F at_random(float *, F x, I) { return x; }
inline F to_nearest(float *, F x) { return x; }
inline F at_random(uint16_t *, F x, I noise) { return (F)(((I)x + noise) & splat_bits(0xffff0000u)); }
inline F to_nearest(uint16_t *to, F x) {
    return at_random(to, x, (shifted((I)x, 16) & splat_bits(1)) + splat_bits(0x7fff));
}

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

template <int N> struct Sums {
    D wide[N] = {};
    double rest[N] = {};
    // Lanes of one tile; of the elements of a buffer the first `count`.
    void add(const F *lanes) {
        for (int k = 0; k < N; k++) wide[k] += __builtin_convertvector(lanes[k], D);
    }
    void add(const F *lanes, int count) {
        for (int k = 0; k < N; k++)
            for (int j = 0; j < count; j++) rest[k] += lanes[k][j];
    }
    double total(int k) const {
        double sum = rest[k];
        for (int j = 0; j < WIDTH; j++) sum += wide[k][j];
        return sum;
    }
};

// ---- survey: is every gradient usable; sum of squared weights

inline bool unusable(const float *grad, int count) {
    const I mask = splat_bits(0x7fffffffu), limit = splat_bits(UNUSABLE - 1);
    I bad = {};
    int i = 0;
    for (; i + LINE <= count; i += LINE) {
        ask((const char *)(grad + i) + ARTURO_AHEAD);
        for (int j = 0; j < LINE; j += WIDTH) bad |= ((I)load(grad + i + j) & mask) > limit;
    }
    int32_t any = 0;
    for (int j = 0; j < WIDTH; j++) any |= bad[j];
    for (; i < count; i++) {
        int32_t bits;
        memcpy(&bits, grad + i, 4);
        any |= (bits & 0x7fffffff) >= UNUSABLE;
    }
    return any != 0;
}

inline void add_squares(const float *x, int count, Sums<1> &sums) {
    F lanes[2] = {};
    int i = 0;
    for (; i + LINE <= count; i += LINE) {
        ask((const char *)(x + i) + ARTURO_AHEAD);
        for (int j = 0; j < LINE; j += WIDTH) {
            const F one = load(x + i + j);
            lanes[j / WIDTH % 2] = multiply_add(one, one, lanes[j / WIDTH % 2]);
        }
    }
    const F both = lanes[0] + lanes[1];
    sums.add(&both);
    for (; i < count; i++) sums.rest[0] += (double)x[i] * x[i];
}

// Squares that leave float32, or vanish in it, are summed anew in double precision.
double squared(const Source &source, uint8_t kind, const Block &block) {
    float buffer[TILE];
    Sums<1> sums;
    for (int at = 0; at < block.count; at += TILE) {
        const int count = block.count - at < TILE ? block.count - at : TILE;
        add_squares(as_float(source.theta, kind, block.start + at, buffer, count), count, sums);
    }
    const double total = sums.total(0);
    if (total > 1e-24 && total < 1e38) return total;
    double exact = 0.0;
    for (int at = 0; at < block.count; at += TILE) {
        const int count = block.count - at < TILE ? block.count - at : TILE;
        const float *x = as_float(source.theta, kind, block.start + at, buffer, count);
        for (int i = 0; i < count; i++) exact += (double)x[i] * x[i];
    }
    return exact;
}

void squares(const Source &source, Kinds kinds, const Block &block, double *out) {
    out[0] = squared(source, kinds.theta, block);
}

void survey(const Source &source, Kinds kinds, const Block &block, double *out) {
    float buffer[TILE];
    bool bad = false;
    for (int at = 0; at < block.count; at += TILE) {
        const int count = block.count - at < TILE ? block.count - at : TILE;
        bad |= unusable(as_float(source.grad, kinds.grad, block.start + at, buffer, count), count);
    }
    out[0] = bad;
}

// ---- observe

template <class T> struct Kept {
    T *direction, *deviation, *curvature, *displacement;
    Kept at(int64_t i) const { return {direction + i, deviation + i, curvature + i, displacement + i}; }
};

template <class T> inline Kept<T> kept(const Source &source) {
    return {(T *)source.direction, (T *)source.deviation, (T *)source.curvature, (T *)source.displacement};
}

template <class T, bool DECAYS, bool SMALL>
inline void observe_vector(
    const float *grad, const float *shrink, Kept<T> state, const Update &by, uint32_t index, uint32_t salt, F *sums
) {
    F direction = load(state.direction), deviation = load(state.deviation);
    F curvature = load(state.curvature), displacement = load(state.displacement);
    displacement = multiply_add(direction, splat(-by.moved), displacement);
    F gradient = direction * curvature * (deviation * splat(by.kept));
    if (DECAYS) {
        const F delta = load(shrink), reach = splat(by.reach);
        const F shift = clamp(curvature * delta * splat(by.per_length), splat(-by.reach), reach);
        gradient = multiply_add(shift, deviation, gradient);
        displacement = displacement + delta;
    }
    const F innovation = multiply_add(load(grad), splat(by.sign), -gradient);
    F variance = deviation * deviation;
    variance = multiply_add(
        splat(by.noise), multiply_add(innovation * innovation, splat(by.inside), -variance), variance
    );
    F inverse;
    root(maximum(splat(LEAST_VARIANCE), variance), deviation, inverse);
    const F surprise = innovation * inverse;
    const F moved = displacement * splat(by.per_length);
    const F weight = moved * splat(by.curvature);
    const F scaled = surprise / multiply_add(weight, moved, splat(by.outside));
    const F growth = clamp(weight * scaled, splat(-CURVATURE_STEP), splat(CURVATURE_STEP));
    const F common = minimum(splat(1.0f), moved * moved * splat(PER_MOVED));
    const F change = exponential<SMALL>(multiply_add(common, splat(-by.level), growth));
    curvature = clamp(curvature * change, splat(CURVATURE_LEAST), splat(CURVATURE_MOST));
    displacement = unless_negligible(displacement * splat(by.stay));
    gradient = unless_negligible(multiply_add(innovation, splat(by.gain), gradient));
    direction = clamp(
        ratio(gradient * inverse, curvature), splat(-LARGEST_DIRECTION), splat(LARGEST_DIRECTION)
    );
    if (sizeof(T) == 2) {
        const I random = random_bits(index, salt);
        direction = at_random(state.direction, direction, random & splat_bits(0xffff));
        deviation = at_random(state.deviation, deviation, shifted(random, 16));
        curvature = to_nearest(state.curvature, curvature);
        displacement = to_nearest(state.displacement, displacement);
    }
    store(state.direction, direction);
    store(state.deviation, deviation);
    store(state.curvature, curvature);
    store(state.displacement, displacement);
    const F newton = direction * splat(by.unit), stiffness = curvature * deviation;
    sums[0] = multiply_add(newton, direction * stiffness, sums[0]);
    sums[1] = sums[1] + stiffness;
    sums[2] = sums[2] + deviation;
    sums[3] = multiply_add(surprise, scaled, sums[3]);
    sums[4] = multiply_add(newton, newton, sums[4]);
}

// The last elements of a tile, by way of buffers.
template <class T, bool DECAYS, bool SMALL>
void observe_rest(
    const float *grad, const float *shrink, Kept<T> state, const Update &by, uint32_t index, uint32_t salt, int count,
    Sums<SUMS> &sums
) {
    float gradients[WIDTH] = {}, deltas[WIDTH] = {};
    T buffer[4][WIDTH] = {};
    memcpy(gradients, grad, count * sizeof(float));
    if (DECAYS) memcpy(deltas, shrink, count * sizeof(float));
    T *const tensors[4] = {state.direction, state.deviation, state.curvature, state.displacement};
    for (int k = 0; k < 4; k++) memcpy(buffer[k], tensors[k], count * sizeof(T));
    F lanes[SUMS] = {};
    observe_vector<T, DECAYS, SMALL>(
        gradients, deltas, Kept<T>{buffer[0], buffer[1], buffer[2], buffer[3]}, by, index, salt, lanes
    );
    for (int k = 0; k < 4; k++) memcpy(tensors[k], buffer[k], count * sizeof(T));
    sums.add(lanes, count);
}

template <class T, bool DECAYS, bool SMALL>
void observe_tile(
    const float *grad, const float *shrink, Kept<T> state, const Update &by, uint32_t index, uint32_t salt, int count,
    Sums<SUMS> &sums
) {
    F lanes[SUMS] = {};
    int i = 0;
    for (; i + LINE <= count; i += LINE) {
        ask((const char *)(grad + i) + ARTURO_AHEAD);
        ask_state(state.direction, i);
        ask_state(state.deviation, i);
        ask_state(state.curvature, i);
        ask_state(state.displacement, i);
        for (int j = i; j < i + LINE; j += WIDTH)
            observe_vector<T, DECAYS, SMALL>(
                grad + j, DECAYS ? shrink + j : nullptr, state.at(j), by, index + j, salt, lanes
            );
    }
    sums.add(lanes);
    for (; i < count; i += WIDTH)
        observe_rest<T, DECAYS, SMALL>(
            grad + i, DECAYS ? shrink + i : nullptr, state.at(i), by, index + i, salt,
            count - i < WIDTH ? count - i : WIDTH, sums
        );
}

// Displaces the weights of a tile; `displacements` in: what is asked for, out: what rounding leaves of it.
inline void displace(void *theta, uint8_t kind, int64_t at, const float *before, float *displacements, int count) {
    uint16_t *to = (uint16_t *)theta + at;
    float after[TILE];
    for (int i = 0; i < count; i++) after[i] = before[i] + displacements[i];
    narrow(after, kind, to, count);
    widen(to, kind, after, count);
    for (int i = 0; i < count; i++) displacements[i] = after[i] - before[i];
}

inline void shrink_weights(void *theta, uint8_t kind, int64_t at, float decay, float *displacements, int count) {
    if (kind == FLOAT32) {
        float *weights = (float *)theta + at;
        for (int i = 0; i < count; i += LINE) ask((const char *)(weights + i) + ARTURO_AHEAD);
        for (int i = 0; i < count; i++) displacements[i] = -decay * weights[i];
        for (int i = 0; i < count; i++) weights[i] += displacements[i];
        return;
    }
    float buffer[TILE];
    const float *before = as_float(theta, kind, at, buffer, count);
    for (int i = 0; i < count; i++) displacements[i] = -decay * before[i];
    displace(theta, kind, at, before, displacements, count);
}

// Elements from here on whose indices share their upper half; at most a tile.
inline int until_carry(uint64_t index, int left) {
    const uint64_t to_carry = (uint64_t(1) << 32) - (index & 0xffffffffu);
    const int most = left < TILE ? left : TILE;
    return to_carry < (uint64_t)most ? (int)to_carry : most;
}

template <class T, bool DECAYS, bool SMALL>
void observe_block(const Source &source, Kinds kinds, const Block &block, const Update &given, double *out) {
    float gradients[TILE], displacements[TILE];
    // A copy whose address nobody has: stores to the state cannot change it.
    const Update by = given;
    Sums<SUMS> sums;
    for (int at = 0, count; at < block.count; at += count) {
        const int64_t start = block.start + at;
        const uint64_t index = by.first + (uint64_t)start;
        count = until_carry(index, block.count - at);
        if (DECAYS) shrink_weights(source.theta, kinds.theta, start, by.decay, displacements, count);
        const float *grad = as_float(source.grad, kinds.grad, start, gradients, count);
        observe_tile<T, DECAYS, SMALL>(
            grad, displacements, kept<T>(source).at(start), by, (uint32_t)index, by.key ^ (uint32_t)(index >> 32),
            count, sums
        );
    }
    for (int k = 0; k < SUMS; k++) out[k] = sums.total(k);
}

template <class T> void observe_as(
    const Source &source, Kinds kinds, const Block &block, const Update &by, double *out
) {
    const bool small = by.level <= SMALL_LEVEL && by.level >= -SMALL_LEVEL;
    if (by.decay != 0.0f)
        small ? observe_block<T, true, true>(source, kinds, block, by, out)
              : observe_block<T, true, false>(source, kinds, block, by, out);
    else
        small ? observe_block<T, false, true>(source, kinds, block, by, out)
              : observe_block<T, false, false>(source, kinds, block, by, out);
}

void observe(const Source &source, Kinds kinds, const Block &block, const Update &by, double *out) {
    if (kinds.state == FLOAT32)
        observe_as<float>(source, kinds, block, by, out);
    else
        observe_as<uint16_t>(source, kinds, block, by, out);
}

// ---- apply

template <class T> inline F stepped(const float *theta, const T *direction, const Move &by) {
    return multiply_add(load(direction), splat(-by.step), load(theta));
}

// Weights of float32: the re-centring waits for the next step.
template <class T> void apply_wide(const Source &source, const Block &block, const Move &by, double *out) {
    float *theta = (float *)source.theta + block.start;
    const T *direction = (const T *)source.direction + block.start;
    Sums<1> sums;
    int i = 0;
    while (i + LINE <= block.count) {
        F lanes = {};
        for (int end = i + TILE; i < end && i + LINE <= block.count; i += LINE) {
            ask_state(theta, i);
            ask_state(direction, i);
            for (int j = i; j < i + LINE; j += WIDTH) {
                const F moved = stepped(theta + j, direction + j, by);
                store(theta + j, moved);
                lanes = multiply_add(moved, moved, lanes);
            }
        }
        sums.add(&lanes);
    }
    for (; i < block.count; i += WIDTH) {
        const int count = block.count - i < WIDTH ? block.count - i : WIDTH;
        float weights[WIDTH] = {};
        T buffer[WIDTH] = {};
        memcpy(weights, theta + i, count * sizeof(float));
        memcpy(buffer, direction + i, count * sizeof(T));
        const F moved = stepped(weights, buffer, by), lanes = moved * moved;
        store(weights, moved);
        memcpy(theta + i, weights, count * sizeof(float));
        sums.add(&lanes, count);
    }
    out[0] = sums.total(0);
    if (!(out[0] > 1e-24 && out[0] < 1e38)) out[0] = squared(source, FLOAT32, block);
}

template <class T> inline void recentre_vector(
    const float *delta, T *direction, T *displacement, const Move &by, uint32_t index, uint32_t salt
) {
    const F moved = load(delta);
    F u = multiply_add(moved, splat(by.per_length), load(direction)), d = load(displacement) + moved;
    if (sizeof(T) == 2) {
        u = at_random(direction, u, random_bits(index, salt) & splat_bits(0xffff));
        d = to_nearest(displacement, d);
    }
    store(direction, u);
    store(displacement, d);
}

// Narrow weights: what counts is the displacement that rounding leaves.
template <class T> void apply_narrow(
    const Source &source, Kinds kinds, const Block &block, const Move &by, double *out
) {
    float buffer[TILE + WIDTH], deltas[TILE + WIDTH] = {};
    for (int at = 0, count; at < block.count; at += count) {
        const int64_t start = block.start + at;
        const uint64_t index = by.first + (uint64_t)start;
        const uint32_t low = (uint32_t)index, salt = by.key ^ (uint32_t)(index >> 32);
        count = until_carry(index, block.count - at);
        T *direction = (T *)source.direction + start, *displacement = (T *)source.displacement + start;
        const float *before = as_float(source.theta, kinds.theta, start, buffer, count);
        int i = 0;
        for (; i + WIDTH <= count; i += WIDTH) {
            if (i % LINE == 0) {
                ask_state(direction, i);
                ask_state(displacement, i);
            }
            store(deltas + i, load(direction + i) * splat(-by.step));
        }
        const int left = count - i;
        T u[WIDTH] = {}, d[WIDTH] = {};
        memcpy(u, direction + i, left * sizeof(T));
        memcpy(d, displacement + i, left * sizeof(T));
        store(deltas + i, load(u) * splat(-by.step));
        displace(source.theta, kinds.theta, start, before, deltas, count);
        for (i = 0; i + WIDTH <= count; i += WIDTH)
            recentre_vector(deltas + i, direction + i, displacement + i, by, low + i, salt);
        recentre_vector(deltas + i, u, d, by, low + i, salt);
        memcpy(direction + i, u, left * sizeof(T));
        memcpy(displacement + i, d, left * sizeof(T));
    }
    out[0] = squared(source, kinds.theta, block);
}

void apply(const Source &source, Kinds kinds, const Block &block, const Move &by, double *out) {
    if (kinds.theta == FLOAT32)
        kinds.state == FLOAT32 ? apply_wide<float>(source, block, by, out)
                               : apply_wide<uint16_t>(source, block, by, out);
    else
        kinds.state == FLOAT32 ? apply_narrow<float>(source, kinds, block, by, out)
                               : apply_narrow<uint16_t>(source, kinds, block, by, out);
}

}  // namespace
