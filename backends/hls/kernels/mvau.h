// Matrix-vector units: convolutions behind a window generator, 1x1 convolutions and linear layers.
//
//     out[r] = requantize(bias[r] + sum_c(weights[r][c] * in[c]))   for each of PIXELS vectors
//
// PE outputs and SIMD inputs are computed in one cycle. The zero point is folded into the bias. Arrays belong to the
// layer that calls: its file says how they are partitioned and what they are made from.
#ifndef TERSOR_MVAU_H
#define TERSOR_MVAU_H

#include "requantize.h"

// The weights that PE outputs have for the same SIMD inputs: one step of a matrix.
template <int BITS, int PE, int SIMD> struct weight_tile {
    ap_int<BITS> weight[PE][SIMD];
};

// A step of weights on the chip, where each is an element, and outside, where one word holds the step.
template <class S, int TILES>
weight_tile<S::WEIGHT, S::PE, S::SIMD> tile_at(const ap_int<S::WEIGHT> (&weights)[TILES][S::PE][S::SIMD], int index) {
#pragma HLS INLINE
    weight_tile<S::WEIGHT, S::PE, S::SIMD> tile;
    for (int p = 0; p < S::PE; p++) {
#pragma HLS UNROLL
        for (int i = 0; i < S::SIMD; i++) {
#pragma HLS UNROLL
            tile.weight[p][i] = weights[index][p][i];
        }
    }
    return tile;
}

template <class S>
weight_tile<S::WEIGHT, S::PE, S::SIMD> tile_at(const weight_tile<S::WEIGHT, S::PE, S::SIMD> *weights, int index) {
#pragma HLS INLINE
    return weights[index];
}

// The sum of SIMD products. It does not start from an accumulator, so that only one addition waits for the cycle before.
template <class S> ap_int<S::ACC> dot(const beat<S::IN, S::SIMD> &x, const ap_int<S::WEIGHT> (&weight)[S::SIMD]) {
#pragma HLS INLINE
    ap_int<S::ACC> sum = 0;
    for (int i = 0; i < S::SIMD; i++) {
#pragma HLS UNROLL
        sum += product<S::IN, S::WEIGHT, S::FABRIC>(x.lane[i], weight[i]);
    }
    return sum;
}

// PIXELS * (ROWS / PE) * (COLUMNS / SIMD) cycles a frame. A vector is kept while its outputs are computed; weights lie
// in the order in which they are used.
template <class S, class Weights, class Bias, class Constants, class Vector>
void mvau(hls::stream<beat<S::IN, S::SIMD>> &in, hls::stream<beat<S::OUT, S::PE>> &out, const Weights &weights,
          const Bias &bias, const Constants &constants, Vector &vector) {
#pragma HLS INLINE
    const int ROW_FOLDS = S::ROWS / S::PE, COLUMN_FOLDS = S::COLUMNS / S::SIMD;
    ap_int<S::ACC> acc[S::PE];
#pragma HLS ARRAY_PARTITION variable = acc complete
    for (int pixel = 0; pixel < S::PIXELS; pixel++) {
        for (int row = 0; row < ROW_FOLDS; row++) {
            for (int column = 0; column < COLUMN_FOLDS; column++) {
#pragma HLS PIPELINE II = 1
                const beat<S::IN, S::SIMD> x = row == 0 ? in.read() : vector[column];
                if (row == 0)
                    vector[column] = x;
                const weight_tile<S::WEIGHT, S::PE, S::SIMD> tile = tile_at<S>(weights, row * COLUMN_FOLDS + column);
                beat<S::OUT, S::PE> y;
                for (int p = 0; p < S::PE; p++) {
#pragma HLS UNROLL
                    const ap_int<S::ACC> start = column == 0 ? static_cast<ap_int<S::ACC>>(bias[row][p]) : acc[p];
                    acc[p] = start + dot<S>(x, tile.weight[p]);
                    if (column == COLUMN_FOLDS - 1)
                        y.lane[p] = S::requantize::apply(acc[p], constants[row][p]);
                }
                if (column == COLUMN_FOLDS - 1)
                    out.write(y);
            }
        }
    }
}

// Every weight at once: PIXELS cycles a frame. Weights are constants of the circuit, and what is zero is not there.
template <class S, class Weights, class Bias, class Constants>
void mvau_unrolled(hls::stream<beat<S::IN, S::COLUMNS>> &in, hls::stream<beat<S::OUT, S::ROWS>> &out,
                   const Weights &weights, const Bias &bias, const Constants &constants) {
#pragma HLS INLINE
    for (int pixel = 0; pixel < S::PIXELS; pixel++) {
#pragma HLS PIPELINE II = 1
        const beat<S::IN, S::COLUMNS> x = in.read();
        beat<S::OUT, S::ROWS> y;
        for (int row = 0; row < S::ROWS; row++) {
#pragma HLS UNROLL
            ap_int<S::ACC> acc = bias[0][row];
            for (int column = 0; column < S::COLUMNS; column++) {
#pragma HLS UNROLL
                const ap_int<S::WEIGHT> weight = weights[0][row][column];
                if (weight != 0)
                    acc += S::FABRIC ? product<S::IN, S::WEIGHT, 1>(x.lane[column], weight)
                                     : ap_int<S::IN + S::WEIGHT>(x.lane[column] * weight);
            }
            y.lane[row] = S::requantize::apply(acc, constants[0][row]);
        }
        out.write(y);
    }
}

// Which SIMD inputs each of PE outputs takes in one step, and whether their sums are finished then.
template <int PE, int COLUMN> struct sparse_step {
    ap_uint<COLUMN> column[PE];
    ap_uint<1> last;
};

// Where blocks of SIMD weights are zero: a static schedule of STEPS steps a vector names the others. While one vector is
// computed with, the next is read: with F = COLUMNS / SIMD, F + (PIXELS - 1) * max(STEPS, F) + STEPS cycles a frame.
// vectors[p][half]: each output reads at a place of its own, so each has a copy.
template <class S, class Weights, class Schedule, class Bias, class Constants, class Vectors>
void mvau_sparse(hls::stream<beat<S::IN, S::SIMD>> &in, hls::stream<beat<S::OUT, S::PE>> &out, const Weights &weights,
                 const Schedule &schedule, const Bias &bias, const Constants &constants, Vectors &vectors) {
#pragma HLS INLINE
    const int COLUMN_FOLDS = S::COLUMNS / S::SIMD, TURNS = larger(S::STEPS, COLUMN_FOLDS);
    ap_int<S::ACC> acc[S::PE];
#pragma HLS ARRAY_PARTITION variable = acc complete
    for (int pixel = 0; pixel <= S::PIXELS; pixel++) {
        int row = 0;
        bool first = true;
        const int turns = pixel == 0 ? COLUMN_FOLDS : pixel == S::PIXELS ? S::STEPS : TURNS;
        for (int turn = 0; turn < turns; turn++) {
#pragma HLS PIPELINE II = 1
#pragma HLS DEPENDENCE variable = vectors type = inter dependent = false
            if (pixel < S::PIXELS && turn < COLUMN_FOLDS) {
                const beat<S::IN, S::SIMD> x = in.read();
                for (int p = 0; p < S::PE; p++) {
#pragma HLS UNROLL
                    vectors[p][pixel & 1][turn] = x;
                }
            }
            if (pixel > 0 && turn < S::STEPS) {
                const sparse_step<S::PE, S::COLUMN> step = schedule[turn];
                const weight_tile<S::WEIGHT, S::PE, S::SIMD> tile = tile_at<S>(weights, turn);
                beat<S::OUT, S::PE> y;
                for (int p = 0; p < S::PE; p++) {
#pragma HLS UNROLL
                    const beat<S::IN, S::SIMD> x = vectors[p][(pixel & 1) ^ 1][static_cast<int>(step.column[p])];
                    const ap_int<S::ACC> start = first ? static_cast<ap_int<S::ACC>>(bias[row][p]) : acc[p];
                    acc[p] = start + dot<S>(x, tile.weight[p]);
                    if (step.last == 1)
                        y.lane[p] = S::requantize::apply(acc[p], constants[row][p]);
                }
                first = step.last == 1;
                if (step.last == 1) {
                    out.write(y);
                    row++;
                }
            }
        }
    }
}

#endif
