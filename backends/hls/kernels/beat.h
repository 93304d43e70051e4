// What a stream carries in one cycle: LANES neighbouring values of BITS bits, all unsigned. A value q of the program
// travels as q - low, where low is the least value that the compiler proved the stream to have.
#ifndef TERSOR_BEAT_H
#define TERSOR_BEAT_H

#include <ap_int.h>
#include <hls_stream.h>
#ifndef __SYNTHESIS__
#include <cstdio>
#endif

template <int BITS, int LANES> struct beat {
    ap_uint<BITS> lane[LANES];
#ifndef __SYNTHESIS__
    void trace(std::FILE *file) const {
        for (int i = 0; i < LANES; i++) {
            const long long value = static_cast<long long>(lane[i]);
            std::fwrite(&value, sizeof value, 1, file);
        }
    }
#endif
};

// A product of an unsigned and a signed number, from look-up tables or from a multiplier of the device.
template <int A, int B, int FABRIC> ap_int<A + B> product(ap_uint<A> a, ap_int<B> b) {
#pragma HLS INLINE
    if (FABRIC) {
        const ap_int<A + B> result = a * b;
#pragma HLS BIND_OP variable = result op = mul impl = fabric
        return result;
    }
    const ap_int<A + B> result = a * b;
#pragma HLS BIND_OP variable = result op = mul impl = dsp
    return result;
}

// A place in a ring of SIZE, moved by SIZE at most.
template <int SIZE> int around(int place) {
#pragma HLS INLINE
    return place < 0 ? place + SIZE : place >= SIZE ? place - SIZE : place;
}

constexpr int larger(int a, int b) { return a > b ? a : b; }

#endif
