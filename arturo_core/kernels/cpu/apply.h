// The step.

namespace {

template <class D> inline F stepped(const float *theta, const D &direction, int i, const Move &by) {
    return multiply_add(load(direction, i), splat(-by.step), load(theta + i));
}

// The last elements of a block, fewer than a vector; codes have none.
template <class T>
inline void step_rest(float *theta, const T *direction, int count, const Move &by, Sums<1> &sums) {
    float weights[WIDTH] = {};
    T buffer[WIDTH] = {};
    memcpy(weights, theta, count * sizeof(float));
    memcpy(buffer, direction, count * sizeof(T));
    // The square of what is not there is zero.
    const F moved = stepped(weights, (const T *)buffer, 0, by);
    sums.add(0, moved * moved);
    store(weights, moved);
    memcpy(theta, weights, count * sizeof(float));
}
inline void step_rest(float *, const Signed &, int, const Move &, Sums<1> &) {}

inline const float *from(const float *direction, int64_t i) { return direction + i; }
inline const uint16_t *from(const uint16_t *direction, int64_t i) { return direction + i; }
inline Signed from(const Signed &direction, int64_t i) { return direction.at(i); }

// Weights of float32: the re-centring waits for the next step.
template <class D>
void apply_wide(const Source &source, const D &directions, const Block &block, const Move &by, double *out) {
    float *theta = (float *)source.theta + block.start;
    const auto direction = from(directions, block.start);
    Sums<1> sums;
    int i = 0;
    while (i + WIDTH <= block.count) {
        F lanes = {};
        for (int end = i + TILE; i < end && i + WIDTH <= block.count; i += WIDTH) {
            ask(theta, i);
            ask(direction, i);
            const F moved = stepped(theta, direction, i, by);
            store(theta + i, moved);
            lanes = multiply_add(moved, moved, lanes);
        }
        sums.add(0, lanes);
    }
    if (i < block.count) step_rest(theta + i, from(direction, i), block.count - i, by, sums);
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

// Narrow weights: what counts is the displacement that rounding leaves. `deltas` in: those asked for; then as left.
template <class T>
inline void recentre(
    const Kept<T> &state, const float *deltas, const Move &by, uint32_t low, uint32_t salt, int count
) {
    int i = 0;
    for (; i + WIDTH <= count; i += WIDTH)
        recentre_vector(deltas + i, state.direction + i, state.displacement + i, by, low + i, salt);
    const int left = count - i;
    T u[WIDTH] = {}, d[WIDTH] = {};
    memcpy(u, state.direction + i, left * sizeof(T));
    memcpy(d, state.displacement + i, left * sizeof(T));
    recentre_vector(deltas + i, u, d, by, low + i, salt);
    memcpy(state.direction + i, u, left * sizeof(T));
    memcpy(state.displacement + i, d, left * sizeof(T));
}

inline void recentre(const Coded &state, const float *deltas, const Move &by, uint32_t low, uint32_t salt, int count) {
    float directions[SCALED], displacements[SCALED];
    int32_t random[SCALED];
    for (int i = 0; i < count; i += SCALED) {
        for (int j = 0; j < SCALED; j += WIDTH) {
            const F moved = load(deltas + i + j);
            store(directions + j, multiply_add(moved, splat(by.per_length), load(state.direction, i + j)));
            store(displacements + j, load(state.displacement, i + j) + moved);
            store(random + j, random_bits(low + i + j, salt));
        }
        encode(directions, state.direction.at(i), random, 0, SCALED);
        encode(displacements, state.displacement.at(i), random, 8, SCALED);
    }
}

// The displacements that are asked for, of whole vectors and what is left.
template <class T> inline void ask_for(const Kept<T> &state, float *deltas, float step, int count) {
    int i = 0;
    for (; i + WIDTH <= count; i += WIDTH) {
        ask(state.direction, i);
        ask(state.displacement, i);
        store(deltas + i, load(state.direction + i) * splat(-step));
    }
    T u[WIDTH] = {};
    memcpy(u, state.direction + i, (count - i) * sizeof(T));
    store(deltas + i, load(u) * splat(-step));
}
inline void ask_for(const Coded &state, float *deltas, float step, int count) {
    for (int i = 0; i < count; i += WIDTH) {
        ask(state.direction, i);
        ask(state.displacement, i);
        store(deltas + i, load(state.direction, i) * splat(-step));
    }
}

template <class State>
void apply_narrow(
    const Source &source, const State &all, Kinds kinds, const Block &block, const Move &by, double *out
) {
    float buffer[TILE + WIDTH], deltas[TILE + WIDTH] = {};
    for (int at = 0, count; at < block.count; at += count) {
        const int64_t start = block.start + at;
        const uint64_t index = by.first + (uint64_t)start;
        count = until_carry(index, block.count - at);
        const State state = all.at(start);
        const float *before = as_float(source.theta, kinds.theta, start, buffer, count);
        ask_for(state, deltas, by.step, count);
        displace(source.theta, kinds.theta, start, before, deltas, count);
        recentre(state, deltas, by, (uint32_t)index, by.key ^ (uint32_t)(index >> 32), count);
    }
    out[0] = squared(source, kinds.theta, block);
}

void apply(const Source &source, Kinds kinds, const Block &block, const Move &by, double *out) {
    const bool wide = kinds.theta == FLOAT32;
    if (kinds.state == FLOAT32)
        wide ? apply_wide(source, (const float *)source.direction, block, by, out)
             : apply_narrow(source, kept<float>(source), kinds, block, by, out);
    else if (kinds.state == BFLOAT16)
        wide ? apply_wide(source, (const uint16_t *)source.direction, block, by, out)
             : apply_narrow(source, kept<uint16_t>(source), kinds, block, by, out);
    else
        wide ? apply_wide(source, coded(source).direction, block, by, out)
             : apply_narrow(source, coded(source), kinds, block, by, out);
}

}  // namespace
