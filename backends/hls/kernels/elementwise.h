// Sums, products and tables: COUNT beats a frame, one a cycle.
#ifndef TERSOR_ELEMENTWISE_H
#define TERSOR_ELEMENTWISE_H

#include "requantize.h"

// A pair of values for which the definition, in float32, gives another result than the integer sum.
struct pair_exception {
    ap_uint<8> a, b, result;
};

// (a * A + b * B + OFFSET) >> SHIFT, with ties to even where EVEN: two grids added onto a third.
template <class S> ap_uint<S::OUT> pair_sum(ap_uint<S::A> a, ap_uint<S::B> b) {
#pragma HLS INLINE
    const ap_int<S::TOTAL> total = a * S::MULTIPLIER_A + b * S::MULTIPLIER_B + S::OFFSET;
    ap_int<S::TOTAL> steps = total >> S::SHIFT;
    const ap_int<S::TOTAL> back = steps << S::SHIFT;
    const bool is_odd = (steps & 1) == 1;
    if (S::EVEN && back == total && is_odd)
        steps -= 1;
    return onto_grid<S::TOTAL, S::ZERO, S::LEAST, S::MOST, S::BASE, S::OUT>(steps);
}

template <class S, class Exceptions>
void add(hls::stream<beat<S::A, S::PE>> &left, hls::stream<beat<S::B, S::PE>> &right,
         hls::stream<beat<S::OUT, S::PE>> &out, const Exceptions &exceptions) {
#pragma HLS INLINE
    for (int i = 0; i < S::COUNT; i++) {
#pragma HLS PIPELINE II = 1
        const beat<S::A, S::PE> a = left.read();
        const beat<S::B, S::PE> b = right.read();
        beat<S::OUT, S::PE> y;
        for (int p = 0; p < S::PE; p++) {
#pragma HLS UNROLL
            y.lane[p] = pair_sum<S>(a.lane[p], b.lane[p]);
            for (int e = 1; e < S::EXCEPTIONS; e++) { // the first only keeps the array from being empty
#pragma HLS UNROLL
                if (a.lane[p] == exceptions[e].a && b.lane[p] == exceptions[e].b)
                    y.lane[p] = exceptions[e].result;
            }
        }
        out.write(y);
    }
}

// Every result of an operator of two values, in one memory.
template <class S, class Table>
void pair_table(hls::stream<beat<S::A, S::PE>> &left, hls::stream<beat<S::B, S::PE>> &right,
                hls::stream<beat<S::OUT, S::PE>> &out, const Table &table) {
#pragma HLS INLINE
    for (int i = 0; i < S::COUNT; i++) {
#pragma HLS PIPELINE II = 1
        const beat<S::A, S::PE> a = left.read();
        const beat<S::B, S::PE> b = right.read();
        beat<S::OUT, S::PE> y;
        for (int p = 0; p < S::PE; p++) {
#pragma HLS UNROLL
            y.lane[p] = table[static_cast<int>(a.lane[p])][static_cast<int>(b.lane[p])];
        }
        out.write(y);
    }
}

// (a + FROM_A) * (b + FROM_B), requantized. FROM turns what a stream carries into q - zero_point, of CENTRED bits.
template <class S, class Constants>
void multiply(hls::stream<beat<S::A, S::PE>> &left, hls::stream<beat<S::B, S::PE>> &right,
              hls::stream<beat<S::OUT, S::PE>> &out, const Constants &constants) {
#pragma HLS INLINE
    for (int i = 0; i < S::COUNT; i++) {
#pragma HLS PIPELINE II = 1
        const beat<S::A, S::PE> a = left.read();
        const beat<S::B, S::PE> b = right.read();
        beat<S::OUT, S::PE> y;
        for (int p = 0; p < S::PE; p++) {
#pragma HLS UNROLL
            const ap_int<S::CENTRED> left_value = a.lane[p] + S::FROM_A, right_value = b.lane[p] + S::FROM_B;
            const ap_int<S::ACC> both = left_value * right_value;
            y.lane[p] = S::requantize::apply(both, constants);
        }
        out.write(y);
    }
}

// Each value through a table: activation functions.
template <class S, class Table>
void lookup(hls::stream<beat<S::IN, S::PE>> &in, hls::stream<beat<S::OUT, S::PE>> &out, const Table &table) {
#pragma HLS INLINE
    for (int i = 0; i < S::COUNT; i++) {
#pragma HLS PIPELINE II = 1
        const beat<S::IN, S::PE> x = in.read();
        beat<S::OUT, S::PE> y;
        for (int p = 0; p < S::PE; p++) {
#pragma HLS UNROLL
            y.lane[p] = table[static_cast<int>(x.lane[p])];
        }
        out.write(y);
    }
}

#endif
