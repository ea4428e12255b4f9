// What the log codes of s stand for, in the orders in which instruction sets look them up.
#pragma once

namespace arturo {

// 10^(code/127).
constexpr double power_of_code(int code) {
    const double x = code * (2.302585092994045684 / 127.0);
    double term = 1.0, sum = 1.0;
    for (int n = 1; n < 40; n++) {
        term *= x / n;
        sum += term;
    }
    return sum;
}

// Indices are the codes' bits, in two's complement.
struct Powers {
    float all[256] = {}, ones[16] = {}, eights[8] = {}, sixtyfours[8] = {}, sixteens[16] = {};
    constexpr Powers() {
        for (int i = 0; i < 256; i++) all[i] = (float)power_of_code(i < 128 ? i : i - 256);
        for (int i = 0; i < 16; i++) ones[i] = (float)power_of_code(i);
        for (int i = 0; i < 8; i++) eights[i] = (float)power_of_code(8 * i);
        for (int i = 0; i < 8; i++) sixtyfours[i] = (float)power_of_code(64 * (i < 4 ? i : i - 8));
        for (int i = 0; i < 16; i++) sixteens[i] = (float)power_of_code(16 * (i < 8 ? i : i - 16));
    }
};

constexpr Powers POWERS;

}  // namespace arturo
