// The products of the patch AGOP, of which kernels and gradients are made.
#include <vector>

#include "vectors.h"

namespace {

// `most_rows` of weights meet two vectors of patches: with one of these, they fill the registers.
#if defined(__AVX512F__)
constexpr int most_rows = 12;
#else
constexpr int most_rows = 6;
#endif

// Where patches lie in images: as runs of numbers, from the place of their location on.
struct PatchPlaces {
    long image_step, columns, row_step, column_step;  // locations of a row; steps between them
    long runs, run;                                   // of a patch
    const long *starts;                               // of its runs
    long entries() const { return runs * run; }
    long location(long u) const { return u / columns * row_step + u % columns * column_step; }
};
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

// Rows of `width` numbers ← patches of `count` images at a location.
template <class Real>
void copy_patches(const PatchPlaces &at, long count, const Real *images, long width, Real *to) {
    constexpr long unrolled = 8;
    with_constant<unrolled + 1>(at.run, [&](auto known) {
        const long run = known > unrolled ? at.run : long(known);
        for (long k = 0; k < count; k++, images += at.image_step, to += width)
            for (long r = 0; r < at.runs; r++)
                for (long e = 0; e < run; e++)
                    to[r * run + e] = images[at.starts[r] + e];
    });
}

// out[r] (+)= Σ_k w[r][k] v[k] for some rows of w, `stride` apart, and a few vectors of v; rows of
// v and out are `width` apart.
template <class Real, int rows, int vectors>
INLINE void add_products(long count, const Real *w, long stride, const Real *v, long width,
                         Real *out, bool add) {
    constexpr long lanes = Lanes<Real>::count;
    Vec<Real> sum[rows][vectors] = {};
    for (long k = 0; k < count; k++, w++, v += width) {
        Vec<Real> lane[vectors];
#pragma GCC unroll 2
        for (int i = 0; i < vectors; i++)
            lane[i] = load(v + i * lanes);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
            for (int i = 0; i < vectors; i++)
                add_product<Real>(sum[r][i], w[r * stride], lane[i]);
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++, out += width)
#pragma GCC unroll 2
        for (int i = 0; i < vectors; i++) {
            if (add)
                sum[r][i] += load(out + i * lanes);
            store<Real>(sum[r][i], lanes, out + i * lanes);
        }
}

// out[z][o] += Σ_k w[z][k] α[o][k] v[k] at locations [u0, u1). W is (locations, m, n), with steps
// from a location and an image to the next, α (outputs, n), and out (locations, m, outputs, d); v
// lie in n images.
template <class Real>
void output_product(const PatchPlaces &at, long u0, long u1, long m, long outputs, long n,
                    const Real *w, long w_location, long w_image, const Real *alpha,
                    const Real *images, Real *out) {
    constexpr long lanes = Lanes<Real>::count, strip = 256;
    const long d = at.entries(), vectors = (d + lanes - 1) / lanes, width = vectors * lanes;
    std::vector<Real> patches(strip * width), scaled(most_rows * strip);
    std::vector<Real> sums(m * outputs * width);
    for (long u = u0; u < u1; u++) {
        for (long k0 = 0; k0 < n; k0 += strip) {
            const long count = std::min(n - k0, strip);
            copy_patches(at, count, images + k0 * at.image_step + at.location(u), width,
                         patches.data());
            in_parts<most_rows>(m * outputs, [&](long first, auto rows) {
                for (long r = 0; r < rows; r++) {
                    const long z = (first + r) / outputs, o = (first + r) % outputs;
                    const Real *weights = w + u * w_location + z * w_image + k0;
                    const Real *coef = alpha + o * n + k0;
                    for (long k = 0; k < count; k++)
                        scaled[r * strip + k] = weights[k] * coef[k];
                }
                in_parts<2>(vectors, [&](long v, auto wide) {
                    add_products<Real, rows, wide>(count, scaled.data(), strip,
                                                   patches.data() + v * lanes, width,
                                                   sums.data() + first * width + v * lanes, k0);
                });
            });
        }
        for (long r = 0; r < m * outputs; r++)
            for (long e = 0; e < d; e++)
                out[(u * m * outputs + r) * d + e] += sums[r * width + e];
    }
}

}  // namespace

#define EXPORT_PRODUCTS(Real)                                                                \
    EXPORT void gram_product_##Real(long locations, long m, long d, long n, const Real *w,   \
                                    const Real *a, const Real *v, Real *out) {               \
        gram_product(locations, m, d, n, w, a, v, out);                                      \
    }                                                                                        \
    EXPORT int output_product_##Real(                                                        \
        const PatchPlaces *at, long u0, long u1, long m, long outputs, long n, const Real *w,    \
        long w_location, long w_image, const Real *alpha, const Real *images, Real *out) {   \
        return guarded([&] {                                                                 \
            output_product(*at, u0, u1, m, outputs, n, w, w_location, w_image, alpha,        \
                           images, out);                                                     \
        });                                                                                  \
    }
EXPORT_PRODUCTS(float)
EXPORT_PRODUCTS(double)
