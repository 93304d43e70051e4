// Sums over all pixels of a frame, requantized with the mean's divisor in the multiplier. PIXELS * FOLDS cycles a
// frame.
#ifndef TERSOR_GLOBAL_POOL_H
#define TERSOR_GLOBAL_POOL_H

#include "requantize.h"

template <class S, class Constants, class Sums>
void global_pool(hls::stream<beat<S::IN, S::PE>> &in, hls::stream<beat<S::OUT, S::PE>> &out, const Constants &constants,
                 Sums &sums) {
#pragma HLS INLINE
    for (int pixel = 0; pixel < S::PIXELS; pixel++) {
        for (int fold = 0; fold < S::FOLDS; fold++) {
#pragma HLS PIPELINE II = 1
            const beat<S::IN, S::PE> x = in.read();
            beat<S::OUT, S::PE> y;
            for (int p = 0; p < S::PE; p++) {
#pragma HLS UNROLL
                const ap_int<S::ACC> sum = (pixel == 0 ? ap_int<S::ACC>(S::START) : sums[fold][p]) + x.lane[p];
                sums[fold][p] = sum;
                if (pixel == S::PIXELS - 1)
                    y.lane[p] = S::requantize::apply(sum, constants);
            }
            if (pixel == S::PIXELS - 1)
                out.write(y);
        }
    }
}

#endif
