// What a stream carries in one cycle: LANES neighbouring values of BITS bits, all unsigned. A value q of the program
// travels as q - low, where low is the least value that the compiler proved the stream to have.
#ifndef TERSOR_BEAT_H
#define TERSOR_BEAT_H

#include <ap_int.h>
#include <hls_stream.h>
#ifndef __SYNTHESIS__
#include <cstdio>
#endif

template <int BITS, int LANES> struct beat {
    ap_uint<BITS> lane[LANES];
#ifndef __SYNTHESIS__
    void trace(std::FILE *file) const {
        for (int i = 0; i < LANES; i++) {
            const long long value = static_cast<long long>(lane[i]);
            std::fwrite(&value, sizeof value, 1, file);
        }
    }
#endif
};

// One step of a matrix: the weights that PE outputs have for the same SIMD inputs.
template <int BITS, int PE, int SIMD> struct weight_tile {
    ap_int<BITS> weight[PE][SIMD];
};

constexpr int larger(int a, int b) { return a > b ? a : b; }

#endif
