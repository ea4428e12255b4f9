// The update with a gradient.

namespace {

template <class T> struct Kept {
    T *direction, *deviation, *curvature, *displacement;
    Kept at(int64_t i) const { return {direction + i, deviation + i, curvature + i, displacement + i}; }
};

template <class T> inline Kept<T> kept(const Source &source) {
    return {(T *)source.direction, (T *)source.deviation, (T *)source.curvature, (T *)source.displacement};
}

// What waits between the stages of an update. One array: where addresses agree in their last bits, processors mistake
// one number for another and wait.
struct Waiting {
    float innovations[STAGE], displacements[STAGE], gradients[STAGE], deviations[STAGE], curvatures[STAGE];
};

// Where what is kept waits, unrounded: in the tensor itself, or in a buffer.
inline float *waiting(float *tensor, float *) { return tensor; }
inline float *waiting(uint16_t *, float *buffer) { return buffer; }

// Scalars of comparing with the gradient.
struct Comparison {
    F gain, inside, noise;
    I sign;
    explicit Comparison(const Update &by) {
        gain = splat(by.gain);
        inside = splat(by.inside);
        noise = splat(by.noise);
        sign = bits(splat(by.sign)) & splat_bits(0x80000000u);
    }
    // Of a gradient that is predicted: the innovation, and the gradient and the deviation that it leads to.
    F compare(const float *grad, F &gradient, F &deviation) const {
        const F innovation = real(bits(load(grad)) ^ sign) - gradient;
        const F variance = deviation * deviation;
        const F change = multiply_add(innovation * innovation, inside, -variance);
        deviation = root(maximum(splat(LEAST_VARIANCE), multiply_add(change, noise, variance)));
        gradient = multiply_add(innovation, gain, gradient);
        return innovation;
    }
};

// Scalars of what a displacement says of the curvature.
struct Lesson {
    F per_length, growth, common, outside, step;
    explicit Lesson(const Update &by) {
        per_length = splat(by.per_length);
        growth = splat(by.curvature);
        common = splat(-by.level / MOVED);
        outside = splat(by.outside);
        step = splat(CURVATURE_STEP / by.curvature);
    }
    // The change of log s; the surprise is added up.
    F learn(F displacement, F innovation, F deviation, V &surprises) const {
        // Beyond FARTHEST nothing is learned of the curvature, and squares would leave float32.
        const F x = clamp(displacement * per_length, splat(-FARTHEST), splat(FARTHEST)), square = x * x;
        const F variance = multiply_add(square, growth, outside);
        const F scaled = innovation / (deviation * variance);
        add_product_to(surprises, scaled * variance, scaled);
        return multiply_add(clamp(x * scaled, -step, step), growth, minimum(splat(MOVED), square) * common);
    }
};

// Updates `count` elements, whole vectors and no more than STAGE. One loop over everything would be bound by the
// latency of its one long chain of operations, so there are four.
template <class T, bool DECAYS, bool SMALL>
inline void observe_vectors(
    const float *grad, const float *shrink, const Kept<T> &state, const Update &by, uint32_t index, uint32_t salt,
    int count, V *sums
) {
    Waiting to;
    float *const deviations = waiting(state.deviation, to.deviations);
    float *const curvatures = waiting(state.curvature, to.curvatures);

    const F moved = splat(-by.moved), kept = splat(by.kept);
    const Comparison comparison(by);
    for (int i = 0; i < count; i += WIDTH) {
        ask(grad, i);
        ask(state.direction, i);
        const F direction = load(state.direction + i), before = load(state.deviation + i);
        F displacement = multiply_add(direction, moved, load(state.displacement + i));
        F gradient = direction * load(state.curvature + i) * (before * kept), deviation = before;
        if (DECAYS) {
            const F delta = load(shrink + i), shift = load(state.curvature + i) * delta * splat(by.per_length);
            gradient = multiply_add(clamp(shift, splat(-by.reach), splat(by.reach)), before, gradient);
            displacement = displacement + delta;
        }
        store(to.innovations + i, comparison.compare(grad + i, gradient, deviation));
        store(to.displacements + i, displacement);
        store(to.gradients + i, unless_negligible(gradient));
        store(deviations + i, deviation);
    }

    const Lesson lesson(by);
    const F stay = splat(by.stay);
    V surprises = sums[3];
    for (int i = 0; i < count; i += WIDTH) {
        ask(state.displacement, i);
        const F displacement = load(to.displacements + i);
        store(
            to.innovations + i,
            lesson.learn(displacement, load(to.innovations + i), load(deviations + i), surprises)
        );
        store(state.displacement + i, to_nearest(state.displacement, unless_negligible(displacement * stay)));
    }
    sums[3] = surprises;

    for (int i = 0; i < count; i += WIDTH) {
        ask(state.curvature, i);
        const F curvature = load(state.curvature + i) * exponential<SMALL>(load(to.innovations + i));
        store(curvatures + i, clamp(curvature, splat(CURVATURE_LEAST), splat(CURVATURE_MOST)));
    }

    const F unit = splat(by.unit), most = splat(LARGEST_DIRECTION);
    V decrement = sums[0], stiff = sums[1], total = sums[2], squared = sums[4];
    for (int i = 0; i < count; i += WIDTH) {
        ask(state.deviation, i);
        F deviation = load(deviations + i), curvature = load(curvatures + i), stiffness = deviation * curvature;
        F direction = clamp(ratio(load(to.gradients + i), stiffness), -most, most);
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
ARTURO_WHOLE void observe_rest(
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
ARTURO_WHOLE void observe_tile(
    const float *grad, const float *shrink, const Kept<T> &state, const Update &by, uint32_t index, uint32_t salt,
    int count, Sums<SUMS> &sums
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

}  // namespace
