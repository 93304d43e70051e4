// Integers of a given width for simulation with a plain C++ compiler: as much of the arbitrary-precision types of
// high-level synthesis as the kernels use, up to 63 bits. A value wraps around where it is stored; arithmetic between
// is done on int64_t, which holds every product and sum that the kernels form. In synthesis the vendor's header of the
// same name is found instead.
#ifndef TERSOR_SIMULATION_AP_INT_H
#define TERSOR_SIMULATION_AP_INT_H

#include <cstdint>

template <int BITS> class ap_uint;

template <int BITS> class ap_int {
    static_assert(0 < BITS && BITS < 64, "the simulation holds integers of 1 to 63 bits");
    std::int64_t value;

  public:
    constexpr ap_int() : value(0) {}
    constexpr ap_int(std::int64_t given)
        : value(static_cast<std::int64_t>(static_cast<std::uint64_t>(given) << (64 - BITS)) >> (64 - BITS)) {}
    template <int OTHER> constexpr ap_int(const ap_int<OTHER> &given) : ap_int(std::int64_t(given)) {}
    template <int OTHER> constexpr ap_int(const ap_uint<OTHER> &given) : ap_int(std::int64_t(given)) {}
    constexpr operator std::int64_t() const { return value; }
    ap_int &operator+=(std::int64_t more) { return *this = ap_int(value + more); }
    ap_int &operator-=(std::int64_t less) { return *this = ap_int(value - less); }
};

template <int BITS> class ap_uint {
    static_assert(0 < BITS && BITS < 64, "the simulation holds integers of 1 to 63 bits");
    std::int64_t value;

  public:
    constexpr ap_uint() : value(0) {}
    constexpr ap_uint(std::int64_t given)
        : value(static_cast<std::int64_t>(static_cast<std::uint64_t>(given) & ((std::uint64_t(1) << BITS) - 1))) {}
    template <int OTHER> constexpr ap_uint(const ap_uint<OTHER> &given) : ap_uint(std::int64_t(given)) {}
    template <int OTHER> constexpr ap_uint(const ap_int<OTHER> &given) : ap_uint(std::int64_t(given)) {}
    constexpr operator std::int64_t() const { return value; }
    ap_uint &operator+=(std::int64_t more) { return *this = ap_uint(value + more); }
};

#endif
