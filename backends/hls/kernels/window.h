// Window generation: from an image, pixel after pixel, to the pixels under each position of a kernel. What lies beyond
// the edge is PAD, the value that stands for 0. LANES channels travel at once.
#ifndef TERSOR_WINDOW_H
#define TERSOR_WINDOW_H

#include "beat.h"

// Lines that must be there before the windows of an output row are complete, never more than the image has.
template <class S> int lines_for(int out_row) {
#pragma HLS INLINE
    const int last = out_row * S::STRIDE_Y - S::PAD_TOP + (S::KERNEL_Y - 1) * S::DILATION_Y + 1;
    return last < 0 ? 0 : last > S::ROWS ? S::ROWS : last;
}

template <int BITS, int LANES> beat<BITS, LANES> filled(int with) {
#pragma HLS INLINE
    beat<BITS, LANES> value;
    for (int lane = 0; lane < LANES; lane++) {
#pragma HLS UNROLL
        value.lane[lane] = with;
    }
    return value;
}

// One tap a turn. The ring keeps the LINES lines that the windows of one output row need, and those that the next needs
// besides, which are read while this row's windows are sent.
//
// Windows leave tap by tap with all channels of a tap together, or, for units that work on each channel by itself, LANES
// channels at a time with all their taps (BY_CHANNEL).
template <class S, class Ring>
void window(hls::stream<beat<S::BITS, S::LANES>> &in, hls::stream<beat<S::BITS, S::LANES>> &out, Ring &ring) {
#pragma HLS INLINE
    const int FOLDS = S::CHANNELS / S::LANES, LINE = S::WIDTH * FOLDS;
    const int SENT = S::OUT_WIDTH * S::KERNEL_Y * S::KERNEL_X * FOLDS;
    const int NEXT_ROW = S::STRIDE_Y % S::LINES, NEXT_TAP = S::DILATION_Y % S::LINES;
    int have = 0;                                                  // lines read
    int to = 0;                                                    // the slot of the line that is read
    int top = (S::LINES - S::PAD_TOP % S::LINES) % S::LINES;       // the slot of the first tap's line
    for (int out_row = -1; out_row < S::OUT_ROWS; out_row++) {     // -1: only fill
        const int next = out_row + 1 < S::OUT_ROWS ? out_row + 1 : S::OUT_ROWS - 1;
        int wanted = lines_for<S>(next);
        if (out_row == S::OUT_ROWS - 1)
            wanted = S::ROWS; // lines that no window reaches still have to leave the stream
        const int reads = (wanted - have) * LINE, sends = out_row < 0 ? 0 : SENT;
        const int turns = larger(reads, sends);
        int place = 0;                                 // in the line that is read
        int x = 0, i = 0, j = 0, fold = 0, from = top; // of the value sent
        for (int turn = 0; turn < turns; turn++) {
#pragma HLS PIPELINE II = 1
#pragma HLS DEPENDENCE variable = ring type = inter dependent = false
            if (turn < sends) {
                const int from_y = out_row * S::STRIDE_Y - S::PAD_TOP + i * S::DILATION_Y;
                const int from_x = x * S::STRIDE_X - S::PAD_LEFT + j * S::DILATION_X;
                if (from_y < 0 || from_y >= S::ROWS || from_x < 0 || from_x >= S::WIDTH)
                    out.write(filled<S::BITS, S::LANES>(S::PAD));
                else
                    out.write(ring[from][from_x * FOLDS + fold]);
                const bool last_fold = fold == FOLDS - 1, last_j = j == S::KERNEL_X - 1, last_i = i == S::KERNEL_Y - 1;
                const bool ends_j = S::BY_CHANNEL ? last_j : last_j && last_fold, ends_i = ends_j && last_i;
                if (S::BY_CHANNEL) {
                    j = last_j ? 0 : j + 1;
                    fold = !ends_i ? fold : last_fold ? 0 : fold + 1;
                } else {
                    fold = last_fold ? 0 : fold + 1;
                    j = !last_fold ? j : last_j ? 0 : j + 1;
                }
                i = !ends_j ? i : last_i ? 0 : i + 1;
                from = !ends_j ? from : last_i ? top : around<S::LINES>(from + NEXT_TAP);
                x += last_fold && last_j && last_i ? 1 : 0;
            }
            if (turn < reads) {
                ring[to][place] = in.read();
                const bool end = place == LINE - 1;
                place = end ? 0 : place + 1;
                to = end ? around<S::LINES>(to + 1) : to;
            }
        }
        top = out_row < 0 ? top : around<S::LINES>(top + NEXT_ROW);
        have = wanted;
    }
}

// All taps in one turn, for units that take them together: KERNEL_Y * KERNEL_X * LANES values a beat, tap by tap. The
// kernel moves over the padded image, a pixel a turn: PADDED_ROWS * PADDED_WIDTH * (CHANNELS / LANES) cycles a frame.
// lines: the rows above the one that is read. pixels: what is under the kernel, taps and the pixels between them.
template <class S, class Lines, class Pixels>
void window_parallel(hls::stream<beat<S::BITS, S::LANES>> &in,
                     hls::stream<beat<S::BITS, S::KERNEL_Y * S::KERNEL_X * S::LANES>> &out, Lines &lines,
                     Pixels &pixels) {
#pragma HLS INLINE
    const int FOLDS = S::CHANNELS / S::LANES;
    const int SPAN_Y = (S::KERNEL_Y - 1) * S::DILATION_Y + 1, SPAN_X = (S::KERNEL_X - 1) * S::DILATION_X + 1;
    int next_y = SPAN_Y - 1, next_x = SPAN_X - 1; // where the next window ends
    int sent_y = 0, sent_x = 0;                   // rows of windows sent, windows of this row sent
    for (int y = 0; y < S::PADDED_ROWS; y++) {
        for (int x = 0; x < S::PADDED_WIDTH; x++) {
            for (int fold = 0; fold < FOLDS; fold++) {
#pragma HLS PIPELINE II = 1
                const bool is_inside = y >= S::PAD_TOP && y < S::PAD_TOP + S::ROWS && x >= S::PAD_LEFT &&
                                       x < S::PAD_LEFT + S::WIDTH;
                beat<S::BITS, S::LANES> below = filled<S::BITS, S::LANES>(S::PAD);
                if (is_inside)
                    below = in.read();
                for (int i = SPAN_Y - 1; i >= 0; i--) {
#pragma HLS UNROLL
                    const beat<S::BITS, S::LANES> value = below;
                    if (i > 0) {
                        below = lines[i - 1][x * FOLDS + fold];
                        lines[i - 1][x * FOLDS + fold] = value;
                    }
                    for (int j = 0; j < SPAN_X - 1; j++) {
#pragma HLS UNROLL
                        pixels[i][j][fold] = pixels[i][j + 1][fold];
                    }
                    pixels[i][SPAN_X - 1][fold] = value;
                }
                const bool ends_row = y == next_y && sent_y < S::OUT_ROWS, ends_window = x == next_x && sent_x < S::OUT_WIDTH;
                if (ends_row && ends_window) {
                    beat<S::BITS, S::KERNEL_Y * S::KERNEL_X * S::LANES> value;
                    for (int i = 0; i < S::KERNEL_Y; i++) {
#pragma HLS UNROLL
                        for (int j = 0; j < S::KERNEL_X; j++) {
#pragma HLS UNROLL
                            for (int lane = 0; lane < S::LANES; lane++) {
#pragma HLS UNROLL
                                value.lane[(i * S::KERNEL_X + j) * S::LANES + lane] =
                                    pixels[i * S::DILATION_Y][j * S::DILATION_X][fold].lane[lane];
                            }
                        }
                    }
                    out.write(value);
                }
                if (fold == FOLDS - 1) {
                    const bool last_x = x == S::PADDED_WIDTH - 1;
                    sent_x = last_x ? 0 : sent_x + (ends_window ? 1 : 0);
                    next_x = last_x ? SPAN_X - 1 : next_x + (ends_window ? S::STRIDE_X : 0);
                    sent_y += last_x && ends_row ? 1 : 0;
                    next_y += last_x && ends_row ? S::STRIDE_Y : 0;
                }
            }
        }
    }
}

#endif
