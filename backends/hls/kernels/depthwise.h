// Depthwise convolution: each channel with its own taps, behind a window generator that sends by channel. PE channels
// and SIMD of their TAPS taps, one or all, are computed in one cycle: PIXELS * (CHANNELS / PE) * (TAPS / SIMD) cycles a
// frame.
#ifndef TERSOR_DEPTHWISE_H
#define TERSOR_DEPTHWISE_H

#include "requantize.h"

template <class S, class Weights, class Bias, class Constants>
void depthwise(hls::stream<beat<S::IN, S::SIMD * S::PE>> &in, hls::stream<beat<S::OUT, S::PE>> &out,
               const Weights &weights, const Bias &bias, const Constants &constants) {
#pragma HLS INLINE
    const int STEPS = S::TAPS / S::SIMD;
    ap_int<S::ACC> acc[S::PE];
#pragma HLS ARRAY_PARTITION variable = acc complete
    for (int pixel = 0; pixel < S::PIXELS; pixel++) {
        for (int fold = 0; fold < S::CHANNELS / S::PE; fold++) {
            for (int step = 0; step < STEPS; step++) {
#pragma HLS PIPELINE II = 1
                const beat<S::IN, S::SIMD * S::PE> x = in.read();
                beat<S::OUT, S::PE> y;
                for (int p = 0; p < S::PE; p++) {
#pragma HLS UNROLL
                    ap_int<S::ACC> sum = 0;
                    for (int tap = 0; tap < S::SIMD; tap++) {
#pragma HLS UNROLL
                        sum += product<S::IN, S::WEIGHT, S::FABRIC>(x.lane[tap * S::PE + p],
                                                                    weights[fold * STEPS + step][p][tap]);
                    }
                    const ap_int<S::ACC> start = step == 0 ? static_cast<ap_int<S::ACC>>(bias[fold][p]) : acc[p];
                    acc[p] = start + sum;
                    if (step == STEPS - 1)
                        y.lane[p] = S::requantize::apply(acc[p], constants[fold][p]);
                }
                if (step == STEPS - 1)
                    out.write(y);
            }
        }
    }
}

#endif
