// Before anything is written: is every gradient usable; sum of squared weights.

namespace {

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
    if (i < count) {
        // As apply_wide does it: the sums are the same to the bit, and so is a run that is resumed.
        float rest[WIDTH] = {};
        memcpy(rest, x + i, (count - i) * sizeof(float));
        const F last = load(rest);
        sums.add(0, last * last);
    }
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

}  // namespace
