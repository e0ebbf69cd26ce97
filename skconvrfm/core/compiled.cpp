// The recursion of convolutional.py for one pair of blocks, fused; further down, products of
// the AGOP, and convolution, activation and pool of features.py.
//
// A vector of right images is carried side by side, one image to a lane; a left image then
// costs that many pairs at once, and all its maps stay in the cache of one core. The steps
// and names are those of convolutional.py.
//
// Maps are (rows, columns) of vectors. Left images are stored as patches (locations, d, n)
// and roots (locations, n), one array a layer; right images by vectors, as patches
// (n / lanes, locations, d, lanes) and roots (n / lanes, locations, lanes).
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#define INLINE inline __attribute__((always_inline))

// A product that is rounded before it is added: whether the compiler makes one operation of
// the two depends on what surrounds them, and would differ from copy to copy of a loop.
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
constexpr long together = 8;  // left images whose first covariances share a load
constexpr double pi = 3.14159265358979323846;

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

// sum += x v, rounded once wherever it stands: left to itself, GCC fuses some and not others.
template <class Real> INLINE void add_product(Vec<Real> &sum, Real x, Vec<Real> v) {
#if defined(__FP_FAST_FMA) && defined(__FP_FAST_FMAF)
#pragma GCC unroll 16
    for (long l = 0; l < Lanes<Real>::count; l++)
        sum[l] = std::fma(x, v[l], sum[l]);
#else
    sum += x * v;
#endif
}

template <class Real> INLINE Vec<Real> square_root(Vec<Real> v) {
#pragma GCC unroll 16
    for (long l = 0; l < Lanes<Real>::count; l++)
        v[l] = std::sqrt(v[l]);
    return v;
}

// arccos(x) / (π sqrt(1 - x)) on [0, 1] as a polynomial in 1 - x, by Remez exchange in 50
// digits; relative error 1.5e-8 (float) and 2.5e-18 (double).
template <class Real> struct ArcCosine;
template <> struct ArcCosine<float> {
    static constexpr int degree = 7;
    static constexpr float coefficients[] = {
        0.45015815152440351381f,  0.037513975889371790987f,   0.0084246799101868681217f,
        0.0026301423292364728427f, 0.00042828795217216419444f, 0.0011255480143380693656f,
        -0.00067978243361751848978f, 0.00039898953407886895756f};
};
template <> struct ArcCosine<double> {
    static constexpr int degree = 19;
    static constexpr double coefficients[] = {
        0.45015815807855303367,      0.037513179839880288374,    0.0084404654638599859191,
        0.0025120432986657556785,    0.00085479235102181880444,  0.00031472169062361659029,
        0.00012202546975615803289,   0.000049337549845467556595, 0.000019040320636756229827,
        0.000013964276685883178121,  -0.000013628262712075721932, 0.000044450145278061059356,
        -0.000081153887617665377596, 0.00012093827973478794951,  -0.00013578763924090980839,
        0.00011521738368080832267,   -0.000071097094503276098457, 0.000030348227573508243069,
        -8.0251643678362449281e-6,   1.0096726458324123112e-6};
};

struct Layer {
    long rows, columns;              // locations
    long patch_rows, patch_columns;  // of the windows on the map below
    long top, left;                  // zeros before the first row and column
    long locations() const { return rows * columns; }
};

struct Kernel {
    long depth, tangent, patch_dim;
    double channels, bias_square, parallel_gap;
    const Layer *layers;
    const Layer &last() const { return layers[depth - 1]; }
};

template <class Real> struct Block {
    long n;               // images, padded to whole vectors on the right
    const Real *patches;  // transformed patches T v
    const Real *const *roots, *const *inverse_roots;
};

// s / π and k0 of κ.
template <class Real>
INLINE void arc_cosine(Vec<Real> cosine, Vec<Real> &sine, Vec<Real> &k0) {
    using Poly = ArcCosine<Real>;
    Vec<Real> size = cosine < 0 ? -cosine : cosine;
    Vec<Real> gap = 1 - size, root = square_root<Real>(gap);
    Vec<Real> angle = gap * Poly::coefficients[Poly::degree];
#pragma GCC unroll 32
    for (int power = Poly::degree - 1; power > 0; power--)
        angle = (angle + Poly::coefficients[power]) * gap;
    angle = (angle + Poly::coefficients[0]) * root;
    sine = root * square_root<Real>(1 + size) * Real(1 / pi);
    k0 = cosine < 0 ? angle : 1 - angle;
}

// κ in [-1, 1], and 1 where it is 1 but for rounding.
template <class Real> INLINE Vec<Real> clip_cosine(Vec<Real> cosine, Real parallel_gap) {
    const Vec<Real> one = Vec<Real>{} + 1;
    cosine = cosine < -1 ? -one : cosine;
    return cosine > 1 - parallel_gap ? one : cosine;
}

// A window sum that takes a map row by row and puts out each row once it is whole.
template <class Real> class WindowSum {
  public:
    // From the map below a layer to the layer, or its transpose from the layer to the map.
    WindowSum(const Layer &below, const Layer &layer, bool transpose, Vec<Real> *ring)
        : in(transpose ? layer : below), out(transpose ? below : layer),
          patch_rows(layer.patch_rows), patch_columns(layer.patch_columns),
          top(transpose ? patch_rows - 1 - layer.top : layer.top),
          left(transpose ? patch_columns - 1 - layer.left : layer.left), ring(ring) {}

    INLINE void push(long row, const Vec<Real> *source, Vec<Real> *target) {
        Vec<Real> *slot = ring + (row % patch_rows) * out.columns;
        for (long c = 0; c < out.columns; c++) {
            long first = c > left ? c - left : 0, last = c - left + patch_columns;
            last = last < in.columns ? last : in.columns;
            Vec<Real> sum = source[first];
            for (long k = first + 1; k < last; k++)
                sum += source[k];
            slot[c] = sum;
        }
        for (; next < out.rows; next++) {
            long first = next > top ? next - top : 0, last = next - top + patch_rows;
            last = last < in.rows ? last : in.rows;
            if (last > row + 1)
                break;
            for (long c = 0; c < out.columns; c++) {
                Vec<Real> sum = ring[(first % patch_rows) * out.columns + c];
                for (long r = first + 1; r < last; r++)
                    sum += ring[(r % patch_rows) * out.columns + c];
                target[next * out.columns + c] = sum;
            }
        }
    }

  private:
    const Layer &in, &out;
    long patch_rows, patch_columns, top, left, next = 0;
    Vec<Real> *ring;  // the last patch_rows rows, summed along columns
};

template <class Real> class Tile {
  public:
    Tile(const Kernel &kernel, const Block<Real> &left, const Block<Real> &right)
        : kernel(kernel), left(left), right(right), layers(kernel.layers),
          width(layers[0].columns), map_size(layers[0].locations()),
          bias(Real(kernel.bias_square)), gap(Real(kernel.parallel_gap)) {
        for (long l = 1; l < kernel.depth; l++)
            for (long side = l - 1; side <= l; side++)
                if (layers[l].patch_rows * layers[side].columns > ring_size)
                    ring_size = layers[l].patch_rows * layers[side].columns;
    }

    template <bool tangent>
    void value(long i0, long i1, long j0, long j1, Real *out, long stride) {
        Scratch scratch(together + 1, 2, *this);
        Vec<Real> *first[together];
        for (long t = 0; t < together; t++)
            first[t] = scratch.map(t);
        for (long j = j0; j < j1; j += lanes)
            for (long i = i0; i < i1; i += together) {
                long count = i1 - i < together ? i1 - i : together;
                first_covariance(i, count, j, first);
                for (long t = 0; t < count; t++) {
                    // A layer's output never overtakes its input: one map serves all.
                    Vec<Real> *s = first[t], *theta = scratch.map(together);
                    for (long l = 0; l + 1 < kernel.depth; l++)
                        up<tangent>(l, i + t, j, s, theta, s, theta, scratch);
                    Vec<Real> mean = readout<tangent>(i + t, j, s, theta, scratch);
                    long used = j1 - j < lanes ? j1 - j : lanes;
                    std::memcpy(out + (i + t - i0) * stride + (j - j0), &mean,
                                used * sizeof(Real));
                }
            }
    }

    template <bool tangent>
    void pullback(long i0, long i1, long j0, long j1, Real *weights, Real *self_weights,
                  long rows, long columns) {
        long depth = kernel.depth;
        Scratch scratch(together + 2 * depth + 6, 3, *this);
        Vec<Real> *first[together];
        for (long t = 0; t < together; t++)
            first[t] = scratch.map(t);
        auto covariance = [&](long l, long t) {
            return l ? scratch.map(together + 2 * l) : first[t];
        };
        auto theta = [&](long l) { return scratch.map(together + 2 * l + 1); };
        auto derivative = [&](long l, long m) {
            return scratch.map(together + 2 * depth + 3 * (l % 2) + m);
        };
        for (long j = j0; j < j1; j += lanes)
            for (long i = i0; i < i1; i += together) {
                long count = i1 - i < together ? i1 - i : together;
                first_covariance(i, count, j, first);
                for (long t = 0; t < count; t++) {
                    for (long l = 0; l + 1 < depth; l++)
                        up<tangent>(l, i + t, j, covariance(l, t), theta(l),
                                    covariance(l + 1, t), theta(l + 1), scratch);
                    for (long l = depth - 1; l > 0; l--) {
                        WindowSum<Real> sums[3] = {transposed(l, 0, scratch),
                                                   transposed(l, 1, scratch),
                                                   transposed(l, 2, scratch)};
                        for (long row = 0; row < layers[l].rows; row++) {
                            down<tangent>(l, row, i + t, j, covariance(l, t), theta(l),
                                          derivative(l, 0), derivative(l, 1),
                                          derivative(l, 2), scratch);
                            for (long m = 0; m < 3; m++)
                                if (m != 1 || tangent)
                                    sums[m].push(row, scratch.row(m), derivative(l - 1, m));
                        }
                    }
                    for (long row = 0; row < layers[0].rows; row++) {
                        down<tangent>(0, row, i + t, j, first[t], theta(0), derivative(0, 0),
                                      derivative(0, 1), derivative(0, 2), scratch);
                        long used = j1 - j < lanes ? j1 - j : lanes;
                        write(row, i + t, used, scratch, rows, columns,
                              (i + t - i0) * columns + j - j0, weights, self_weights);
                    }
                }
            }
    }

  private:
    static constexpr long lanes = Lanes<Real>::count;

    // Maps, and as many row buffers and window-sum rings as maps are summed at once.
    class Scratch {
      public:
        Scratch(long maps, long rows, const Tile &tile)
            : map_size(tile.map_size), width(tile.width), ring_size(tile.ring_size) {
            long size = maps * map_size + rows * (width + ring_size);
            memory = static_cast<Vec<Real> *>(
                std::aligned_alloc(vector_bytes, size * sizeof(Vec<Real>)));
            if (!memory)
                throw std::bad_alloc();
            row_buffers = memory + maps * map_size;
            rings = row_buffers + rows * width;
        }
        ~Scratch() { std::free(memory); }
        Scratch(const Scratch &) = delete;
        Vec<Real> *map(long m) const { return memory + m * map_size; }
        Vec<Real> *row(long m) const { return row_buffers + m * width; }
        Vec<Real> *ring(long m) const { return rings + m * ring_size; }

      private:
        long map_size, width, ring_size;
        Vec<Real> *memory, *row_buffers, *rings;
    };

    // <T v(x), T v(z)> / c for a few left images and one vector of right ones.
    void first_covariance(long i, long count, long j, Vec<Real> *const *maps) const {
        long d = kernel.patch_dim;
        Real scale = Real(1 / kernel.channels);
        for (long u = 0; u < map_size; u++) {
            const Real *x = left.patches + u * d * left.n + i;
            const Real *z = right.patches + (j * map_size + u * lanes) * d;
            Vec<Real> sum[together] = {};
            if (count == together) {
                for (long e = 0; e < d; e++) {
                    Vec<Real> lane = load(z + e * lanes);
#pragma GCC unroll 8
                    for (long t = 0; t < together; t++)
                        add_product<Real>(sum[t], x[e * left.n + t], lane);
                }
            } else {
                for (long t = 0; t < count; t++)
                    for (long e = 0; e < d; e++)
                        add_product<Real>(sum[t], x[e * left.n + t], load(z + e * lanes));
            }
            for (long t = 0; t < count; t++)
                maps[t][u] = sum[t] * scale;
        }
    }

    // A vector of right images' roots; j is a multiple of lanes.
    INLINE Vec<Real> at(const Real *const *roots, long layer, long u, long j) const {
        return load(roots[layer] + j * layers[layer].locations() + u * lanes);
    }

    // S (with its bias) at a location from the window sum, and Θ from its window sum.
    template <bool tangent>
    INLINE void relu(long layer, long u, long i, long j, Vec<Real> s, Vec<Real> theta,
                     Vec<Real> &covariance_out, Vec<Real> &theta_out) const {
        Real root = left.roots[layer][u * left.n + i];
        Real inverse = left.inverse_roots[layer][u * left.n + i];
        Vec<Real> roots = at(right.roots, layer, u, j);
        Vec<Real> inverses = at(right.inverse_roots, layer, u, j);
        Vec<Real> cosine = clip_cosine<Real>(s * (inverses * inverse), gap), sine, k0;
        arc_cosine<Real>(cosine, sine, k0);
        covariance_out = (roots * root) * (sine + k0 * cosine);
        if (tangent)
            theta_out = k0 * theta;
    }

    template <bool tangent>
    INLINE void relu_row(long layer, long row, long i, long j, const Vec<Real> *s,
                         const Vec<Real> *theta, Vec<Real> *s_out, Vec<Real> *theta_out) const {
        long columns = layers[layer].columns, u = row * columns;
        if (layer)
            for (long c = 0; c < columns; c++, u++) {
                Vec<Real> covariance = s[u] + bias, input = {};
                if (tangent)
                    input = theta[u] + covariance;
                relu<tangent>(layer, u, i, j, covariance, input, s_out[c], theta_out[c]);
            }
        else
            for (long c = 0; c < columns; c++, u++) {
                Vec<Real> covariance = s[u] + bias;
                relu<tangent>(layer, u, i, j, covariance, covariance, s_out[c], theta_out[c]);
            }
    }

    // The window sums of S' and Θ' of a layer, which the next layer starts from.
    template <bool tangent>
    void up(long layer, long i, long j, const Vec<Real> *s, const Vec<Real> *theta,
            Vec<Real> *s_next, Vec<Real> *theta_next, const Scratch &scratch) const {
        const Layer &here = layers[layer], &next = layers[layer + 1];
        WindowSum<Real> sum_s(here, next, false, scratch.ring(0));
        WindowSum<Real> sum_theta(here, next, false, scratch.ring(1));
        for (long row = 0; row < here.rows; row++) {
            relu_row<tangent>(layer, row, i, j, s, theta, scratch.row(0), scratch.row(1));
            sum_s.push(row, scratch.row(0), s_next);
            if (tangent)
                sum_theta.push(row, scratch.row(1), theta_next);
        }
    }

    template <bool tangent>
    Vec<Real> readout(long i, long j, const Vec<Real> *s, const Vec<Real> *theta,
                      const Scratch &scratch) const {
        const Layer &top = kernel.last();
        Vec<Real> total = {};
        for (long row = 0; row < top.rows; row++) {
            relu_row<tangent>(kernel.depth - 1, row, i, j, s, theta, scratch.row(0),
                              scratch.row(1));
            Vec<Real> sum = {};  // row by row, for the sake of rounding
            for (long c = 0; c < top.columns; c++)
                sum += tangent ? scratch.row(0)[c] + scratch.row(1)[c] : scratch.row(0)[c];
            total += sum;
        }
        return total * Real(1.0 / top.locations());
    }

    WindowSum<Real> transposed(long layer, long m, const Scratch &scratch) const {
        return WindowSum<Real>(layers[layer - 1], layers[layer], true, scratch.ring(m));
    }

    // Row buffers 0, 1, 2 ← derivatives of k by S, Θ and a, from those by S' and Θ'; the one
    // by a adds to what came from above.
    template <bool tangent>
    INLINE void down(long layer, long row, long i, long j, const Vec<Real> *s,
                     const Vec<Real> *theta, const Vec<Real> *d_out,
                     const Vec<Real> *d_theta_out, const Vec<Real> *d_variance,
                     const Scratch &scratch) const {
        const bool top = layer == kernel.depth - 1;
        const Vec<Real> mean = Vec<Real>{} + Real(1.0 / kernel.last().locations());
        const Real floor = std::sqrt(2 * gap) / 2 * Real(1 / pi);
        long columns = layers[layer].columns, u = row * columns;
        for (long c = 0; c < columns; c++, u++) {
            Real inverse_a = left.inverse_roots[layer][u * left.n + i];
            Vec<Real> root_b = at(right.roots, layer, u, j);
            Vec<Real> inverse = at(right.inverse_roots, layer, u, j) * inverse_a;
            Vec<Real> covariance = s[u] + bias, sine, k0;
            Vec<Real> cosine = clip_cosine<Real>(covariance * inverse, gap);
            arc_cosine<Real>(cosine, sine, k0);
            Vec<Real> out = top ? mean : d_out[u];
            Vec<Real> d_covariance = out * k0, d_scale = out * sine;
            if (tangent) {
                Vec<Real> theta_out = top ? mean : d_theta_out[u];
                Vec<Real> input = layer ? theta[u] + covariance : covariance;
                Vec<Real> zero = {};
                Vec<Real> inverse_sine = sine > floor ? Real(1 / (pi * pi)) / sine : zero;
                Vec<Real> through_k0 = theta_out * input * inverse_sine * inverse;
                Vec<Real> d_theta = theta_out * k0;
                d_scale -= through_k0 * cosine;
                d_covariance += through_k0 + d_theta;  // Θ = window sum of Θ' + S
                scratch.row(1)[c] = d_theta;
            }
            scratch.row(0)[c] = d_covariance;
            Vec<Real> d_here = d_scale * root_b * (inverse_a / 2);
            scratch.row(2)[c] = top ? d_here : d_here + d_variance[u];
        }
    }

    // A row of the map of w and of ∂k/∂a, both (locations, rows, columns), from `offset` on.
    void write(long row, long i, long used, const Scratch &scratch, long rows, long columns,
               long offset, Real *weights, Real *self_weights) const {
        for (long c = 0; c < width; c++) {
            long u = row * width + c, at = u * rows * columns + offset;
            Vec<Real> weight = scratch.row(0)[c];
            if (left.roots[0][u * left.n + i] == 0)
                weight = Vec<Real>{};
            std::memcpy(weights + at, &weight, used * sizeof(Real));
            std::memcpy(self_weights + at, scratch.row(2) + c, used * sizeof(Real));
        }
    }

    const Kernel &kernel;
    const Block<Real> &left, &right;
    const Layer *layers;
    long width, map_size, ring_size = 0;
    Real bias, gap;
};

// out[e] (+)= Σ_k v[e][k] gram[k] for `entries` rows of n, all in registers.
template <class Real, int entries>
INLINE void strip_product(const Vec<Real> *gram, long count, long n, const Real *v, Real *out,
                          bool add) {
    Vec<Real> sum[entries] = {};
    for (long k = 0; k < count; k++) {
#pragma GCC unroll 8
        for (int e = 0; e < entries; e++)
            sum[e] += v[e * n + k] * gram[k];
    }
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
    constexpr long lanes = Lanes<Real>::count;
    constexpr long strip = 64, rows = 4, most_entries = 8;
    const long parts = (d + most_entries - 1) / most_entries;
    Vec<Real> gram[strip];
    for (long u = 0; u < locations; u++, w += m * n, v += d * n, out += d * n)
        for (long j = 0; j < n; j += lanes)
            for (long k0 = 0; k0 < n; k0 += strip) {
                long count = n - k0 < strip ? n - k0 : strip;
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
                for (long part = 0; part < parts; part++) {  // equal but for one entry
                    long e0 = d * part / parts, entries = d * (part + 1) / parts - e0;
                    const Real *from = v + e0 * n + k0;
                    Real *to = out + e0 * n + j;
                    switch (entries) {
                    case 1: strip_product<Real, 1>(gram, count, n, from, to, k0); break;
                    case 2: strip_product<Real, 2>(gram, count, n, from, to, k0); break;
                    case 3: strip_product<Real, 3>(gram, count, n, from, to, k0); break;
                    case 4: strip_product<Real, 4>(gram, count, n, from, to, k0); break;
                    case 5: strip_product<Real, 5>(gram, count, n, from, to, k0); break;
                    case 6: strip_product<Real, 6>(gram, count, n, from, to, k0); break;
                    case 7: strip_product<Real, 7>(gram, count, n, from, to, k0); break;
                    default: strip_product<Real, 8>(gram, count, n, from, to, k0);
                    }
                }
            }
}

// out[o] += Σ_k scaled[o][k] patches[k], for `outputs` rows of out, two vectors wide.
template <class Real, int outputs, long strip>
INLINE void add_outputs(const Real (*scaled)[strip], const Vec<Real> (*patches)[2], long count,
                        long width, Real *out) {
    Vec<Real> sum[outputs][2] = {};
    for (long k = 0; k < count; k++) {
#pragma GCC unroll 8
        for (int o = 0; o < outputs; o++) {
            sum[o][0] += scaled[o][k] * patches[k][0];
            sum[o][1] += scaled[o][k] * patches[k][1];
        }
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
    constexpr long lanes = Lanes<Real>::count;
    constexpr long strip = 64, most_outputs = 8;
    const long parts = (outputs + most_outputs - 1) / most_outputs;
    alignas(vector_bytes) Vec<Real> patches[strip][2];
    alignas(vector_bytes) Real scaled[most_outputs][strip];
    for (long u = 0; u < locations; u++, w += m * n, v += d * n, out += m * outputs * width)
        for (long k0 = 0; k0 < n; k0 += strip) {
            long count = n - k0 < strip ? n - k0 : strip;
            for (long e0 = 0; e0 < d; e0 += 2 * lanes) {
                long entries = d - e0 < 2 * lanes ? d - e0 : 2 * lanes;
                std::memset(patches, 0, sizeof patches);
                Real *flat = reinterpret_cast<Real *>(patches);
                for (long e = 0; e < entries; e++)
                    for (long k = 0; k < count; k++)
                        flat[k * 2 * lanes + e] = v[(e0 + e) * n + k0 + k];
                for (long z = 0; z < m; z++)
                    for (long part = 0; part < parts; part++) {  // equal but for one
                        long o0 = outputs * part / parts;
                        long here = outputs * (part + 1) / parts - o0;
                        for (long o = 0; o < here; o++)
                            for (long k = 0; k < count; k += lanes) {
                                Vec<Real> product = load(w + z * n + k0 + k) *
                                                    load(alpha + (o0 + o) * n + k0 + k);
                                std::memcpy(scaled[o] + k, &product, sizeof product);
                            }
                        Real *to = out + (z * outputs + o0) * width + e0;
                        switch (here) {
                        case 1: add_outputs<Real, 1>(scaled, patches, count, width, to); break;
                        case 2: add_outputs<Real, 2>(scaled, patches, count, width, to); break;
                        case 3: add_outputs<Real, 3>(scaled, patches, count, width, to); break;
                        case 4: add_outputs<Real, 4>(scaled, patches, count, width, to); break;
                        case 5: add_outputs<Real, 5>(scaled, patches, count, width, to); break;
                        case 6: add_outputs<Real, 6>(scaled, patches, count, width, to); break;
                        case 7: add_outputs<Real, 7>(scaled, patches, count, width, to); break;
                        default: add_outputs<Real, 8>(scaled, patches, count, width, to);
                        }
                    }
            }
        }
}

// The bytes of a register; and how many vectors of filters meet how many locations at once:
// the sums, the filters and a pixel fill the registers.
#if defined(__AVX512F__)
constexpr long register_bytes = 64, most_vectors = 4, group = 6;
#elif defined(__AVX__)
constexpr long register_bytes = 32, most_vectors = 2, group = 5;
#elif defined(__aarch64__)
constexpr long register_bytes = 16, most_vectors = 4, group = 6;
#else
constexpr long register_bytes = 16, most_vectors = 2, group = 5;
#endif

// A convolution with given filters, its activation and its pool, as in features.py.
struct FilterLayer {
    long height, width, channels;  // of an image with the zeros around it
    long rows, columns;            // locations
    long patch_rows, patch_columns;
    long grid_rows, grid_columns;  // cells of the pool
    long vectors;                  // of filters
    double least;                  // what the activation raises its input to
    long locations() const { return rows * columns; }
};

// The maps of the filters, a few locations at a time in registers, and from there into the
// means of their cells: neither maps nor patches, which are read in their image, are ever in
// memory.
//
// Images are (n, height, width, channels). Filters are (vectors, d, lanes), of the size of a
// register, their entries in the order (row, column, channel) in which a patch lies in its
// image; biases are (vectors, lanes), means (n, grid rows, grid columns, vectors, lanes).
template <class Real> class FilterMaps {
  public:
    static constexpr long lanes = register_bytes / sizeof(Real);

    FilterMaps(const FilterLayer &layer, const Real *images, const Real *filters,
               const Real *biases, Real *means)
        : layer(layer), run(layer.patch_columns * layer.channels),
          line(layer.width * layer.channels), images(images), filters(filters),
          biases(biases), means(means), least(Real(layer.least)) {
        places.reserve(layer.locations());
        for (long r = 0; r < layer.rows; r++)
            for (long c = 0; c < layer.columns; c++) {
                Cell row(r, layer.rows, layer.grid_rows);
                Cell column(c, layer.columns, layer.grid_columns);
                places.push_back({r * line + c * layer.channels,
                                  row.index * layer.grid_columns + column.index,
                                  row.begins && column.begins,
                                  Real(1) / Real(row.size * column.size)});
            }
    }

    void compute(long n) {
        const long panels = (layer.vectors + most_vectors - 1) / most_vectors;
        for (long p = 0; p < panels; p++) {  // equal but for one vector
            long first = layer.vectors * p / panels;
            switch (layer.vectors * (p + 1) / panels - first) {
            case 1: panel<1>(first, n); break;
            case 2: panel<2>(first, n); break;
            case 3: panel<3>(first, n); break;
            default: panel<4>(first, n);
            }
        }
    }

  private:
    typedef Real Register __attribute__((vector_size(register_bytes)));

    static INLINE Register at(const Real *from) {
        Register v;
        std::memcpy(&v, from, sizeof v);
        return v;
    }

    // The part of a dimension in which a location lies.
    struct Cell {
        long index, size;
        bool begins;
        Cell(long location, long locations, long cells)
            : index(((location + 1) * cells - 1) / locations) {
            long first = index * locations / cells;
            size = (index + 1) * locations / cells - first;
            begins = location == first;
        }
    };

    // A location: where its patch begins in its image, its cell, its weight in the mean.
    struct Place {
        long pixel, cell;
        bool begins;  // the cell
        Real weight;
    };

    // Locations of all images in a row, so that small maps fill the registers as well.
    template <int vectors> void panel(long first, long n) {
        const long cells = layer.grid_rows * layer.grid_columns;
        const Real *image = images, *pixels[group];
        Real *mean = means + first * lanes, *targets[group];
        const Place *here = places.data(), *end = here + places.size(), *in_group[group];
        for (long left = n * layer.locations(); left > 0; left -= group) {
            long count = left < group ? left : group;
            for (long t = 0; t < count; t++) {
                pixels[t] = image + here->pixel;
                targets[t] = mean + here->cell * layer.vectors * lanes;
                in_group[t] = here;
                if (++here == end) {
                    here = places.data();
                    image += layer.height * line;
                    mean += cells * layer.vectors * lanes;
                }
            }
            for (long t = count; t < group; t++)  // to no effect
                pixels[t] = pixels[0];
            Register sum[group][vectors];
            convolve<vectors>(first, pixels, sum);
            pool<vectors>(sum, count, in_group, targets);
        }
    }

    // Products of a panel of filters with a few patches, and biases.
    template <int vectors>
    INLINE void convolve(long first, const Real *const *pixels,
                         Register (&sum)[group][vectors]) const {
#pragma GCC unroll 6
        for (long t = 0; t < group; t++)
#pragma GCC unroll 4
            for (long v = 0; v < vectors; v++)
                sum[t][v] = at(biases + (first + v) * lanes);
        const long entries = layer.patch_rows * run;
        const Real *filter = filters + first * entries * lanes;
        for (long row = 0; row < layer.patch_rows; row++)
            for (long e = row * line; e < row * line + run; e++, filter += lanes) {
                Register lane[vectors];
#pragma GCC unroll 4
                for (long v = 0; v < vectors; v++)
                    lane[v] = at(filter + v * entries * lanes);
#pragma GCC unroll 6
                for (long t = 0; t < group; t++)
#pragma GCC unroll 4
                    for (long v = 0; v < vectors; v++)
                        sum[t][v] += pixels[t][e] * lane[v];
            }
    }

    // Locations one after another into their means, which thereby have one order of sums
    // however locations are grouped; neighbours in a cell meet in registers.
    template <int vectors>
    INLINE void pool(const Register (&sum)[group][vectors], long count,
                     const Place *const *in_group, Real *const *targets) const {
        Register mean[vectors] = {};
#pragma GCC unroll 6
        for (long t = 0; t < group && t < count; t++) {
            const Place &here = *in_group[t];
            const bool moves = t == 0 || targets[t] != targets[t - 1];
            const bool leaves = t + 1 == count || targets[t] != targets[t + 1];
#pragma GCC unroll 4
            for (long v = 0; v < vectors; v++) {
                if (here.begins)
                    mean[v] = Register{};
                else if (moves)
                    mean[v] = at(targets[t] + v * lanes);
                Register part =
                    here.weight * (sum[t][v] < least ? Register{} + least : sum[t][v]);
                ROUNDED(part);
                mean[v] += part;
                if (leaves)
                    std::memcpy(targets[t] + v * lanes, &mean[v], sizeof mean[v]);
            }
        }
    }

    const FilterLayer &layer;
    long run, line;  // of a patch's row and an image's row
    const Real *images, *filters, *biases;
    Real *means, least;
    std::vector<Place> places;
};

// Nonzero where memory ran out: no exception crosses into Python.
template <class Real>
int value(const Kernel *k, const Block<Real> *left, const Block<Real> *right, long i0, long i1,
          long j0, long j1, Real *out, long stride) {
    try {
        Tile<Real> tile(*k, *left, *right);
        k->tangent ? tile.template value<true>(i0, i1, j0, j1, out, stride)
                   : tile.template value<false>(i0, i1, j0, j1, out, stride);
    } catch (const std::bad_alloc &) {
        return 1;
    }
    return 0;
}

template <class Real>
int pullback(const Kernel *k, const Block<Real> *left, const Block<Real> *right, long i0,
             long i1, long j0, long j1, Real *weights, Real *self_weights, long rows,
             long columns) {
    try {
        Tile<Real> tile(*k, *left, *right);
        k->tangent ? tile.template pullback<true>(i0, i1, j0, j1, weights, self_weights, rows,
                                                  columns)
                   : tile.template pullback<false>(i0, i1, j0, j1, weights, self_weights,
                                                   rows, columns);
    } catch (const std::bad_alloc &) {
        return 1;
    }
    return 0;
}

template <class Real>
int filter_maps(const FilterLayer *layer, long n, const Real *images, const Real *filters,
                const Real *biases, Real *means) {
    try {
        FilterMaps<Real>(*layer, images, filters, biases, means).compute(n);
    } catch (const std::bad_alloc &) {
        return 1;
    }
    return 0;
}

}  // namespace

// Left images [i0, i1) with right images [j0, j1), j0 at the beginning of a vector. Results
// begin at `out`, whose rows are `stride` apart; and at `weights` and `self_weights`, which
// lie in arrays of shape (locations, rows, columns).
#define TILE(Real)                                                                           \
    extern "C" int kernel_value_##Real(const Kernel *k, const Block<Real> *left,             \
                                       const Block<Real> *right, long i0, long i1, long j0,  \
                                       long j1, Real *out, long stride) {                    \
        return value(k, left, right, i0, i1, j0, j1, out, stride);                           \
    }                                                                                        \
    extern "C" int kernel_pullback_##Real(                                                   \
        const Kernel *k, const Block<Real> *left, const Block<Real> *right, long i0,         \
        long i1, long j0, long j1, Real *weights, Real *self_weights, long rows,             \
        long columns) {                                                                      \
        return pullback(k, left, right, i0, i1, j0, j1, weights, self_weights, rows,         \
                        columns);                                                            \
    }                                                                                        \
    extern "C" void gram_product_##Real(long locations, long m, long d, long n,              \
                                        const Real *w, const Real *a, const Real *v,         \
                                        Real *out) {                                         \
        gram_product(locations, m, d, n, w, a, v, out);                                      \
    }                                                                                        \
    extern "C" void output_product_##Real(long locations, long m, long outputs, long d,      \
                                          long n, const Real *w, const Real *alpha,          \
                                          const Real *v, long width, Real *out) {            \
        output_product(locations, m, outputs, d, n, w, alpha, v, width, out);                \
    }                                                                                        \
    extern "C" long kernel_lanes_##Real() { return Lanes<Real>::count; }                     \
    extern "C" long filter_lanes_##Real() { return FilterMaps<Real>::lanes; }                \
    extern "C" int filter_maps_##Real(const FilterLayer *layer, long n, const Real *images,  \
                                      const Real *filters, const Real *biases,               \
                                      Real *means) {                                         \
        return filter_maps(layer, n, images, filters, biases, means);                        \
    }
TILE(float)
TILE(double)
