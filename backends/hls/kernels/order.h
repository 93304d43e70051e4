// Streams that carry part of what they are given, or all of it in another order.
#ifndef TERSOR_ORDER_H
#define TERSOR_ORDER_H

#include "beat.h"

// Some rows, columns and channels of an image. ROWS * WIDTH * FOLDS cycles a frame.
template <class S, class Rows, class Columns, class Folds>
void select(hls::stream<beat<S::BITS, S::LANES>> &in, hls::stream<beat<S::BITS, S::LANES>> &out, const Rows &rows,
            const Columns &columns, const Folds &folds) {
#pragma HLS INLINE
    for (int y = 0; y < S::ROWS; y++) {
        for (int x = 0; x < S::WIDTH; x++) {
            for (int fold = 0; fold < S::FOLDS; fold++) {
#pragma HLS PIPELINE II = 1
                const beat<S::BITS, S::LANES> value = in.read();
                if (rows[y] && columns[x] && folds[fold])
                    out.write(value);
            }
        }
    }
}

// One of the nested loops that an order consists of: how often, and by how much the place grows each time.
struct reorder_loop {
    int count, step;
};

// Beats in another order, each as often as wanted: transposes, flips, nearest-neighbour resizing, a vector for all
// pixels. A ring keeps the last RING beats. One is read every STEP turns; the first is sent after LEAD turns, then one
// every turn. The compiler has chosen the three so that none is sent before it came or after it was written over.
template <class S, class Loops, class Ring>
void reorder(hls::stream<beat<S::BITS, S::LANES>> &in, hls::stream<beat<S::BITS, S::LANES>> &out, const Loops &loops,
             Ring &ring) {
#pragma HLS INLINE
    int at[S::LOOPS];
#pragma HLS ARRAY_PARTITION variable = at complete
    for (int i = 0; i < S::LOOPS; i++) {
#pragma HLS UNROLL
        at[i] = 0;
    }
    int taken = 0, wait = 0, to = 0, from = S::START;
    for (int turn = 0; turn < S::TURNS; turn++) {
#pragma HLS PIPELINE II = 1
#pragma HLS DEPENDENCE variable = ring type = inter dependent = false
        if (turn >= S::LEAD && turn < S::LEAD + S::SENT) {
            out.write(ring[from]);
            int move = 0;
            bool carry = true;
            for (int i = 0; i < S::LOOPS; i++) {
#pragma HLS UNROLL
                const bool ends = at[i] == loops[i].count - 1;
                move += !carry ? 0 : ends ? -at[i] * loops[i].step : loops[i].step;
                at[i] = !carry ? at[i] : ends ? 0 : at[i] + 1;
                carry = carry && ends;
            }
            from = carry ? from : around<S::RING>(from + move);
        }
        if (wait == 0 && taken < S::TAKEN) {
            ring[to] = in.read();
            to = around<S::RING>(to + 1);
            taken++;
        }
        wait = wait == S::STEP - 1 ? 0 : wait + 1;
    }
}

// The same where nested loops do not give the order: a table of places in the ring.
template <class S, class Slots, class Ring>
void reorder_by_table(hls::stream<beat<S::BITS, S::LANES>> &in, hls::stream<beat<S::BITS, S::LANES>> &out,
                      const Slots &slots, Ring &ring) {
#pragma HLS INLINE
    int taken = 0, wait = 0, to = 0;
    for (int turn = 0; turn < S::TURNS; turn++) {
#pragma HLS PIPELINE II = 1
#pragma HLS DEPENDENCE variable = ring type = inter dependent = false
        if (turn >= S::LEAD && turn < S::LEAD + S::SENT)
            out.write(ring[static_cast<int>(slots[turn - S::LEAD])]);
        if (wait == 0 && taken < S::TAKEN) {
            ring[to] = in.read();
            to = around<S::RING>(to + 1);
            taken++;
        }
        wait = wait == S::STEP - 1 ? 0 : wait + 1;
    }
}

#endif
