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
// Elements of a stage of an update.
#ifndef ARTURO_STAGE
#define ARTURO_STAGE 128
#endif
constexpr int STAGE = ARTURO_STAGE;
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
constexpr float MOVED = 1e-4f;
constexpr float FARTHEST = 1e15f;
constexpr int32_t UNUSABLE = 0x5d5e0b6b;  // the bits of 1e18
// Up to this |level| the exponential needs no reduction of its range.
constexpr float SMALL_LEVEL = 0.25f;

// Operations on pairs are those on their halves.
#define ARTURO_BINARY(name)                                                              \
    template <class A, class B> inline auto operator name(Pair<A> x, Pair<B> y) {        \
        return Pair<decltype(x.low name y.low)>{x.low name y.low, x.high name y.high};   \
    }
ARTURO_BINARY(+)
ARTURO_BINARY(-)
ARTURO_BINARY(*)
ARTURO_BINARY(/)
ARTURO_BINARY(&)
ARTURO_BINARY(|)
ARTURO_BINARY(^)
ARTURO_BINARY(>)
#undef ARTURO_BINARY
template <class A> inline Pair<A> operator-(Pair<A> x) { return {-x.low, -x.high}; }
template <class A> inline Pair<A> operator<<(Pair<A> x, int bits) { return {x.low << bits, x.high << bits}; }

template <class A> inline Pair<A> multiply_add(Pair<A> x, Pair<A> y, Pair<A> z) {
    return {multiply_add(x.low, y.low, z.low), multiply_add(x.high, y.high, z.high)};
}
template <class A> inline Pair<A> minimum(Pair<A> bound, Pair<A> x) {
    return {minimum(bound.low, x.low), minimum(bound.high, x.high)};
}
template <class A> inline Pair<A> maximum(Pair<A> bound, Pair<A> x) {
    return {maximum(bound.low, x.low), maximum(bound.high, x.high)};
}
template <class A> inline Pair<A> root(Pair<A> x) { return {root(x.low), root(x.high)}; }
template <class A> inline Pair<A> ratio(Pair<A> x, Pair<A> y) {
    return {ratio(x.low, y.low), ratio(x.high, y.high)};
}

// The bits of numbers, and back.
inline VI bits(V x) { return (VI)x; }
inline V real(VI x) { return (V)x; }
inline VI shifted(VI x, int by) { return (VI)((VU)x >> by); }
template <class A> inline auto bits(Pair<A> x) { return Pair<decltype(bits(x.low))>{bits(x.low), bits(x.high)}; }
template <class A> inline auto real(Pair<A> x) { return Pair<decltype(real(x.low))>{real(x.low), real(x.high)}; }
template <class A> inline Pair<A> shifted(Pair<A> x, int by) { return {shifted(x.low, by), shifted(x.high, by)}; }

inline void fill(V &v, float x) { v = x - V{}; }
inline void fill(VI &v, int32_t x) { v = x - VI{}; }
template <class A, class X> inline void fill(Pair<A> &v, X x) {
    fill(v.low, x);
    v.high = v.low;
}
inline void read(V &v, const float *from) { memcpy(&v, from, sizeof v); }
inline void write(float *to, V v) { memcpy(to, &v, sizeof v); }
template <class A, class T> inline void read(Pair<A> &v, const T *from) {
    read(v.low, from);
    read(v.high, from + sizeof(A) / 4);
}
template <class A, class T> inline void write(T *to, Pair<A> v) {
    write(to, v.low);
    write(to + sizeof(A) / 4, v.high);
}
// The numbers 0, 1, 2 ... times a factor.
inline void count_up(VI &v, uint32_t first, uint32_t factor) {
    for (unsigned j = 0; j < sizeof v / 4; j++) v[j] = (int32_t)((first + j) * factor);
}
template <class A> inline void count_up(Pair<A> &v, uint32_t first, uint32_t factor) {
    count_up(v.low, first, factor);
    count_up(v.high, first + sizeof(A) / 4, factor);
}

// Adds to a sum of one vector's width, to spare registers: a sum that waits in memory costs more than all arithmetic.
inline void add_to(V &sum, V x) { sum = sum + x; }
inline void add_product_to(V &sum, V x, V y) { sum = multiply_add(x, y, sum); }
template <class A> inline void add_to(V &sum, Pair<A> x) {
    add_to(sum, x.low);
    add_to(sum, x.high);
}
template <class A> inline void add_product_to(V &sum, Pair<A> x, Pair<A> y) {
    add_product_to(sum, x.low, y.low);
    add_product_to(sum, x.high, y.high);
}

typedef decltype(bits(F{})) I;
constexpr int WIDTH = sizeof(F) / sizeof(float);
static_assert(WIDTH % LINE == 0 && STAGE % WIDTH == 0, "a vector is whole cache lines, and a stage whole vectors");

inline F splat(float x) {
    F v;
    fill(v, x);
    return v;
}
inline I splat_bits(uint32_t x) {
    I v;
    fill(v, (int32_t)x);
    return v;
}
template <class T> inline F load(const T *from) {
    F v;
    read(v, from);
    return v;
}
template <class T> inline void store(T *to, F v) { write(to, v); }

inline F magnitude(F x) { return real(bits(x) & splat_bits(0x7fffffffu)); }
inline F unless_negligible(F x) { return real(bits(x) & (magnitude(x) > splat(NEGLIGIBLE))); }
inline F clamp(F x, F least, F most) { return minimum(most, maximum(least, x)); }

inline void ask(const void *address) { __builtin_prefetch(address); }
// The WIDTH elements from `at` on.
template <class T> inline void ask(const T *address, int at) {
    constexpr int step = LINE * 4 / sizeof(T);
    if (step > WIDTH && at % step) return;
    for (int j = 0; j < WIDTH; j += step) __builtin_prefetch((const char *)(address + at + j) + ARTURO_AHEAD, 1);
}

// exp of |x| <= 3; below 0.35 without reduction of the range. The relative error is below 4e-9 before rounding.
template <bool SMALL> inline F exponential(F x) {
    I power = {};
    if (!SMALL) {
        const F magic = splat(12582912.0f);
        F turns = multiply_add(x, splat(1.44269504f), magic);
        power = bits(turns) << 23;
        turns = turns - magic;
        x = multiply_add(turns, splat(-0.693145752f), x);
        x = multiply_add(turns, splat(-1.42860677e-6f), x);
    }
    const F square = x * x;
    F high = multiply_add(x, splat(0.00836941f), splat(0.04166846f));
    high = multiply_add(square, splat(0.00138132f), high);
    const F low = multiply_add(x, splat(0.16666515f), splat(0.49999993f));
    const F y = multiply_add(multiply_add(high, square, low), square, splat(1.0f) + x);
    return SMALL ? y : real(bits(y) + power);
}

// 32 random bits of each of WIDTH consecutive elements; `index` is that of the first, `salt` the key and the index's
// upper half. See arturo_core/kernels/random_bits.py.
inline I random_bits(uint32_t index, uint32_t salt) {
    I x;
    count_up(x, 0, 0x9E3779B1u);
    x = (x + splat_bits(index * 0x9E3779B1u)) ^ splat_bits(salt);
    x = (x ^ shifted(x, 16)) * splat_bits(0x7feb352du);
    x = (x ^ shifted(x, 15)) * splat_bits(0x846ca68bu);
    return x ^ shifted(x, 16);
}

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

template <int N> struct Sums {
    double wide[N][WIDTH] = {};
    template <class A> void add(int k, A lanes) {
        constexpr int count = sizeof(A) / sizeof(float);
        float numbers[count];
        write(numbers, lanes);
        for (int j = 0; j < count; j++) wide[k][j] += numbers[j];
    }
    double total(int k) const {
        double sum = 0.0;
        for (int j = 0; j < WIDTH; j++) sum += wide[k][j];
        return sum;
    }
};

// ---- survey: is every gradient usable; sum of squared weights

inline bool unusable(const float *grad, int count) {
    const I mask = splat_bits(0x7fffffffu), limit = splat_bits(UNUSABLE - 1);
    I bad = {};
    int i = 0;
    for (; i + WIDTH <= count; i += WIDTH) {
        for (int j = i; j < i + WIDTH; j += LINE) ask((const char *)(grad + j) + ARTURO_AHEAD);
        bad = bad | ((bits(load(grad + i)) & mask) > limit);
    }
    int32_t lanes[WIDTH], any = 0;
    memcpy(lanes, &bad, sizeof lanes);
    for (int j = 0; j < WIDTH; j++) any |= lanes[j];
    for (; i < count; i++) {
        int32_t number;
        memcpy(&number, grad + i, 4);
        any |= (number & 0x7fffffff) >= UNUSABLE;
    }
    return any != 0;
}

inline void add_squares(const float *x, int count, Sums<1> &sums) {
    F lanes = {};
    int i = 0;
    for (; i + WIDTH <= count; i += WIDTH) {
        for (int j = i; j < i + WIDTH; j += LINE) ask((const char *)(x + j) + ARTURO_AHEAD);
        const F one = load(x + i);
        lanes = multiply_add(one, one, lanes);
    }
    sums.add(0, lanes);
    for (; i < count; i++) sums.wide[0][0] += (double)x[i] * x[i];
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

// Where what is kept waits, unrounded, between the stages of an update: in the tensor itself, or in a buffer.
inline float *waiting(float *tensor, float *) { return tensor; }
inline float *waiting(uint16_t *, float *buffer) { return buffer; }

// Updates `count` elements, whole vectors and no more than STAGE. One loop over everything would be bound by the
// latency of its one long chain of operations, so there are four.
template <class T, bool DECAYS, bool SMALL>
inline void observe_vectors(
    const float *grad, const float *shrink, const Kept<T> state, const Update &by, uint32_t index, uint32_t salt,
    int count, V *sums
) {
    // One array: where addresses agree in their last bits, processors mistake one number for another and wait.
    float buffer[5][STAGE];
    float *const gradients = buffer[0], *const first = buffer[1], *const second = buffer[2];
    float *const deviations = waiting(state.deviation, buffer[3]);
    float *const curvatures = waiting(state.curvature, buffer[4]);

    const F moved = splat(-by.moved), kept = splat(by.kept), gain = splat(by.gain);
    const I sign = bits(splat(by.sign)) & splat_bits(0x80000000u);
    for (int i = 0; i < count; i += WIDTH) {
        ask(grad, i);
        ask(state.direction, i);
        const F direction = load(state.direction + i), before = load(state.deviation + i);
        F displacement = multiply_add(direction, moved, load(state.displacement + i));
        F gradient = direction * load(state.curvature + i) * (before * kept);
        if (DECAYS) {
            const F delta = load(shrink + i), shift = load(state.curvature + i) * delta * splat(by.per_length);
            gradient = multiply_add(clamp(shift, splat(-by.reach), splat(by.reach)), before, gradient);
            displacement = displacement + delta;
        }
        const F innovation = real(bits(load(grad + i)) ^ sign) - gradient;
        const F variance = before * before;
        const F change = multiply_add(innovation * innovation, splat(by.inside), -variance);
        const F updated = maximum(splat(LEAST_VARIANCE), multiply_add(change, splat(by.noise), variance));
        store(first + i, innovation);
        store(second + i, displacement);
        store(gradients + i, unless_negligible(multiply_add(innovation, gain, gradient)));
        store(deviations + i, root(updated));
    }

    const F per_length = splat(by.per_length), growth = splat(by.curvature), common = splat(-by.level / MOVED);
    const F outside = splat(by.outside), stay = splat(by.stay);
    V surprises = sums[3];
    for (int i = 0; i < count; i += WIDTH) {
        ask(state.displacement, i);
        const F displacement = load(second + i);
        // Beyond FARTHEST nothing is learned of the curvature, and squares would leave float32.
        const F x = clamp(displacement * per_length, splat(-FARTHEST), splat(FARTHEST)), square = x * x;
        const F variance = multiply_add(square, growth, outside);
        const F scaled = load(first + i) / (load(deviations + i) * variance);
        add_product_to(surprises, scaled * variance, scaled);
        store(first + i, x * scaled);
        store(second + i, minimum(splat(MOVED), square) * common);
        store(state.displacement + i, to_nearest(state.displacement, unless_negligible(displacement * stay)));
    }
    sums[3] = surprises;

    const F step = splat(CURVATURE_STEP / by.curvature);
    for (int i = 0; i < count; i += WIDTH) {
        ask(state.curvature, i);
        const F change = multiply_add(clamp(load(first + i), -step, step), growth, load(second + i));
        const F curvature = load(state.curvature + i) * exponential<SMALL>(change);
        store(curvatures + i, clamp(curvature, splat(CURVATURE_LEAST), splat(CURVATURE_MOST)));
    }

    const F unit = splat(by.unit), most = splat(LARGEST_DIRECTION);
    V decrement = sums[0], stiff = sums[1], total = sums[2], squared = sums[4];
    for (int i = 0; i < count; i += WIDTH) {
        ask(state.deviation, i);
        F deviation = load(deviations + i), curvature = load(curvatures + i), stiffness = deviation * curvature;
        F direction = clamp(ratio(load(gradients + i), stiffness), -most, most);
        if (sizeof(T) == 2) {
            const I random = random_bits(index + i, salt);
            direction = at_random(state.direction, direction, random & splat_bits(0xffff));
            deviation = at_random(state.deviation, deviation, shifted(random, 16));
            curvature = to_nearest(state.curvature, curvature);
            stiffness = deviation * curvature;
            store(state.deviation + i, deviation);
            store(state.curvature + i, curvature);
        }
        store(state.direction + i, direction);
        const F newton = direction * unit;
        add_product_to(decrement, newton, direction * stiffness);
        add_product_to(squared, newton, newton);
        add_to(stiff, stiffness);
        add_to(total, deviation);
    }
    sums[0] = decrement;
    sums[1] = stiff;
    sums[2] = total;
    sums[4] = squared;
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
    V lanes[SUMS] = {};
    observe_vectors<T, DECAYS, SMALL>(
        gradients, deltas, Kept<T>{buffer[0], buffer[1], buffer[2], buffer[3]}, by, index, salt, WIDTH, lanes
    );
    for (int k = 0; k < 4; k++) memcpy(tensors[k], buffer[k], count * sizeof(T));
    // What is not there has no direction and no surprise, yet the least deviation.
    for (int k = 0; k < SUMS; k++)
        if (k != 1 && k != 2) sums.add(k, lanes[k]);
    for (int j = 0; j < count; j++) {
        sums.wide[1][0] += widened(buffer[1][j]) * widened(buffer[2][j]);
        sums.wide[2][0] += widened(buffer[1][j]);
    }
}

template <class T, bool DECAYS, bool SMALL>
void observe_tile(
    const float *grad, const float *shrink, Kept<T> state, const Update &by, uint32_t index, uint32_t salt, int count,
    Sums<SUMS> &sums
) {
    V lanes[SUMS] = {};
    const int whole = count - count % WIDTH;
    for (int i = 0; i < whole; i += STAGE)
        observe_vectors<T, DECAYS, SMALL>(
            grad + i, DECAYS ? shrink + i : nullptr, state.at(i), by, index + i, salt,
            whole - i < STAGE ? whole - i : STAGE, lanes
        );
    for (int k = 0; k < SUMS; k++) sums.add(k, lanes[k]);
    if (whole < count)
        observe_rest<T, DECAYS, SMALL>(
            grad + whole, DECAYS ? shrink + whole : nullptr, state.at(whole), by, index + whole, salt, count - whole,
            sums
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
    while (i + WIDTH <= block.count) {
        F lanes = {};
        for (int end = i + TILE; i < end && i + WIDTH <= block.count; i += WIDTH) {
            ask(theta, i);
            ask(direction, i);
            const F moved = stepped(theta + i, direction + i, by);
            store(theta + i, moved);
            lanes = multiply_add(moved, moved, lanes);
        }
        sums.add(0, lanes);
    }
    for (; i < block.count; i += WIDTH) {
        const int count = block.count - i < WIDTH ? block.count - i : WIDTH;
        float weights[WIDTH] = {};
        T buffer[WIDTH] = {};
        memcpy(weights, theta + i, count * sizeof(float));
        memcpy(buffer, direction + i, count * sizeof(T));
        // The square of what is not there is zero.
        const F moved = stepped(weights, buffer, by);
        sums.add(0, moved * moved);
        store(weights, moved);
        memcpy(theta + i, weights, count * sizeof(float));
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
            ask(direction, i);
            ask(displacement, i);
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
