// Window generation: from an image, pixel after pixel, to the pixels under each position of a kernel.
//
// A ring of lines holds what the windows of one output row need, and the lines that the next row needs besides are read
// while this one's windows are sent. What lies beyond the edge is PAD, the value that stands for 0.
//
// Windows leave tap by tap with all channels of a tap together (dense), or, for units that work on each channel by
// itself, LANES channels at a time with all their taps (by_channel).
#ifndef TERSOR_WINDOW_H
#define TERSOR_WINDOW_H

#include "beat.h"

// Lines that must be there before the windows of an output row are complete, never more than the image has.
template <class S> int lines_for(int out_row) {
#pragma HLS INLINE
    const int last = out_row * S::STRIDE_Y - S::PAD_TOP + (S::KERNEL_Y - 1) * S::DILATION_Y + 1;
    return last < 0 ? 0 : last > S::ROWS ? S::ROWS : last;
}

template <class S> void window(hls::stream<beat<S::BITS, S::LANES>> &in, hls::stream<beat<S::BITS, S::LANES>> &out) {
    const int FOLDS = S::CHANNELS / S::LANES, LINE = S::WIDTH * FOLDS;
    const int SENT = S::OUT_WIDTH * S::KERNEL_Y * S::KERNEL_X * FOLDS;
    beat<S::BITS, S::LANES> ring[S::LINES][LINE];
    int have = 0;                                              // lines read
    int slot = 0;                                              // where the next line goes
    for (int out_row = -1; out_row < S::OUT_ROWS; out_row++) { // -1: only fill
        const int next = out_row + 1 < S::OUT_ROWS ? out_row + 1 : S::OUT_ROWS - 1;
        int wanted = lines_for<S>(next);
        if (out_row == S::OUT_ROWS - 1)
            wanted = S::ROWS; // lines that no window reaches still have to leave the stream
        const int reads = (wanted - have) * LINE, sends = out_row < 0 ? 0 : SENT;
        const int turns = larger(reads, sends);
        int line = 0, place = 0;           // of the value read
        int x = 0, i = 0, j = 0, fold = 0; // of the value sent
        for (int turn = 0; turn < turns; turn++) {
#pragma HLS PIPELINE II = 1
#pragma HLS DEPENDENCE variable = ring inter false
            if (turn < sends) {
                const int from_y = out_row * S::STRIDE_Y - S::PAD_TOP + i * S::DILATION_Y;
                const int from_x = x * S::STRIDE_X - S::PAD_LEFT + j * S::DILATION_X;
                beat<S::BITS, S::LANES> value;
                if (from_y < 0 || from_y >= S::ROWS || from_x < 0 || from_x >= S::WIDTH) {
                    for (int lane = 0; lane < S::LANES; lane++) {
#pragma HLS UNROLL
                        value.lane[lane] = S::PAD;
                    }
                } else {
                    value = ring[from_y % S::LINES][from_x * FOLDS + fold];
                }
                out.write(value);
                const bool last_fold = fold == FOLDS - 1, last_j = j == S::KERNEL_X - 1, last_i = i == S::KERNEL_Y - 1;
                if (S::BY_CHANNEL) {
                    j = last_j ? 0 : j + 1;
                    i = !last_j ? i : last_i ? 0 : i + 1;
                    fold = !(last_j && last_i) ? fold : last_fold ? 0 : fold + 1;
                } else {
                    fold = last_fold ? 0 : fold + 1;
                    j = !last_fold ? j : last_j ? 0 : j + 1;
                    i = !(last_fold && last_j) ? i : last_i ? 0 : i + 1;
                }
                x += last_fold && last_j && last_i ? 1 : 0;
            }
            if (turn < reads) {
                ring[(slot + line) % S::LINES][place] = in.read();
                const bool end = place == LINE - 1;
                place = end ? 0 : place + 1;
                line += end ? 1 : 0;
            }
        }
        slot = (slot + wanted - have) % S::LINES;
        have = wanted;
    }
}

// A kernel of one tap needs no lines: pixels between the positions are dropped.
template <class S> void subsample(hls::stream<beat<S::BITS, S::LANES>> &in, hls::stream<beat<S::BITS, S::LANES>> &out) {
    for (int y = 0; y < S::ROWS; y++) {
        for (int x = 0; x < S::WIDTH; x++) {
            for (int fold = 0; fold < S::FOLDS; fold++) {
#pragma HLS PIPELINE II = 1
                const beat<S::BITS, S::LANES> value = in.read();
                if (y % S::STRIDE_Y == 0 && x % S::STRIDE_X == 0 && y / S::STRIDE_Y < S::OUT_ROWS &&
                    x / S::STRIDE_X < S::OUT_WIDTH)
                    out.write(value);
            }
        }
    }
}

#endif
