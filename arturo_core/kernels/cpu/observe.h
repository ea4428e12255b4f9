// The update with a gradient.

namespace {

template <class T> struct Kept {
    T *direction, *deviation, *curvature, *displacement;
    Kept at(int64_t i) const { return {direction + i, deviation + i, curvature + i, displacement + i}; }
};

template <class T> inline Kept<T> kept(const Source &source) {
    return {(T *)source.direction, (T *)source.deviation, (T *)source.curvature, (T *)source.displacement};
}

struct Coded {
    Signed direction;
    uint16_t *deviation;
    Logarithms curvature;
    Signed displacement;
    Coded at(int64_t i) const { return {direction.at(i), deviation + i, {curvature.codes + i}, displacement.at(i)}; }
};

inline Coded coded(const Source &source) {
    return {
        {(int8_t *)source.direction, (uint16_t *)source.direction_scale},
        (uint16_t *)source.deviation,
        {(int8_t *)source.curvature},
        {(int8_t *)source.displacement, (uint16_t *)source.displacement_scale},
    };
}

// What waits between the stages of an update. One array: where addresses agree in their last bits, processors mistake
// one number for another and wait.
struct Waiting {
    float rows[8][STAGE];
    float *innovations = rows[0], *displacements = rows[1], *gradients = rows[2], *deviations = rows[3];
    float *inverses = rows[4], *curvatures = rows[5], *directions = rows[6];
    int32_t *random = (int32_t *)rows[7];
};

// Where what is kept waits, unrounded: in the tensor itself, or in a buffer.
inline float *waiting(float *tensor, float *) { return tensor; }
inline float *waiting(uint16_t *, float *buffer) { return buffer; }

// Re-centres with what is pending and with the weights' decay, and compares with the gradient.
template <bool DECAYS, class State>
inline void compare(
    const float *grad, const float *shrink, const State &state, const Update &by, int count, const Waiting &to
) {
    const F moved = splat(-by.moved), kept = splat(by.kept), gain = splat(by.gain);
    const I sign = bits(splat(by.sign)) & splat_bits(0x80000000u);
    for (int i = 0; i < count; i += WIDTH) {
        ask(grad, i);
        ask(state.direction, i);
        const F direction = load(state.direction, i), before = load(state.deviation, i);
        const F curvature = load(state.curvature, i);
        F displacement = multiply_add(direction, moved, load(state.displacement, i));
        F gradient = direction * curvature * (before * kept);
        if (DECAYS) {
            const F delta = load(shrink + i), shift = curvature * delta * splat(by.per_length);
            gradient = multiply_add(clamp(shift, splat(-by.reach), splat(by.reach)), before, gradient);
            displacement = displacement + delta;
        }
        const F innovation = real(bits(load(grad + i)) ^ sign) - gradient;
        const F variance = before * before;
        const F change = multiply_add(innovation * innovation, splat(by.inside), -variance);
        const F updated = maximum(splat(LEAST_VARIANCE), multiply_add(change, splat(by.noise), variance));
        const F deviation = root(updated);
        store(to.innovations + i, innovation);
        store(to.displacements + i, displacement);
        store(to.gradients + i, unless_negligible(multiply_add(innovation, gain, gradient)));
        store(to.deviations + i, deviation);
        store(to.inverses + i, inverse(deviation));
    }
}

// What the displacement says of the curvature: changes of log s, in parts. Also the displacement that is kept.
template <class Keep> inline void learn(const Update &by, float a_unit, int count, const Waiting &to, V *sums, Keep keep) {
    const F per_length = splat(by.per_length), growth = splat(by.curvature), common = splat(-by.level * a_unit / MOVED);
    const F outside = splat(by.outside), stay = splat(by.stay);
    const F step = splat(CURVATURE_STEP / by.curvature), scaled_growth = splat(by.curvature * a_unit);
    V surprises = sums[3];
    for (int i = 0; i < count; i += WIDTH) {
        const F displacement = load(to.displacements + i);
        // Beyond FARTHEST nothing is learned of the curvature, and squares would leave float32.
        const F x = clamp(displacement * per_length, splat(-FARTHEST), splat(FARTHEST)), square = x * x;
        const F variance = multiply_add(square, growth, outside);
        const F surprise = load(to.innovations + i) * load(to.inverses + i), scaled = surprise * inverse(variance);
        add_product_to(surprises, surprise, scaled);
        const F shared = minimum(splat(MOVED), square) * common;
        store(to.innovations + i, multiply_add(clamp(x * scaled, -step, step), scaled_growth, shared));
        keep(i, unless_negligible(displacement * stay));
    }
    sums[3] = surprises;
}

// Sums of what is kept.
struct Totals {
    V decrement, stiff, total, squared;
    F unit;
    Totals(const V *sums, const Update &by) : decrement(sums[0]), stiff(sums[1]), total(sums[2]), squared(sums[4]) {
        unit = splat(by.unit);
    }
    void add(F direction, F deviation, F stiffness) {
        const F newton = direction * unit;
        add_product_to(decrement, newton, direction * stiffness);
        add_product_to(squared, newton, newton);
        add_to(stiff, stiffness);
        add_to(total, deviation);
    }
    void put(V *sums) const {
        sums[0] = decrement;
        sums[1] = stiff;
        sums[2] = total;
        sums[4] = squared;
    }
};

// Updates `count` elements, whole vectors and no more than STAGE. One loop over everything would be bound by the
// latency of its one long chain of operations, so there are several.
template <class T, bool DECAYS, bool SMALL>
inline void observe_vectors(
    const float *grad, const float *shrink, const Kept<T> &state, const Update &by, uint32_t index, uint32_t salt,
    int count, V *sums
) {
    Waiting to;
    to.deviations = waiting(state.deviation, to.deviations);
    to.curvatures = waiting(state.curvature, to.curvatures);
    compare<DECAYS>(grad, shrink, state, by, count, to);
    learn(by, 1.0f, count, to, sums, [&](int i, F displacement) {
        ask(state.displacement, i);
        store(state.displacement + i, to_nearest(state.displacement, displacement));
    });

    for (int i = 0; i < count; i += WIDTH) {
        ask(state.curvature, i);
        const F curvature = load(state.curvature + i) * exponential<SMALL>(load(to.innovations + i));
        store(to.curvatures + i, clamp(curvature, splat(CURVATURE_LEAST), splat(CURVATURE_MOST)));
    }

    const F most = splat(LARGEST_DIRECTION);
    Totals totals(sums, by);
    for (int i = 0; i < count; i += WIDTH) {
        ask(state.deviation, i);
        F deviation = load(to.deviations + i), curvature = load(to.curvatures + i);
        F direction = load(to.gradients + i) * load(to.inverses + i) * inverse(curvature);
        direction = clamp(direction, -most, most);
        if (sizeof(T) == 2) {
            const I random = random_bits(index + i, salt);
            direction = at_random(state.direction, direction, random & splat_bits(0xffff));
            deviation = at_random(state.deviation, deviation, shifted(random, 16));
            curvature = to_nearest(state.curvature, curvature);
            store(state.deviation + i, deviation);
            store(state.curvature + i, curvature);
        }
        store(state.direction + i, direction);
        totals.add(direction, deviation, deviation * curvature);
    }
    totals.put(sums);
}

// The same of codes; `count` is a multiple of SCALED.
template <bool DECAYS>
inline void observe_codes(
    const float *grad, const float *shrink, const Coded &state, const Update &by, uint32_t index, uint32_t salt,
    int count, V *sums
) {
    Waiting to;
    compare<DECAYS>(grad, shrink, state, by, count, to);
    learn(by, CODES_A_UNIT, count, to, sums, [&](int i, F displacement) {
        ask(state.displacement, i);
        store(to.displacements + i, displacement);
    });

    const F most = splat(LARGEST_DIRECTION);
    for (int i = 0; i < count; i += WIDTH) {
        ask(state.curvature.codes, i);
        const I random = random_bits(index + i, salt);
        const I code = log_codes(load(to.innovations + i), load_bits(state.curvature.codes + i), random);
        const F curvature = power_of_codes(code);
        const F direction = load(to.gradients + i) * load(to.inverses + i) * inverse(curvature);
        store(to.random + i, random);
        store(state.curvature.codes + i, code);
        store(to.curvatures + i, curvature);
        store(to.directions + i, clamp(direction, -most, most));
    }

    for (int i = 0; i < count; i += SCALED)
        encode(to.displacements + i, state.displacement.at(i), to.random + i, 8, [](int, F, F) {});

    Totals totals(sums, by);
    for (int i = 0; i < count; i += SCALED)
        encode(to.directions + i, state.direction.at(i), to.random + i, 0, [&](int j, F code, F scale) {
            ask(state.deviation, i + j);
            const I noise = shifted(load_bits(to.random + i + j), 16);
            const F deviation = at_random(state.deviation, load(to.deviations + i + j), noise);
            store(state.deviation + i + j, deviation);
            totals.add(share_of(code) * scale, deviation, deviation * load(to.curvatures + i + j));
        });
    totals.put(sums);
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

template <bool DECAYS, bool SMALL, class T>
void observe_tile(
    const float *grad, const float *shrink, const Kept<T> &state, const Update &by, uint32_t index, uint32_t salt, int count,
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

template <bool DECAYS, bool>
void observe_tile(
    const float *grad, const float *shrink, const Coded &state, const Update &by, uint32_t index, uint32_t salt,
    int count, Sums<SUMS> &sums
) {
    V lanes[SUMS] = {};
    for (int i = 0; i < count; i += STAGE)
        observe_codes<DECAYS>(
            grad + i, DECAYS ? shrink + i : nullptr, state.at(i), by, index + i, salt,
            count - i < STAGE ? count - i : STAGE, lanes
        );
    for (int k = 0; k < SUMS; k++) sums.add(k, lanes[k]);
}

template <bool DECAYS, bool SMALL, class State>
void observe_block(
    const Source &source, const State &state, Kinds kinds, const Block &block, const Update &given, double *out
) {
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
        observe_tile<DECAYS, SMALL>(
            grad, displacements, state.at(start), by, (uint32_t)index, by.key ^ (uint32_t)(index >> 32), count, sums
        );
    }
    for (int k = 0; k < SUMS; k++) out[k] = sums.total(k);
}

template <class State> void observe_as(
    const Source &source, const State &state, Kinds kinds, const Block &block, const Update &by, double *out
) {
    const bool small = by.level <= SMALL_LEVEL && by.level >= -SMALL_LEVEL;
    if (by.decay != 0.0f)
        small ? observe_block<true, true>(source, state, kinds, block, by, out)
              : observe_block<true, false>(source, state, kinds, block, by, out);
    else
        small ? observe_block<false, true>(source, state, kinds, block, by, out)
              : observe_block<false, false>(source, state, kinds, block, by, out);
}

void observe(const Source &source, Kinds kinds, const Block &block, const Update &by, double *out) {
    if (kinds.state == FLOAT32)
        observe_as(source, kept<float>(source), kinds, block, by, out);
    else if (kinds.state == BFLOAT16)
        observe_as(source, kept<uint16_t>(source), kinds, block, by, out);
    else
        observe_as(source, coded(source), kinds, block, by, out);
}

}  // namespace
