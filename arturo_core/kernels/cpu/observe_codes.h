// The update with a gradient of a state in 8 bits.

namespace {

// Asks for what the update of some later elements reads; a stage is whole cache lines of every tensor but scales.
inline void ask_ahead(const float *grad, const Coded &state, int count) {
    const auto lines = [](const void *from, int bytes) {
        for (int i = 0; i < bytes; i += 4 * LINE) __builtin_prefetch((const char *)from + ARTURO_AHEAD + i, 1);
    };
    lines(grad, 4 * count);
    lines(state.direction.codes, count);
    lines(state.deviation, 2 * count);
    lines(state.curvature, count);
    lines(state.displacement.codes, count);
    __builtin_prefetch((const char *)state.direction.scales + ARTURO_AHEAD / 16, 1);
    __builtin_prefetch((const char *)state.displacement.scales + ARTURO_AHEAD / 16, 1);
}

// What waits between the stages, beside what does in every storage.
struct WaitingCodes : Waiting {
    float directions[STAGE];
    int32_t random[STAGE];
};

// Reads `count` elements and re-centres their displacements.
inline void decode(const Coded &state, const Update &by, uint32_t index, uint32_t salt, int count, WaitingCodes &to) {
    for (int at = 0; at < count; at += SCALED) {
        const float scale = widened(state.direction.scales[at / SCALED]);
        const F near = splat(scale), moved = splat(-by.moved * scale);
        const F far = splat(widened(state.displacement.scales[at / SCALED]));
        for (int i = at; i < at + SCALED; i += WIDTH) {
            const F direction = share_of(number(load_bits(state.direction.codes + i)));
            const F displacement = share_of(number(load_bits(state.displacement.codes + i)));
            store(to.directions + i, direction * near);
            store(to.displacements + i, multiply_add(direction, moved, displacement * far));
        }
    }
    for (int i = 0; i < count; i += WIDTH) store(to.curvatures + i, power_of_codes(load_bits(state.curvature + i)));
    for (int i = 0; i < count; i += WIDTH) store(to.random + i, random_bits(index + i, salt));
}

// Writes codes of s, and puts u in place of the gradient.
template <bool SMALL> inline void keep_curvatures(const Coded &state, int count, WaitingCodes &to) {
    const F most = splat(LARGEST_DIRECTION);
    for (int i = 0; i < count; i += WIDTH) {
        const F grown = load(to.curvatures + i) * exponential<SMALL>(load(to.innovations + i));
        const F curvature = clamp(grown, splat(CURVATURE_LEAST), splat(CURVATURE_MOST));
        const F direction = ratio(load(to.gradients + i), curvature * load(to.deviations + i));
        store(to.directions + i, clamp(direction, -most, most));
    }
    for (int i = 0; i < count; i += WIDTH) {
        const I code = log_codes(load(to.innovations + i), load_bits(state.curvature + i), load_bits(to.random + i));
        store(state.curvature + i, code);
        store(to.curvatures + i, power_of_codes(code));
    }
}

// Writes deviations and codes of u, and adds up what is kept.
inline void keep_directions(const Coded &state, float unit, int count, WaitingCodes &to, V *sums) {
    V scales[STAGE / SCALED];
    for (int k = 0; k < count / SCALED; k++)
        scales[k] = write_scale(state.direction.scales + k, to.directions + k * SCALED);
    V stiff = sums[1], total = sums[2];
    for (int at = 0; at < count; at += SCALED) {
        const Encoding by(scales[at / SCALED]);
        V decrement = {}, squared = {};
        for (int i = at; i < at + SCALED; i += WIDTH) {
            const I bits = load_bits(to.random + i);
            const F direction = load(to.directions + i), code = by.magnitudes(direction, bits);
            const F deviation = at_random(state.deviation, load(to.deviations + i), shifted(bits, 16));
            store_codes(state.direction.codes + i, code, direction);
            store(state.deviation + i, deviation);
            const F share = ratio(code, splat(2.0f * CODES_MOST) - code);
            const F stiffness = deviation * load(to.curvatures + i);
            add_product_to(decrement, share * share, stiffness);
            add_product_to(squared, share, share);
            add_to(stiff, stiffness);
            add_to(total, deviation);
        }
        const V factor = scales[at / SCALED], newton = factor * unit;
        sums[0] = multiply_add(decrement * factor, newton, sums[0]);
        sums[4] = multiply_add(squared * newton, newton, sums[4]);
    }
    sums[1] = stiff;
    sums[2] = total;
}

// As observe_vectors; `count` is a multiple of SCALED.
template <bool DECAYS, bool SMALL>
inline void observe_codes(
    const float *grad, const float *shrink, const Coded &state, const Update &by, uint32_t index, uint32_t salt,
    int count, V *sums
) {
    WaitingCodes to;
    ask_ahead(grad, state, count);
    decode(state, by, index, salt, count, to);

    const Comparison comparison(by);
    const F kept = splat(by.kept);
    for (int i = 0; i < count; i += WIDTH) {
        F deviation = load(state.deviation + i);
        const F curvature = load(to.curvatures + i), before = deviation;
        F gradient = load(to.directions + i) * curvature * (before * kept);
        if (DECAYS) {
            const F delta = load(shrink + i), shift = curvature * delta * splat(by.per_length);
            gradient = multiply_add(clamp(shift, splat(-by.reach), splat(by.reach)), before, gradient);
            store(to.displacements + i, load(to.displacements + i) + delta);
        }
        store(to.innovations + i, comparison.compare(grad + i, gradient, deviation));
        store(to.gradients + i, unless_negligible(gradient));
        store(to.deviations + i, deviation);
    }

    const Lesson lesson(by);
    V surprises = sums[3];
    for (int i = 0; i < count; i += WIDTH) {
        const F change = lesson.learn(
            load(to.displacements + i), load(to.innovations + i), load(to.deviations + i), surprises
        );
        store(to.innovations + i, change);
        store(to.displacements + i, unless_negligible(load(to.displacements + i) * splat(by.stay)));
    }
    sums[3] = surprises;

    encode(to.displacements, state.displacement, to.random, 8, count);
    keep_curvatures<SMALL>(state, count, to);
    keep_directions(state, by.unit, count, to, sums);
}

template <bool DECAYS, bool SMALL>
ARTURO_WHOLE void observe_tile(
    const float *grad, const float *shrink, const Coded &state, const Update &by, uint32_t index, uint32_t salt,
    int count, Sums<SUMS> &sums
) {
    V lanes[SUMS] = {};
    for (int i = 0; i < count; i += STAGE)
        observe_codes<DECAYS, SMALL>(
            grad + i, DECAYS ? shrink + i : nullptr, state.at(i), by, index + i, salt,
            count - i < STAGE ? count - i : STAGE, lanes
        );
    for (int k = 0; k < SUMS; k++) sums.add(k, lanes[k]);
}

// ---- either

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
