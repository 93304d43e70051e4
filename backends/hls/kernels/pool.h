// Pools over windows, behind a window generator that sends by channel. PIXELS * (CHANNELS / PE) * TAPS cycles a frame.
#ifndef TERSOR_POOL_H
#define TERSOR_POOL_H

#include "requantize.h"

// Streams carry q - low, which keeps the order of values, so the greatest is the greatest.
template <class S> void max_pool(hls::stream<beat<S::BITS, S::PE>> &in, hls::stream<beat<S::BITS, S::PE>> &out) {
    beat<S::BITS, S::PE> most;
#pragma HLS ARRAY_PARTITION variable = most.lane complete
    for (int window = 0; window < S::PIXELS * S::FOLDS; window++) {
        for (int tap = 0; tap < S::TAPS; tap++) {
#pragma HLS PIPELINE II = 1
            const beat<S::BITS, S::PE> x = in.read();
            for (int p = 0; p < S::PE; p++) {
#pragma HLS UNROLL
                most.lane[p] = tap == 0 || x.lane[p] > most.lane[p] ? x.lane[p] : most.lane[p];
            }
            if (tap == S::TAPS - 1)
                out.write(most);
        }
    }
}

// Sums of windows, requantized; START takes the zero point of all taps off. One constant serves all channels.
template <class S, class Constants>
void sum_pool(hls::stream<beat<S::IN, S::PE>> &in, hls::stream<beat<S::OUT, S::PE>> &out, const Constants &constants) {
    ap_int<S::ACC> acc[S::PE];
#pragma HLS ARRAY_PARTITION variable = acc complete
    for (int window = 0; window < S::PIXELS * S::FOLDS; window++) {
        for (int tap = 0; tap < S::TAPS; tap++) {
#pragma HLS PIPELINE II = 1
            const beat<S::IN, S::PE> x = in.read();
            beat<S::OUT, S::PE> y;
            for (int p = 0; p < S::PE; p++) {
#pragma HLS UNROLL
                acc[p] = (tap == 0 ? ap_int<S::ACC>(S::START) : acc[p]) + x.lane[p];
                if (tap == S::TAPS - 1)
                    y.lane[p] = S::requantize::apply(acc[p], constants);
            }
            if (tap == S::TAPS - 1)
                out.write(y);
        }
    }
}

#endif
