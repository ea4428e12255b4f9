// The step.

namespace {

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
