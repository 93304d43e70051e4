// Streams that part, join, or change how many values they carry at once.
#ifndef TERSOR_STREAMS_H
#define TERSOR_STREAMS_H

#include "beat.h"

// The same values to two readers; three readers take two of these. COUNT cycles a frame.
template <class S>
void fork(hls::stream<beat<S::BITS, S::LANES>> &in, hls::stream<beat<S::BITS, S::LANES>> &first,
          hls::stream<beat<S::BITS, S::LANES>> &second) {
#pragma HLS INLINE
    for (int i = 0; i < S::COUNT; i++) {
#pragma HLS PIPELINE II = 1
        const beat<S::BITS, S::LANES> value = in.read();
        first.write(value);
        second.write(value);
    }
}

// The same values in every frame. COUNT cycles a frame.
template <class S, class Values> void constant(hls::stream<beat<S::BITS, S::LANES>> &out, const Values &values) {
#pragma HLS INLINE
    for (int i = 0; i < S::COUNT; i++) {
#pragma HLS PIPELINE II = 1
        beat<S::BITS, S::LANES> y;
        for (int lane = 0; lane < S::LANES; lane++) {
#pragma HLS UNROLL
            y.lane[lane] = values[i][lane];
        }
        out.write(y);
    }
}

// ROUNDS times a part of one stream, then a part of another: in every pixel the channels of both, for example. MOVE is
// the difference of what stands for the same value.
template <class S>
void concat(hls::stream<beat<S::LEFT, S::PE>> &left, hls::stream<beat<S::RIGHT, S::PE>> &right,
            hls::stream<beat<S::OUT, S::PE>> &out) {
#pragma HLS INLINE
    for (int round = 0; round < S::ROUNDS; round++) {
        for (int fold = 0; fold < S::LEFT_FOLDS + S::RIGHT_FOLDS; fold++) {
#pragma HLS PIPELINE II = 1
            beat<S::OUT, S::PE> y;
            if (fold < S::LEFT_FOLDS) {
                const beat<S::LEFT, S::PE> x = left.read();
                for (int p = 0; p < S::PE; p++) {
#pragma HLS UNROLL
                    y.lane[p] = x.lane[p] + S::MOVE_LEFT;
                }
            } else {
                const beat<S::RIGHT, S::PE> x = right.read();
                for (int p = 0; p < S::PE; p++) {
#pragma HLS UNROLL
                    y.lane[p] = x.lane[p] + S::MOVE_RIGHT;
                }
            }
            out.write(y);
        }
    }
}

// From FROM to TO values at once. max(COUNT / FROM, COUNT / TO) cycles a frame of COUNT values.
template <class S> void convert(hls::stream<beat<S::BITS, S::FROM>> &in, hls::stream<beat<S::BITS, S::TO>> &out) {
#pragma HLS INLINE
    ap_uint<S::BITS> held[S::FROM + S::TO];
#pragma HLS ARRAY_PARTITION variable = held complete
    int have = 0;
    for (int turn = 0; turn < larger(S::COUNT / S::FROM, S::COUNT / S::TO); turn++) {
#pragma HLS PIPELINE II = 1
        if (have < S::TO) {
            const beat<S::BITS, S::FROM> x = in.read();
            for (int i = 0; i < S::FROM; i++) {
#pragma HLS UNROLL
                held[have + i] = x.lane[i];
            }
            have += S::FROM;
        }
        if (have >= S::TO) {
            beat<S::BITS, S::TO> y;
            for (int i = 0; i < S::TO; i++) {
#pragma HLS UNROLL
                y.lane[i] = held[i];
            }
            for (int i = 0; i < S::FROM; i++) {
#pragma HLS UNROLL
                held[i] = held[i + S::TO];
            }
            out.write(y);
            have -= S::TO;
        }
    }
}

#endif
