// Pools over windows, behind a window generator that sends by channel. PE channels and SIMD of their TAPS taps, one or
// all, are taken in one cycle: PIXELS * FOLDS * (TAPS / SIMD) cycles a frame.
#ifndef TERSOR_POOL_H
#define TERSOR_POOL_H

#include "requantize.h"

// Streams carry q - low, which keeps the order of values, so the greatest is the greatest.
template <class S>
void max_pool(hls::stream<beat<S::BITS, S::SIMD * S::PE>> &in, hls::stream<beat<S::BITS, S::PE>> &out) {
#pragma HLS INLINE
    beat<S::BITS, S::PE> most;
#pragma HLS ARRAY_PARTITION variable = most.lane complete
    for (int window = 0; window < S::PIXELS * S::FOLDS; window++) {
        for (int step = 0; step < S::TAPS / S::SIMD; step++) {
#pragma HLS PIPELINE II = 1
            const beat<S::BITS, S::SIMD * S::PE> x = in.read();
            for (int p = 0; p < S::PE; p++) {
#pragma HLS UNROLL
                ap_uint<S::BITS> found = x.lane[p];
                for (int tap = 1; tap < S::SIMD; tap++) {
#pragma HLS UNROLL
                    const ap_uint<S::BITS> other = x.lane[tap * S::PE + p];
                    found = other > found ? other : found;
                }
                most.lane[p] = step == 0 || found > most.lane[p] ? found : most.lane[p];
            }
            if (step == S::TAPS / S::SIMD - 1)
                out.write(most);
        }
    }
}

// Sums of windows, requantized; START takes the zero point of all taps off. One constant serves all channels.
template <class S, class Constants>
void sum_pool(hls::stream<beat<S::IN, S::SIMD * S::PE>> &in, hls::stream<beat<S::OUT, S::PE>> &out,
              const Constants &constants) {
#pragma HLS INLINE
    ap_int<S::ACC> acc[S::PE];
#pragma HLS ARRAY_PARTITION variable = acc complete
    for (int window = 0; window < S::PIXELS * S::FOLDS; window++) {
        for (int step = 0; step < S::TAPS / S::SIMD; step++) {
#pragma HLS PIPELINE II = 1
            const beat<S::IN, S::SIMD * S::PE> x = in.read();
            beat<S::OUT, S::PE> y;
            for (int p = 0; p < S::PE; p++) {
#pragma HLS UNROLL
                ap_int<S::ACC> sum = 0;
                for (int tap = 0; tap < S::SIMD; tap++) {
#pragma HLS UNROLL
                    sum += x.lane[tap * S::PE + p];
                }
                acc[p] = (step == 0 ? ap_int<S::ACC>(S::START) : acc[p]) + sum;
                if (step == S::TAPS / S::SIMD - 1)
                    y.lane[p] = S::requantize::apply(acc[p], constants);
            }
            if (step == S::TAPS / S::SIMD - 1)
                out.write(y);
        }
    }
}

#endif
