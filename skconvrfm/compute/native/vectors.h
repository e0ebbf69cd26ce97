// Vectors of the size of a register, and the operations that all stages share.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))
#define EXPORT extern "C" __attribute__((visibility("default")))  // Python calls it

// A product rounded before it is added: else the compiler fuses the two in some copies of a loop.
#if defined(__x86_64__)
#define ROUNDED(vector) asm("" : "+v"(vector))
#elif defined(__aarch64__)
#define ROUNDED(vector) asm("" : "+w"(vector))
#else
#define ROUNDED(vector) asm("" : "+m"(vector))
#endif

namespace {

// Vectors of the size of a register: GCC takes wider ones apart badly.
#if defined(__AVX512F__)
constexpr long vector_bytes = 64;
#else
constexpr long vector_bytes = 32;
#endif

template <class Real> struct Lanes {
    typedef Real Vec __attribute__((vector_size(vector_bytes)));
    static constexpr long count = vector_bytes / sizeof(Real);
};
template <class Real> using Vec = typename Lanes<Real>::Vec;

template <class Real> INLINE Vec<Real> load(const Real *from) {
    Vec<Real> v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

// The first `used` numbers of a vector, mostly all: a size that is known needs no call.
template <class Real> INLINE void store(Vec<Real> v, long used, Real *to) {
    if (used == Lanes<Real>::count)
        std::memcpy(to, &v, sizeof v);
    else
        std::memcpy(to, &v, used * sizeof(Real));
}

// x y + z, rounded once wherever it stands: left to itself, GCC fuses some and not others.
using Floats = Vec<float>;
using Doubles = Vec<double>;
#if defined(__AVX512F__)
INLINE Floats fused(Floats x, Floats y, Floats z) { return _mm512_fmadd_ps(x, y, z); }
INLINE Doubles fused(Doubles x, Doubles y, Doubles z) { return _mm512_fmadd_pd(x, y, z); }
#elif defined(__FMA__)
INLINE Floats fused(Floats x, Floats y, Floats z) { return _mm256_fmadd_ps(x, y, z); }
INLINE Doubles fused(Doubles x, Doubles y, Doubles z) { return _mm256_fmadd_pd(x, y, z); }
#elif defined(__FP_FAST_FMA) && defined(__FP_FAST_FMAF)
template <class V> INLINE V fused(V x, V y, V z) {
#pragma GCC unroll 16
    for (long l = 0; l < long(sizeof(V) / sizeof z[0]); l++)
        z[l] = std::fma(x[l], y[l], z[l]);
    return z;
}
#else
template <class V> INLINE V fused(V x, V y, V z) { return x * y + z; }
#endif

// sum += x v.
template <class Real> INLINE void add_product(Vec<Real> &sum, Real x, Vec<Real> v) {
    sum = fused(x - Vec<Real>{}, v, sum);
}

template <class Real> INLINE Vec<Real> square_root(Vec<Real> v) {
#pragma GCC unroll 16
    for (long l = 0; l < Lanes<Real>::count; l++)
        v[l] = std::sqrt(v[l]);
    return v;
}

template <class Real> INLINE Vec<Real> absolute(Vec<Real> v) {
#pragma GCC unroll 16
    for (long l = 0; l < Lanes<Real>::count; l++)
        v[l] = std::abs(v[l]);
    return v;
}

// call(size) for the count, from 1 to `most`, as a constant of the compiler.
template <int most, class Call> INLINE void with_constant(long count, Call call) {
    if constexpr (most > 1)
        if (count < most)
            return with_constant<most - 1>(count, call);
    call(std::integral_constant<int, most>{});
}

// call(first, size) for parts of at most `most` each, equal but for one.
template <int most, class Call> INLINE void in_parts(long count, Call call) {
    const long parts = (count + most - 1) / most;
    for (long p = 0; p < parts; p++) {
        long first = count * p / parts;
        with_constant<most>(count * (p + 1) / parts - first, [&](auto size) { call(first, size); });
    }
}

// Nonzero where memory ran out: no exception crosses into Python.
template <class Call> int guarded(Call call) try {
    call();
    return 0;
} catch (const std::bad_alloc &) {
    return 1;
}

}  // namespace
