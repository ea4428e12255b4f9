// The update with a gradient of a state in 8 bits.

namespace {

// Elements of codes in a cache line; of a stage so many are asked for at once.
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

// Re-centres and decays SCALED elements, and compares them with their gradients.
template <bool DECAYS>
inline void compare_codes(
    const float *grad, const float *shrink, const Coded &state, const Update &by, const Comparison &comparison, int at,
    Waiting &to
) {
    const float scale = widened(state.direction.scales[at / SCALED]);
    const F moved = splat(-by.moved * scale), kept = splat(by.kept * scale);
    const F far = splat(widened(state.displacement.scales[at / SCALED]));
    for (int i = at; i < at + SCALED; i += WIDTH) {
        const F share = share_of(number(load_bits(state.direction.codes + i)));
        F deviation = load(state.deviation + i);
        const F curvature = power_of_codes(load_bits(state.curvature + i)), before = deviation;
        F displacement =
            multiply_add(share, moved, share_of(number(load_bits(state.displacement.codes + i))) * far);
        F gradient = share * kept * curvature * before;
        if (DECAYS) {
            const F delta = load(shrink + i), shift = curvature * delta * splat(by.per_length);
            gradient = multiply_add(clamp(shift, splat(-by.reach), splat(by.reach)), before, gradient);
            displacement = displacement + delta;
        }
        store(to.innovations + i, comparison.compare(grad + i, gradient, deviation));
        store(to.displacements + i, displacement);
        store(to.gradients + i, gradient);
        store(to.deviations + i, deviation);
        store(to.curvatures + i, curvature);
    }
}

// Writes deviations and directions of SCALED elements, and adds up what is kept.
inline void keep_codes(const Coded &state, Waiting &to, const int32_t *random, float unit, int at, V *sums) {
    F most = {};
    for (int i = at; i < at + SCALED; i += WIDTH) most = maximum(magnitude(load(to.gradients + i)), most);
    float above = largest(most);
    if (above > LARGEST_DIRECTION) {
        above = LARGEST_DIRECTION;
        for (int i = at; i < at + SCALED; i++)
            to.gradients[i] = to.gradients[i] > above ? above : to.gradients[i] < -above ? -above : to.gradients[i];
    }
    const float scale = write_scale(state.direction.scales + at / SCALED, above, LEAST_SCALE);
    const Encoding by(scale);
    V decrement = {}, squared = {}, stiff = sums[1], total = sums[2];
    for (int i = at; i < at + SCALED; i += WIDTH) {
        const I bits = load_bits(random + i);
        const F direction = load(to.gradients + i), code = by.magnitudes(direction, bits);
        const F deviation = at_random(state.deviation, load(to.deviations + i), shifted(bits, 16));
        store_codes(state.direction.codes + i, code, direction);
        store(state.deviation + i, deviation);
        const F share = ratio(code, splat(2.0f * CODES_MOST) - code), stiffness = deviation * load(to.curvatures + i);
        add_product_to(decrement, share * share, stiffness);
        add_product_to(squared, share, share);
        add_to(stiff, stiffness);
        add_to(total, deviation);
    }
    V factor = scale - V{};
    sums[0] = multiply_add(decrement * factor, factor * unit, sums[0]);
    factor = factor * unit;
    sums[4] = multiply_add(squared * factor, factor, sums[4]);
    sums[1] = stiff;
    sums[2] = total;
}

// As observe_vectors; `count` is a multiple of SCALED.
template <bool DECAYS, bool SMALL>
inline void observe_codes(
    const float *grad, const float *shrink, const Coded &state, const Update &by, uint32_t index, uint32_t salt,
    int count, V *sums
) {
    Waiting to;
    int32_t random[STAGE];
    ask_ahead(grad, state, count);
    const Comparison comparison(by);
    for (int i = 0; i < count; i += SCALED) compare_codes<DECAYS>(grad, shrink, state, by, comparison, i, to);

    const Lesson lesson(by);
    V surprises = sums[3];
    for (int i = 0; i < count; i += WIDTH)
        store(
            to.innovations + i, lesson.learn(
                load(to.displacements + i), load(to.innovations + i), load(to.deviations + i), surprises
            )
        );
    sums[3] = surprises;

    for (int i = 0; i < count; i += WIDTH) {
        const I bits = random_bits(index + i, salt);
        const F change = load(to.innovations + i), grown = load(to.curvatures + i) * exponential<SMALL>(change);
        const F curvature = clamp(grown, splat(CURVATURE_LEAST), splat(CURVATURE_MOST));
        store(to.gradients + i, ratio(load(to.gradients + i), curvature * load(to.deviations + i)));
        const I code = log_codes(change, load_bits(state.curvature + i), bits);
        store(random + i, bits);
        store(state.curvature + i, code);
        store(to.curvatures + i, power_of_codes(code));
    }

    for (int i = 0; i < count; i += SCALED) encode(to.displacements + i, state.displacement.at(i), random + i, 8, by.stay);
    for (int i = 0; i < count; i += SCALED) keep_codes(state, to, random, by.unit, i, sums);
}

template <bool DECAYS, bool SMALL>
void observe_tile(
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
