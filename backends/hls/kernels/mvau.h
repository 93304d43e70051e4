// Matrix-vector units: convolutions behind a window generator, 1x1 convolutions and linear layers.
//
//     out[r] = requantize(bias[r] + sum_c(weights[r][c] * in[c]))   for each of PIXELS vectors
//
// PE outputs and SIMD inputs are computed in one cycle. The zero point is folded into the bias.
#ifndef TERSOR_MVAU_H
#define TERSOR_MVAU_H

#include "requantize.h"

// FABRIC: whether products are made from look-up tables, or from multipliers.
template <class S>
ap_int<S::ACC> dot(ap_int<S::ACC> sum, const beat<S::IN, S::SIMD> &x, const ap_int<S::WEIGHT> (&weight)[S::SIMD]) {
#pragma HLS INLINE
    for (int i = 0; i < S::SIMD; i++) {
#pragma HLS UNROLL
        if (S::FABRIC) {
            const ap_int<S::IN + S::WEIGHT> product = x.lane[i] * weight[i];
#pragma HLS BIND_OP variable = product op = mul impl = fabric
            sum += product;
        } else {
            const ap_int<S::IN + S::WEIGHT> product = x.lane[i] * weight[i];
#pragma HLS BIND_OP variable = product op = mul impl = dsp
            sum += product;
        }
    }
    return sum;
}

// PIXELS * (ROWS / PE) * (COLUMNS / SIMD) cycles a frame. A vector is kept while its outputs are computed. The tiles
// lie in an array on the chip, or behind a pointer into memory, in the order in which they are used.
template <class S, class Tiles, class Bias, class Constants>
void mvau(hls::stream<beat<S::IN, S::SIMD>> &in, hls::stream<beat<S::OUT, S::PE>> &out, const Tiles &tiles,
          const Bias &bias, const Constants &constants) {
    const int ROW_FOLDS = S::ROWS / S::PE, COLUMN_FOLDS = S::COLUMNS / S::SIMD;
    beat<S::IN, S::SIMD> vector[COLUMN_FOLDS];
    ap_int<S::ACC> acc[S::PE];
#pragma HLS ARRAY_PARTITION variable = acc complete
    for (int pixel = 0; pixel < S::PIXELS; pixel++) {
        for (int row = 0; row < ROW_FOLDS; row++) {
            for (int column = 0; column < COLUMN_FOLDS; column++) {
#pragma HLS PIPELINE II = 1
                const beat<S::IN, S::SIMD> x = row == 0 ? in.read() : vector[column];
                if (row == 0)
                    vector[column] = x;
                const weight_tile<S::WEIGHT, S::PE, S::SIMD> tile = tiles[row * COLUMN_FOLDS + column];
                beat<S::OUT, S::PE> y;
                for (int p = 0; p < S::PE; p++) {
#pragma HLS UNROLL
                    const ap_int<S::ACC> start = column == 0 ? static_cast<ap_int<S::ACC>>(bias[row][p]) : acc[p];
                    acc[p] = dot<S>(start, x, tile.weight[p]);
                    if (column == COLUMN_FOLDS - 1)
                        y.lane[p] = S::requantize::apply(acc[p], constants[row][p]);
                }
                if (column == COLUMN_FOLDS - 1)
                    out.write(y);
            }
        }
    }
}

// Which SIMD inputs each of PE outputs takes in one step, and whether their sums are finished then.
template <int PE, int COLUMN> struct sparse_step {
    ap_uint<COLUMN> column[PE];
    ap_uint<1> last;
};

// The same where blocks of SIMD weights are zero: a static schedule of STEPS steps a vector names the others. While one
// vector is computed with, the next is read: with F = COLUMNS / SIMD, F + (PIXELS - 1) * max(STEPS, F) + STEPS cycles a
// frame.
template <class S, class Tiles, class Schedule, class Bias, class Constants>
void mvau_sparse(hls::stream<beat<S::IN, S::SIMD>> &in, hls::stream<beat<S::OUT, S::PE>> &out, const Tiles &tiles,
                 const Schedule &schedule, const Bias &bias, const Constants &constants) {
    const int COLUMN_FOLDS = S::COLUMNS / S::SIMD, TURNS = larger(S::STEPS, COLUMN_FOLDS);
    beat<S::IN, S::SIMD> vectors[S::PE][2][COLUMN_FOLDS]; // a copy for each output: each reads at a place of its own
#pragma HLS ARRAY_PARTITION variable = vectors dim = 1 complete
    ap_int<S::ACC> acc[S::PE];
#pragma HLS ARRAY_PARTITION variable = acc complete
    for (int pixel = 0; pixel <= S::PIXELS; pixel++) {
        int row = 0;
        bool first = true;
        const int turns = pixel == 0 ? COLUMN_FOLDS : pixel == S::PIXELS ? S::STEPS : TURNS;
        for (int turn = 0; turn < turns; turn++) {
#pragma HLS PIPELINE II = 1
#pragma HLS DEPENDENCE variable = vectors inter false
            if (pixel < S::PIXELS && turn < COLUMN_FOLDS) {
                const beat<S::IN, S::SIMD> x = in.read();
                for (int p = 0; p < S::PE; p++) {
#pragma HLS UNROLL
                    vectors[p][pixel & 1][turn] = x;
                }
            }
            if (pixel > 0 && turn < S::STEPS) {
                const sparse_step<S::PE, S::COLUMN> step = schedule[turn];
                const weight_tile<S::WEIGHT, S::PE, S::SIMD> tile = tiles[turn];
                beat<S::OUT, S::PE> y;
                for (int p = 0; p < S::PE; p++) {
#pragma HLS UNROLL
                    const beat<S::IN, S::SIMD> x = vectors[p][(pixel & 1) ^ 1][static_cast<int>(step.column[p])];
                    const ap_int<S::ACC> start = first ? static_cast<ap_int<S::ACC>>(bias[row][p]) : acc[p];
                    acc[p] = dot<S>(start, x, tile.weight[p]);
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
