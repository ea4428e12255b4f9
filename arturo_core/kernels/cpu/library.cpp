// A plain C interface to the passes over many tensors at once. Nothing of torch or Python is in it.
//
// Every function returns 0, or says why it has written nothing: 1 for a tensor without memory, 2 for no memory here,
// 3 for a state in codes whose first element is not the first of a scale.
// Sums of blocks are added in the order of the blocks, so results do not depend on the number of threads.

#include "path.h"

#include <cstdlib>

#ifdef ARTURO_X86
#include <cpuid.h>
#include <immintrin.h>
#endif

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

using namespace arturo;

namespace {

enum { DONE = 0, NO_TENSOR = 1, NO_MEMORY = 2, CUT = 3 };

const Path &path(int level) {
#ifdef ARTURO_X86
    if (level == 2) return avx512;
    if (level == 1) return avx2;
#endif
    (void)level;
    return plain;
}

// Subnormal numbers count as zero while this lives: on many processors they are far slower. Not without fused
// operations, since parts of what is larger would be lost.
class Flush {
#ifdef ARTURO_X86
    unsigned before = _mm_getcsr();

  public:
    Flush() { _mm_setcsr(before | 0x8040u); }
    ~Flush() { _mm_setcsr(before); }
#else
  public:
    Flush() {}
    ~Flush() {}
#endif
};

// Blocks that are worth a second thread.
constexpr int64_t WORTH = 4;

int64_t count_of(const int64_t *counts, int64_t sources) {
    int64_t blocks = 0;
    for (int64_t i = 0; i < sources; i++) blocks += (counts[i] + BLOCK - 1) / BLOCK;
    return blocks;
}

bool missing(const Source *source, const Kinds *kinds, int64_t sources) {
    for (int64_t i = 0; i < sources; i++) {
        const void *const *addresses = (const void *const *)(source + i);
        for (int k = 0; k < (kinds[i].state == CODES ? 8 : 6); k++)
            if (!addresses[k]) return true;
    }
    return false;
}

// Whether a state in codes begins amid elements that share a scale.
bool cut(const Kinds *kinds, const int64_t *seeds, int64_t sources) {
    for (int64_t i = 0; i < sources; i++)
        if (kinds[i].state == CODES && seeds && seeds[i * 2 + 1] % SCALED) return true;
    return false;
}

// Runs `work` on every block and adds its sums up by source; `width` sums a block.
template <class Work>
int over_blocks(
    const Block *blocks, int64_t count, int64_t sources, int width, int threads, bool flush, double *totals,
    const Work &work
) {
    double *sums = (double *)malloc((count > 0 ? count : 1) * width * sizeof(double));
    if (!sums) return NO_MEMORY;
    if (threads < 1 || count < WORTH) threads = 1;
    auto all = [&](auto &&run) {
        if (flush) {
            Flush subnormal;
            run();
        } else {
            run();
        }
    };
    auto one = [&](int64_t i) {
        double found[SUMS] = {};
        work(blocks[i], found);
        for (int k = 0; k < width; k++) sums[i * width + k] = found[k];
    };
    if (threads == 1) {
        all([&] {
            for (int64_t i = 0; i < count; i++) one(i);
        });
    } else {
#pragma omp parallel num_threads(threads)
        all([&] {
#pragma omp for schedule(dynamic, 4)
            for (int64_t i = 0; i < count; i++) one(i);
        });
    }
    for (int64_t i = 0; i < sources * width; i++) totals[i] = 0.0;
    for (int64_t i = 0; i < count; i++)
        for (int k = 0; k < width; k++) totals[blocks[i].source * width + k] += sums[i * width + k];
    free(sums);
    return DONE;
}

}  // namespace

// Which interface this is; arturo_core/kernels/cpu/library.py knows it, too.
EXPORT int arturo_interface() { return 2; }

// The best path of this machine: 0 plain, 1 AVX2, 2 AVX-512.
EXPORT int arturo_level() {
#ifdef ARTURO_X86
    unsigned a = 0, b = 0, c = 0, d = 0;
    const bool half = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
    __builtin_cpu_init();
    if (!half || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return wide ? 2 : 1;
#else
    return 0;
#endif
}

EXPORT int64_t arturo_count_blocks(const int64_t *counts, int64_t sources) { return count_of(counts, sources); }

EXPORT void arturo_make_blocks(const int64_t *counts, int64_t sources, Block *blocks) {
    for (int64_t i = 0; i < sources; i++)
        for (int64_t at = 0; at < counts[i]; at += BLOCK)
            *blocks++ = Block{(int32_t)i, (int32_t)(counts[i] - at < BLOCK ? counts[i] - at : BLOCK), at};
}

// unusable: of each source, how many of its blocks have a gradient that is not finite or too large.
EXPORT int arturo_survey(
    const Source *source, const Kinds *kinds, int64_t sources, const Block *blocks, int64_t count, int level,
    int threads, double *unusable
) {
    if (missing(source, kinds, sources)) return NO_TENSOR;
    const Path &of = path(level);
    return over_blocks(blocks, count, sources, 1, threads, false, unusable, [&](const Block &block, double *found) {
        of.survey(source[block.source], kinds[block.source], block, found);
    });
}

// squares: of each source the sum of its squared weights.
EXPORT int arturo_squares(
    const Source *source, const Kinds *kinds, int64_t sources, const Block *blocks, int64_t count, int level,
    int threads, double *squares
) {
    if (missing(source, kinds, sources)) return NO_TENSOR;
    const Path &of = path(level);
    return over_blocks(blocks, count, sources, 1, threads, false, squares, [&](const Block &block, double *found) {
        of.squares(source[block.source], kinds[block.source], block, found);
    });
}

// gains: of each source k, alpha, v, p, level, f0, f0 l0. seeds: of each a key and the index of its first element.
EXPORT int arturo_observe(
    const Source *source, const Kinds *kinds, int64_t sources, const Block *blocks, int64_t count, int level,
    int threads, const double *gains, const int64_t *seeds, double length, double decay, int maximize, double *totals
) {
    if (missing(source, kinds, sources)) return NO_TENSOR;
    if (cut(kinds, seeds, sources)) return CUT;
    const Path &of = path(level);
    const int failed =
        over_blocks(blocks, count, sources, SUMS, threads, level > 0, totals, [&](const Block &block, double *found) {
            const double *gain = gains + block.source * 7;
            Update by;
            by.sign = maximize ? -1.0f : 1.0f;
            by.kept = (float)(1.0 - gain[5]);
            by.moved = (float)gain[6];
            by.gain = (float)gain[0];
            by.stay = (float)(1.0 - gain[0]);
            by.noise = (float)gain[1];
            by.inside = (float)(1.0 / (1.0 + gain[3]));
            by.outside = (float)(1.0 + gain[3]);
            by.curvature = (float)gain[2];
            by.level = (float)gain[4];
            by.per_length = (float)(1.0 / length);
            by.reach = (float)(0.6 * gain[0]);
            by.decay = (float)decay;
            by.unit = (float)(length * SUM_UNIT);
            by.key = seeds ? (uint32_t)seeds[block.source * 2] : 0;
            by.first = seeds ? (uint64_t)seeds[block.source * 2 + 1] : 0;
            of.observe(source[block.source], kinds[block.source], block, by, found);
        });
    if (failed) return failed;
    for (int64_t i = 0; i < sources; i++) {
        totals[i * SUMS] *= 1.0 / SUM_UNIT;
        totals[i * SUMS + 4] *= 1.0 / (SUM_UNIT * SUM_UNIT);
    }
    return DONE;
}

// squares: of each source the sum of its squared weights after the step.
EXPORT int arturo_apply(
    const Source *source, const Kinds *kinds, int64_t sources, const Block *blocks, int64_t count, int level,
    int threads, const int64_t *seeds, double step, double length, double *squares
) {
    if (missing(source, kinds, sources)) return NO_TENSOR;
    if (cut(kinds, seeds, sources)) return CUT;
    const Path &of = path(level);
    return over_blocks(blocks, count, sources, 1, threads, false, squares, [&](const Block &block, double *found) {
        Move by;
        by.step = (float)step;
        by.per_length = (float)(1.0 / length);
        by.key = seeds ? (uint32_t)seeds[block.source * 2] ^ 0x55555555u : 0;
        by.first = seeds ? (uint64_t)seeds[block.source * 2 + 1] : 0;
        of.apply(source[block.source], kinds[block.source], block, by, found);
    });
}
