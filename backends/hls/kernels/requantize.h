// From an accumulator to the value of a stream. Each struct is one form; `apply` is what a matrix-vector unit, a
// depthwise unit or a pool does with a finished sum. All of them give
//
//     q = clamp(steps(acc) + ZERO, LEAST, MOST),  sent as q - BASE
//
// and differ in how steps(acc) is computed. The compiler has proven the form of each channel equal to the definition,
// a float32 product rounded half to even, over every accumulator that can occur.
//
// ACC: bits of the accumulator. TOTAL: bits of the product with its offset. MULTIPLIER: bits of the multipliers.
// SCALE_FABRIC: whether they are look-up tables. OUT: bits of the stream.
#ifndef TERSOR_REQUANTIZE_H
#define TERSOR_REQUANTIZE_H

#include "beat.h"

template <int MULTIPLIER, int OFFSET> struct multiply_constants {
    ap_uint<MULTIPLIER> multiplier;
    ap_int<OFFSET> offset;
    ap_uint<6> shift;
    ap_uint<1> even;     // a tie goes to the even neighbour; the offset is half a step then
    ap_uint<1> is_float; // read by requantize_mixed
};

template <int TOTAL, int ZERO, int LEAST, int MOST, int BASE, int OUT> ap_uint<OUT> onto_grid(ap_int<TOTAL> steps) {
#pragma HLS INLINE
    const ap_int<TOTAL + 1> moved = steps + ZERO;
    if (moved < LEAST)
        return LEAST - BASE;
    if (moved > MOST)
        return MOST - BASE;
    return moved - BASE;
}

template <int ACC, int TOTAL, int FABRIC, int MULTIPLIER, class Constants>
ap_int<TOTAL> multiply_shift(ap_int<ACC> acc, const Constants &c) {
#pragma HLS INLINE
    const ap_int<TOTAL> total = product<MULTIPLIER, ACC, FABRIC>(c.multiplier, acc) + c.offset;
    ap_int<TOTAL> steps = total >> c.shift;
    const ap_int<TOTAL> back = steps << c.shift;
    const bool is_odd = (steps & 1) == 1;
    if (c.even == 1 && back == total && is_odd)
        steps -= 1;
    return steps;
}

// Divide by a power of two, rounding half to even.
template <int WIDTH> ap_uint<WIDTH> round_half_even(ap_uint<WIDTH> value, int shift) {
#pragma HLS INLINE
    if (shift == 0)
        return value;
    const ap_uint<WIDTH> one = 1;
    const ap_uint<1> odd = (value >> shift) & 1;
    const ap_uint<WIDTH> below_half = (one << (shift - 1)) - 1;
    const ap_uint<WIDTH> rounded = value + below_half + odd;
    return rounded >> shift;
}

// The nearest number with a mantissa of 24 bits, ties to even: what float32 makes of an integer.
template <int WIDTH> ap_uint<WIDTH> round_to_mantissa(ap_uint<WIDTH> value) {
#pragma HLS INLINE
    int drop = 0;
    for (int bit = 24; bit < WIDTH; bit++) {
#pragma HLS UNROLL
        if (((value >> bit) & 1) == 1)
            drop = bit - 23;
    }
    const ap_uint<WIDTH> rounded = round_half_even<WIDTH>(value, drop);
    return rounded << drop;
}

// The float32 product in integers: both roundings of the definition, on magnitudes.
template <int ACC, int TOTAL, class Constants> ap_int<TOTAL> float_product(ap_int<ACC> acc, const Constants &c) {
#pragma HLS INLINE
    const bool negative = acc < 0;
    const ap_uint<TOTAL> magnitude = negative ? static_cast<ap_int<ACC + 1>>(-acc) : static_cast<ap_int<ACC + 1>>(acc);
    const ap_uint<TOTAL> operand = round_to_mantissa<TOTAL>(magnitude);
    const ap_uint<TOTAL> exact = operand * c.multiplier;
    const ap_uint<TOTAL> product = round_to_mantissa<TOTAL>(exact);
    const ap_uint<TOTAL> steps = round_half_even<TOTAL>(product, c.shift);
    const ap_int<TOTAL> positive = steps;
    return negative ? static_cast<ap_int<TOTAL>>(-positive) : positive;
}

template <class S> struct requantize_multiply {
    template <class Constants> static ap_uint<S::OUT> apply(ap_int<S::ACC> acc, const Constants &c) {
#pragma HLS INLINE
        return onto_grid<S::TOTAL, S::ZERO, S::LEAST, S::MOST, S::BASE, S::OUT>(
            multiply_shift<S::ACC, S::TOTAL, S::SCALE_FABRIC, S::MULTIPLIER>(acc, c));
    }
};

template <class S> struct requantize_float {
    template <class Constants> static ap_uint<S::OUT> apply(ap_int<S::ACC> acc, const Constants &c) {
#pragma HLS INLINE
        return onto_grid<S::TOTAL, S::ZERO, S::LEAST, S::MOST, S::BASE, S::OUT>(
            float_product<S::ACC, S::TOTAL>(acc, c));
    }
};

// Channels of both kinds in one layer.
template <class S> struct requantize_mixed {
    template <class Constants> static ap_uint<S::OUT> apply(ap_int<S::ACC> acc, const Constants &c) {
#pragma HLS INLINE
        const ap_int<S::TOTAL> steps =
            c.is_float == 1 ? float_product<S::ACC, S::TOTAL>(acc, c) : multiply_shift<S::ACC, S::TOTAL, S::SCALE_FABRIC, S::MULTIPLIER>(acc, c);
        return onto_grid<S::TOTAL, S::ZERO, S::LEAST, S::MOST, S::BASE, S::OUT>(steps);
    }
};

// As many comparators as the grid has steps. A threshold beyond the range is one more than the range holds.
template <int ACC, int STEPS> struct threshold_constants {
    ap_int<ACC> threshold[STEPS];
};

template <class S> struct requantize_thresholds {
    template <class Constants> static ap_uint<S::OUT> apply(ap_int<S::ACC> acc, const Constants &c) {
#pragma HLS INLINE
        ap_uint<S::OUT> reached = S::LEAST - S::BASE;
        for (int i = 0; i < S::STEPS; i++) {
#pragma HLS UNROLL
            reached += acc >= c.threshold[i] ? 1 : 0;
        }
        return reached;
    }
};

// The accumulator itself, for an output that the host dequantizes.
struct no_constants {};

template <class S> struct keep_accumulator {
    template <class Constants> static ap_uint<S::OUT> apply(ap_int<S::ACC> acc, const Constants &) {
#pragma HLS INLINE
        return acc - S::BASE;
    }
};

#endif
