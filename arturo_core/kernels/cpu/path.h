// What the library's parts share: tables of tensors and blocks, the scalars of a pass, and one set of passes a path.
#pragma once

#include <cstdint>

namespace arturo {

// Elements of a block, the unit of work of a thread.
constexpr int64_t BLOCK = 8192;

// Sums of a block.
constexpr int SUMS = 5;

// CODES: a state in 8 bits, its deviation in bfloat16; see arturo_core/storage/codes.py.
enum Kind : uint8_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, CODES = 3 };

// Elements that share a scale of codes; a state in codes is whole runs of them.
constexpr int SCALED = 32;

// Addresses of one parameter's tensors, flat runs of elements in one order. Codes alone have scales.
struct Source {
    void *theta;
    const void *grad;
    void *direction;
    void *deviation;
    void *curvature;
    void *displacement;
    void *direction_scale;
    void *displacement_scale;
};

// Their element types; all four tensors of a state but codes have one.
struct Kinds {
    uint8_t theta, grad, state;
};

struct Block {
    int32_t source;
    int32_t count;
    int64_t start;
};

// Scalars of an update, of one parameter.
struct Update {
    float sign;       // -1 to maximise
    float kept;       // 1 - f of the last step
    float moved;      // f l of the last step
    float gain;       // k
    float stay;       // 1 - k
    float noise;      // gain of the noise estimate
    float inside;     // 1/(1 + p)
    float outside;    // 1 + p
    float curvature;  // v
    float level;      // logarithm of the mean of s
    float per_length; // 1/l
    float reach;      // largest shift by decay, in units of the deviation
    float decay;
    float unit;       // of sums of squares, see SUM_UNIT
    uint32_t key;
    uint64_t first;   // global index of the parameter's first element here
};

// Scalars of a step.
struct Move {
    float step;       // f l
    float per_length;
    uint32_t key;
    uint64_t first;
};

// Sums of squares are taken in units of this times l, so that lanes of float32 add up what each can hold.
constexpr double SUM_UNIT = 1.0 / 1024.0;

// The passes over one block of one parameter, in one instruction set. `sums` is SUMS numbers, set by each.
struct Path {
    void (*survey)(const Source &, Kinds, const Block &, double *sums);  // unusable gradients?, sum of squared weights
    void (*observe)(const Source &, Kinds, const Block &, const Update &, double *sums);
    void (*apply)(const Source &, Kinds, const Block &, const Move &, double *sums);  // sum of squared weights
    void (*squares)(const Source &, Kinds, const Block &, double *sums);
};

extern const Path plain;
#if defined(__x86_64__) || defined(_M_X64)
#define ARTURO_X86 1
extern const Path avx2;
extern const Path avx512;
#endif

// Two or more vectors that go through every operation side by side, so that a processor has work while it waits.
template <class A> struct Pair {
    A low, high;
};

}  // namespace arturo
