// The products of the patch AGOP, of which kernels and gradients are made.
#include "vectors.h"

namespace {

// out[e] (+)= Σ_k v[e][k] gram[k] for `entries` rows of n, all in registers.
template <class Real, int entries>
INLINE void strip_product(const Vec<Real> *gram, long count, long n, const Real *v, Real *out,
                          bool add) {
    Vec<Real> sum[entries] = {};
    for (long k = 0; k < count; k++)
#pragma GCC unroll 8
        for (int e = 0; e < entries; e++)
            sum[e] += v[e * n + k] * gram[k];
    for (int e = 0; e < entries; e++) {
        if (add)
            sum[e] += load(out + e * n);
        std::memcpy(out + e * n, &sum[e], sizeof sum[e]);
    }
}

// [(Wᵀ W) ∘ A] V, location by location, without a matrix of centres × centres: a strip of
// its rows at a time, in the cache. W is (locations, m, n), A (n, n), V and the result
// (locations, d, n); n is a multiple of lanes.
template <class Real>
void gram_product(long locations, long m, long d, long n, const Real *w, const Real *a,
                  const Real *v, Real *out) {
    constexpr long lanes = Lanes<Real>::count, strip = 64, rows = 4;
    Vec<Real> gram[strip];
    for (long u = 0; u < locations; u++, w += m * n, v += d * n, out += d * n)
        for (long j = 0; j < n; j += lanes)
            for (long k0 = 0; k0 < n; k0 += strip) {
                long count = std::min(n - k0, strip);
                for (long k = k0; k < k0 + count; k += rows) {  // rows divides lanes
                    Vec<Real> sum[rows] = {};
                    for (long z = 0; z < m; z++) {
                        Vec<Real> lane = load(w + z * n + j);
#pragma GCC unroll 4
                        for (long r = 0; r < rows; r++)
                            sum[r] += w[z * n + k + r] * lane;
                    }
                    for (long r = 0; r < rows; r++)
                        gram[k + r - k0] = sum[r] * load(a + (k + r) * n + j);
                }
                in_parts<8>(d, [&](long e, auto entries) {
                    strip_product<Real, entries>(gram, count, n, v + e * n + k0,
                                                 out + e * n + j, k0);
                });
            }
}

// out[o] += Σ_k scaled[o][k] patches[k], for `outputs` rows of out, two vectors wide.
template <class Real, int outputs, long strip>
INLINE void add_outputs(const Real (*scaled)[strip], const Vec<Real> (*patches)[2], long count,
                        long width, Real *out) {
    Vec<Real> sum[outputs][2] = {};
    for (long k = 0; k < count; k++)
#pragma GCC unroll 8
        for (int o = 0; o < outputs; o++) {
            sum[o][0] += scaled[o][k] * patches[k][0];
            sum[o][1] += scaled[o][k] * patches[k][1];
        }
    for (int o = 0; o < outputs; o++) {
        Real *target = out + o * width;
        sum[o][0] += load(target);
        sum[o][1] += load(target + Lanes<Real>::count);
        std::memcpy(target, sum[o], sizeof sum[o]);
    }
}

// out[z][o] += Σ_k w[z][k] α[o][k] v[k], location by location. W is (locations, m, n), α
// (outputs, n), V (locations, d, n) and out (locations, m, outputs, width) with d padded to
// pairs of vectors; n is a multiple of lanes.
template <class Real>
void output_product(long locations, long m, long outputs, long d, long n, const Real *w,
                    const Real *alpha, const Real *v, long width, Real *out) {
    constexpr long lanes = Lanes<Real>::count, strip = 64, most_outputs = 8;
    alignas(vector_bytes) Vec<Real> patches[strip][2];
    alignas(vector_bytes) Real scaled[most_outputs][strip];
    for (long u = 0; u < locations; u++, w += m * n, v += d * n, out += m * outputs * width)
        for (long k0 = 0; k0 < n; k0 += strip) {
            long count = std::min(n - k0, strip);
            for (long e0 = 0; e0 < d; e0 += 2 * lanes) {
                long entries = std::min(d - e0, 2 * lanes);
                std::memset(patches, 0, sizeof patches);
                Real *flat = reinterpret_cast<Real *>(patches);
                for (long e = 0; e < entries; e++)
                    for (long k = 0; k < count; k++)
                        flat[k * 2 * lanes + e] = v[(e0 + e) * n + k0 + k];
                for (long z = 0; z < m; z++)
                    in_parts<most_outputs>(outputs, [&](long o0, auto here) {
                        for (long o = 0; o < here; o++)
                            for (long k = 0; k < count; k += lanes) {
                                Vec<Real> product = load(w + z * n + k0 + k) *
                                                    load(alpha + (o0 + o) * n + k0 + k);
                                std::memcpy(scaled[o] + k, &product, sizeof product);
                            }
                        add_outputs<Real, here>(scaled, patches, count, width,
                                                out + (z * outputs + o0) * width + e0);
                    });
            }
        }
}

}  // namespace

#define EXPORT_PRODUCTS(Real)                                                                \
    EXPORT void gram_product_##Real(long locations, long m, long d, long n, const Real *w,   \
                                    const Real *a, const Real *v, Real *out) {               \
        gram_product(locations, m, d, n, w, a, v, out);                                      \
    }                                                                                        \
    EXPORT void output_product_##Real(long locations, long m, long outputs, long d, long n,  \
                                      const Real *w, const Real *alpha, const Real *v,       \
                                      long width, Real *out) {                               \
        output_product(locations, m, outputs, d, n, w, alpha, v, width, out);                \
    }
EXPORT_PRODUCTS(float)
EXPORT_PRODUCTS(double)
