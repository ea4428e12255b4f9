// Vectors of numbers and their operations, in terms of those that the including file defines (see plain.cpp); sums.

#include <cstring>

// All that a function calls becomes part of it: vectors go through registers, which a call would not let them.
#define ARTURO_WHOLE __attribute__((flatten))

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
template <class A> inline Pair<A> rounded_down(Pair<A> x) { return {rounded_down(x.low), rounded_down(x.high)}; }
template <class A> inline auto whole(Pair<A> x) { return Pair<decltype(whole(x.low))>{whole(x.low), whole(x.high)}; }
template <class A> inline auto number(Pair<A> x) {
    return Pair<decltype(number(x.low))>{number(x.low), number(x.high)};
}
template <class A> inline auto power_of_codes(Pair<A> x) {
    return Pair<decltype(power_of_codes(x.low))>{power_of_codes(x.low), power_of_codes(x.high)};
}
template <class A> inline V largest(Pair<A> x) { return largest(maximum(x.low, x.high)); }

// The bits of numbers, and back.
inline VI bits(V x) { return (VI)x; }
inline V real(VI x) { return (V)x; }
inline VI shifted(VI x, int by) { return (VI)((VU)x >> by); }
template <class A> inline auto bits(Pair<A> x) { return Pair<decltype(bits(x.low))>{bits(x.low), bits(x.high)}; }
template <class A> inline auto real(Pair<A> x) { return Pair<decltype(real(x.low))>{real(x.low), real(x.high)}; }
template <class A> inline Pair<A> shifted(Pair<A> x, int by) { return {shifted(x.low, by), shifted(x.high, by)}; }

inline void fill(V &v, float x) { v = x - V{}; }
inline void fill(VI &v, int32_t x) { v = x - VI{}; }
inline void fill(V &v, V x) { v = x; }
inline void fill(VI &v, VI x) { v = x; }
template <class A, class X> inline void fill(Pair<A> &v, X x) {
    fill(v.low, x);
    v.high = v.low;
}
inline void read(V &v, const float *from) { memcpy(&v, from, sizeof v); }
inline void write(float *to, V v) { memcpy(to, &v, sizeof v); }
inline void read(VI &v, const int32_t *from) { memcpy(&v, from, sizeof v); }
inline void write(int32_t *to, VI v) { memcpy(to, &v, sizeof v); }
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
inline F splat(V x) {
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
template <class T> inline F load(const T *from, int i) { return load(from + i); }
template <class T> inline I load_bits(const T *from) {
    I v;
    read(v, from);
    return v;
}
template <class T> inline void store(T *to, F v) { write(to, v); }
inline void store(int32_t *to, I v) { write(to, v); }
inline void store(int8_t *to, I v) { write(to, v); }

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
// upper half. See arturo_core/storage/random_bits.py.
inline I random_bits(uint32_t index, uint32_t salt) {
    I x;
    count_up(x, 0, 0x9E3779B1u);
    x = (x + splat_bits(index * 0x9E3779B1u)) ^ splat_bits(salt);
    x = (x ^ shifted(x, 16)) * splat_bits(0x7feb352du);
    x = (x ^ shifted(x, 15)) * splat_bits(0x846ca68bu);
    return x ^ shifted(x, 16);
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

}  // namespace
