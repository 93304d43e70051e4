// Depthwise convolution: each channel with its own taps, behind a window generator that sends by channel.
// PIXELS * (CHANNELS / PE) * TAPS cycles a frame.
#ifndef TERSOR_DEPTHWISE_H
#define TERSOR_DEPTHWISE_H

#include "requantize.h"

template <class S, class Tiles, class Bias, class Constants>
void depthwise(hls::stream<beat<S::IN, S::PE>> &in, hls::stream<beat<S::OUT, S::PE>> &out, const Tiles &tiles,
               const Bias &bias, const Constants &constants) {
    ap_int<S::ACC> acc[S::PE];
#pragma HLS ARRAY_PARTITION variable = acc complete
    for (int pixel = 0; pixel < S::PIXELS; pixel++) {
        for (int fold = 0; fold < S::CHANNELS / S::PE; fold++) {
            for (int tap = 0; tap < S::TAPS; tap++) {
#pragma HLS PIPELINE II = 1
                const beat<S::IN, S::PE> x = in.read();
                const weight_tile<S::WEIGHT, S::PE, 1> tile = tiles[fold * S::TAPS + tap];
                beat<S::OUT, S::PE> y;
                for (int p = 0; p < S::PE; p++) {
#pragma HLS UNROLL
                    const ap_int<S::ACC> start = tap == 0 ? static_cast<ap_int<S::ACC>>(bias[fold][p]) : acc[p];
                    acc[p] = start + x.lane[p] * tile.weight[p][0];
                    if (tap == S::TAPS - 1)
                        y.lane[p] = S::requantize::apply(acc[p], constants[fold][p]);
                }
                if (tap == S::TAPS - 1)
                    out.write(y);
            }
        }
    }
}

#endif
