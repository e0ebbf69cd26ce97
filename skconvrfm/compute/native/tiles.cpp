// The recursion of the convolutional kernels for one pair of blocks of images, fused. The steps
// and names are those of kernels/convolutional.py.
// A vector of right images is carried side by side, one image to a lane; a left image then costs
// that many pairs at once, and all its maps stay in the cache of one core.
// Maps are (rows, columns) of vectors. Images are stored in groups, left ones of `together`, right
// ones of a vector: patches (n / group, locations, entries, group) and, one array a layer, roots (n
// / group, locations, group). Where no transform mixes the entries of patches, patches of a pixel
// each are given: their products are summed over the windows of the first layer.
#include <cstdlib>

#include "vectors.h"

namespace {

constexpr long together = 8;  // left images of a group, whose first covariances share a load
constexpr double pi = 3.14159265358979323846;

// arccos(x) / sqrt(1 - x²) on [0, 1] as a polynomial in 1 - x, by Remez exchange in 60 digits;
// relative error 1.2e-8 (float) and 8.6e-19 (double).
template <class Real> struct ArcCosine;
template <> struct ArcCosine<float> {
    static constexpr int degree = 9;
    static constexpr float coefficients[] = {
        0.9999999885036901373403f, 0.3333355884469398000454f, 0.1332608828248616835669f,
        0.05803771208502446614035f, 0.01984865938509513858894f, 0.03098574009944841754362f,
        -0.0351509633387301525983f, 0.05257873433362659448031f, -0.03345739851986902759052f,
        0.01135736491644825775261f};
};
template <> struct ArcCosine<double> {
    static constexpr int degree = 22;
    static constexpr double coefficients[] = {
        1.000000000000000000861, 0.3333333333333324298215, 0.1333333333334907931721,
        0.05714285713195735811248, 0.02539682579649502603974, 0.01154400256233219225835,
        0.005328140283042313043873, 0.00248496689042209400059, 0.001181320306540204019231,
        0.0004874607916871882222199, 0.0005705567592664865884892, -0.0009784466466352112334617,
        0.003213959157174769355493, -0.007144148440642045326941, 0.01304212116477632945704,
        -0.01884407623304520087345, 0.02158948622710280345521, -0.01931737310130608054567,
        0.01323684913827770707126, -0.006711420261223142535334, 0.002378420727655908709533,
        -0.0005273814262547766775844, 0.00005553930044847188242116};
};

struct Layer {
    long rows, columns;              // locations
    long patch_rows, patch_columns;  // of the windows on the map below
    long top, left;                  // zeros before the first row and column
    long locations() const { return rows * columns; }
};

struct Kernel {
    long depth, tangent, entries, windows;  // entries of a patch; whether it is a pixel
    double channels, bias_square, parallel_gap;
    Layer image;  // locations of the patches that are given
    const Layer *layers;
    const Layer &last() const { return layers[depth - 1]; }
};

template <class Real> struct Block {
    long n;               // images, padded to whole groups
    const Real *patches;  // transformed patches T v
    const Real *const *roots, *const *inverse_roots;
};

// Σ c_k x^⌊k/2⌋ over every second k, from `first` on.
template <class Real, int first> INLINE Vec<Real> every_second(Vec<Real> x) {
    using Poly = ArcCosine<Real>;
    constexpr int last = Poly::degree - (Poly::degree - first) % 2;
    Vec<Real> sum = Poly::coefficients[last] - Vec<Real>{};
#pragma GCC unroll 32
    for (int power = last - 2; power >= first; power -= 2)
        sum = fused(sum, x, Poly::coefficients[power] - Vec<Real>{});
    return sum;
}

// s / π and k0 of κ, which may leave [-1, 1] by rounding, and is 1 above a limit.
template <class Real>
INLINE void arc_cosine(Vec<Real> &cosine, Vec<Real> limit, Vec<Real> &sine, Vec<Real> &k0) {
    const Vec<Real> zero = {}, one = zero + 1, scale = zero + Real(1 / (pi * pi));
    cosine = cosine > limit ? one : cosine;
    Vec<Real> gap = 1 - absolute<Real>(cosine);
    gap = gap > 0 ? gap : zero;
    sine = square_root<Real>(gap * fused(gap, -scale, 2 * scale));
    // Even and odd powers apart: two chains of operations, of half the length.
    Vec<Real> square = gap * gap, even = every_second<Real, 0>(square);
    Vec<Real> angle = sine * fused(every_second<Real, 1>(square), gap, even);
    k0 = cosine < 0 ? angle : 1 - angle;
}

// A window sum that takes a map row by row and puts out each row once it is whole: from the map
// below a layer to the layer, or its transpose from the layer to the map.
template <class Real> class WindowSum {
  public:
    WindowSum(const Layer &below, const Layer &layer, bool transpose, Vec<Real> *ring)
        : in(transpose ? layer : below), out(transpose ? below : layer),
          patch_rows(layer.patch_rows), patch_columns(layer.patch_columns),
          top(transpose ? patch_rows - 1 - layer.top : layer.top),
          left(transpose ? patch_columns - 1 - layer.left : layer.left), ring(ring) {}

    INLINE void push(long row, const Vec<Real> *source, Vec<Real> *target) {
        add_columns(source, slot(row));
        for (; next < out.rows; next++) {
            long first = std::max(next - top, 0L), last = next - top + patch_rows;
            last = std::min(last, in.rows);
            if (last > row + 1)
                break;
            add_rows(first, last, target + next * out.columns);
        }
    }

  private:
    static constexpr int unrolled = 5;  // rows or columns of a window, at most

    Vec<Real> *slot(long row) const { return ring + (row % patch_rows) * out.columns; }

    // Windows [begin, end) of a row, of which all have as many columns, from c - shift on.
    static void add_windows(const Vec<Real> *source, long shift, long columns, long begin,
                            long end, Vec<Real> *sums) {
        with_constant<unrolled + 1>(columns, [&](auto known) {
            const long count = known > unrolled ? columns : long(known);
            for (long c = begin; c < end; c++) {
                Vec<Real> sum = source[c - shift];
                for (long k = 1; k < count; k++)
                    sum += source[c - shift + k];
                sums[c] = sum;
            }
        });
    }

    // Sums along the columns of a row of the map below.
    void add_columns(const Vec<Real> *source, Vec<Real> *sums) const {
        // The windows between the margins are whole.
        long begin = std::min(left, out.columns);
        long end = std::clamp(in.columns - patch_columns + left + 1, begin, out.columns);
        add_windows(source, left, patch_columns, begin, end, sums);
        auto add_cut = [&](long c) {
            long first = std::max(c - left, 0L);
            long last = std::min(c - left + patch_columns, in.columns);
            add_windows(source, c - first, last - first, c, c + 1, sums);
        };
        for (long c = 0; c < begin; c++)
            add_cut(c);
        for (long c = end; c < out.columns; c++)
            add_cut(c);
    }

    // The sum of rows [first, last) of the map below, which are summed along columns.
    void add_rows(long first, long last, Vec<Real> *sums) const {
        with_constant<unrolled + 1>(last - first, [&](auto known) {
            if constexpr (constexpr int count = decltype(known)::value; count <= unrolled) {
                const Vec<Real> *rows[count];
                for (long r = 0; r < count; r++)
                    rows[r] = slot(first + r);
                for (long c = 0; c < out.columns; c++) {
                    Vec<Real> sum = rows[0][c];
                    for (long r = 1; r < count; r++)
                        sum += rows[r][c];
                    sums[c] = sum;
                }
            } else {
                std::copy_n(slot(first), out.columns, sums);
                for (long r = first + 1; r < last; r++)
                    for (long c = 0; c < out.columns; c++)
                        sums[c] += slot(r)[c];
            }
        });
    }

    const Layer &in, &out;
    long patch_rows, patch_columns, top, left, next = 0;
    Vec<Real> *ring;  // the last patch_rows rows, summed along columns
};

template <class Real, bool tangent> class Tile {
  public:
    Tile(const Kernel &kernel, const Block<Real> &left, const Block<Real> &right)
        : kernel(kernel), left(left), right(right), layers(kernel.layers),
          width(layers[0].columns),
          map_size(std::max(kernel.image.locations(), layers[0].locations())),
          bias(Real(kernel.bias_square) - Vec<Real>{}),
          limit(1 - Real(kernel.parallel_gap) - Vec<Real>{}),
          floor(std::sqrt(2 * Real(kernel.parallel_gap)) / 2 * Real(1 / pi)) {
        for (long l = 0; l < kernel.depth; l++) {
            long columns = std::max(layers[l].columns, l ? layers[l - 1].columns : 0);
            ring_size = std::max(ring_size, layers[l].patch_rows * columns);
        }
    }

    void value(long i0, long i1, long j0, long j1, Real *out, long stride) {
        Scratch scratch(together + 1, 2, *this);
        Vec<Real> *theta = scratch.map(together);
        for_pairs(i0, i1, j0, j1, scratch, [&](long i, long j, long used, Vec<Real> *s) {
            // A layer's output never overtakes its input: one map serves all.
            for (long l = 0; l + 1 < kernel.depth; l++)
                up(l, i, j, s, theta, s, theta, scratch);
            Vec<Real> mean = readout(i, j, s, theta, scratch);
            store(mean, used, out + (i - i0) * stride + (j - j0));
        });
    }

    void pullback(long i0, long i1, long j0, long j1, const Real *alpha, long outputs,
                  Real *weights, Real *sums) {
        long depth = kernel.depth;
        Scratch scratch(together + 2 * depth + 6, 3, *this);
        auto theta = [&](long l) { return scratch.map(together + 2 * l + 1); };
        auto above = [&](long l) { return scratch.map(together + 2 * depth + 3 * (l % 2)); };
        for_pairs(i0, i1, j0, j1, scratch, [&](long i, long j, long used, Vec<Real> *first) {
            auto covariance = [&](long l) { return l ? scratch.map(together + 2 * l) : first; };
            for (long l = 0; l + 1 < depth; l++)
                up(l, i, j, covariance(l), theta(l), covariance(l + 1), theta(l + 1), scratch);
            for (long l = depth - 1; l > 0; l--) {
                WindowSum<Real> sums[3] = {transposed(l, 0, scratch), transposed(l, 1, scratch),
                                           transposed(l, 2, scratch)};
                for (long row = 0; row < layers[l].rows; row++) {
                    down(l, row, i, j, covariance(l), theta(l), above(l), scratch);
                    for (long m = 0; m < 3; m++)
                        if (m != 1 || tangent)
                            sums[m].push(row, scratch.row(m), above(l - 1) + m * map_size);
                }
            }
            for (long row = 0; row < layers[0].rows; row++) {
                down(0, row, i, j, first, theta(0), above(0), scratch);
                const long u = row * width, at = (i - i0) * layers[0].locations() + u;
                write(u, i, used, scratch.row(0), weights + at * (j1 - j0) + j - j0, j1 - j0);
                add_sums(scratch.row(2), alpha + (j - j0) * outputs, outputs,
                         sums + at * outputs);
            }
        });
    }

  private:
    static constexpr long lanes = Lanes<Real>::count;

    // Maps, and as many row buffers and window-sum rings as maps are summed at once.
    class Scratch {
      public:
        Scratch(long maps, long rows, const Tile &tile)
            : map_size(tile.map_size), width(tile.width), ring_size(tile.ring_size) {
            long bytes = (maps * map_size + rows * (width + ring_size)) * sizeof(Vec<Real>);
            memory = static_cast<Vec<Real> *>(std::aligned_alloc(vector_bytes, bytes));
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

    // call(i, j, used, S of the first layer) for left images and vectors of right ones.
    template <class Call>
    INLINE void for_pairs(long i0, long i1, long j0, long j1, Scratch &scratch, Call call) const {
        for (long j = j0; j < j1; j += lanes)
            for (long i = i0, count; i < i1; i += count) {
                count = std::min(i1 - i, together - i % together);
                first_covariance(i, count, j, scratch);
                for (long t = 0; t < count; t++) {
                    if (kernel.windows)
                        sum_windows(scratch.map(t), scratch);
                    call(i + t, j, std::min(j1 - j, lanes), scratch.map(t));
                }
            }
    }

    // Maps ← <T v(x), T v(z)> / c for a few left images and one vector of right ones.
    void first_covariance(long i, long count, long j, const Scratch &scratch) const {
        long d = kernel.entries, size = kernel.image.locations();
        Real scale = Real(1 / kernel.channels);
        for (long u = 0; u < size; u++) {
            const Real *x = at_left(left.patches, u * d, size * d, i);
            const Real *z = right.patches + (j * size + u * lanes) * d;
            if (count == together)
                multiply<together>(x, z, scale, scratch, u);
            else
                for (long t = 0; t < count; t++)
                    multiply<1>(x + t, z, scale, scratch, u + t * map_size);
        }
    }

    // Sums of products of pixels over the windows of patches, in the place of the products.
    void sum_windows(Vec<Real> *map, const Scratch &scratch) const {
        WindowSum<Real> sum(kernel.image, layers[0], false, scratch.ring(0));
        for (long row = 0; row < kernel.image.rows; row++)
            sum.push(row, map + row * kernel.image.columns, map);
    }

    // At u of some maps in a row ← products of the patches of left images and of a vector.
    template <int count>
    INLINE void multiply(const Real *x, const Real *z, Real scale, const Scratch &scratch,
                         long u) const {
        Vec<Real> sums[count] = {};
        for (long e = 0; e < kernel.entries; e++) {
            Vec<Real> lane = load(z + e * lanes);
#pragma GCC unroll 8
            for (int t = 0; t < count; t++)
                add_product<Real>(sums[t], x[e * together + t], lane);
        }
#pragma GCC unroll 8
        for (int t = 0; t < count; t++)
            scratch.map(t)[u] = sums[t] * scale;
    }

    // The number of left image i in a row of an array of so many rows a group.
    static const Real *at_left(const Real *array, long row, long rows, long i) {
        return array + (i / together * rows + row) * together + i % together;
    }

    // A vector of right images' roots; j is a multiple of lanes.
    INLINE Vec<Real> at(const Real *const *roots, long layer, long u, long j) const {
        return load(roots[layer] + j * layers[layer].locations() + u * lanes);
    }

    // A row of S' and Θ' of a layer, from the window sums S (without its bias) and of Θ'.
    INLINE void relu_row(long layer, long row, long i, long j, const Vec<Real> *s,
                         const Vec<Real> *theta, Vec<Real> *s_out, Vec<Real> *theta_out) const {
        long columns = layers[layer].columns, u = row * columns, n = layers[layer].locations();
        const Real *left_roots = at_left(left.roots[layer], u, n, i);
        const Real *left_inverses = at_left(left.inverse_roots[layer], u, n, i);
        // Copies, which the maps that are written cannot overlap.
        const Vec<Real> bias = this->bias, limit = this->limit;
        for (long c = 0; c < columns; c++, u++) {
            Real root = left_roots[c * together], inverse = left_inverses[c * together];
            Vec<Real> roots = at(right.roots, layer, u, j);
            Vec<Real> inverses = at(right.inverse_roots, layer, u, j);
            Vec<Real> covariance = s[u] + bias, sine, k0;
            Vec<Real> cosine = covariance * (inverses * inverse);
            arc_cosine<Real>(cosine, limit, sine, k0);
            s_out[c] = (roots * root) * (sine + k0 * cosine);
            if (tangent)
                theta_out[c] = k0 * (layer ? theta[u] + covariance : covariance);
        }
    }

    // The window sums of S' and Θ' of a layer, which the next layer starts from.
    void up(long layer, long i, long j, const Vec<Real> *s, const Vec<Real> *theta,
            Vec<Real> *s_next, Vec<Real> *theta_next, const Scratch &scratch) const {
        const Layer &here = layers[layer], &next = layers[layer + 1];
        WindowSum<Real> sum_s(here, next, false, scratch.ring(0));
        WindowSum<Real> sum_theta(here, next, false, scratch.ring(1));
        for (long row = 0; row < here.rows; row++) {
            relu_row(layer, row, i, j, s, theta, scratch.row(0), scratch.row(1));
            sum_s.push(row, scratch.row(0), s_next);
            if (tangent)
                sum_theta.push(row, scratch.row(1), theta_next);
        }
    }

    Vec<Real> readout(long i, long j, const Vec<Real> *s, const Vec<Real> *theta,
                      const Scratch &scratch) const {
        const Layer &top = kernel.last();
        Vec<Real> total = {};
        for (long row = 0; row < top.rows; row++) {
            relu_row(kernel.depth - 1, row, i, j, s, theta, scratch.row(0), scratch.row(1));
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

    // Row buffers 0, 1, 2 ← derivatives of k by S, Θ and a, from those by S' and Θ' `above`.
    INLINE void down(long layer, long row, long i, long j, const Vec<Real> *s,
                     const Vec<Real> *theta, const Vec<Real> *above, const Scratch &scratch) const {
        const bool top = layer == kernel.depth - 1;
        const Vec<Real> mean = Vec<Real>{} + Real(1.0 / kernel.last().locations());
        const Vec<Real> bias = this->bias, limit = this->limit;
        long columns = layers[layer].columns, u = row * columns;
        const Real *left_inverses =
            at_left(left.inverse_roots[layer], u, layers[layer].locations(), i);
        for (long c = 0; c < columns; c++, u++) {
            Real inverse_a = left_inverses[c * together];
            Vec<Real> root_b = at(right.roots, layer, u, j);
            Vec<Real> inverse = at(right.inverse_roots, layer, u, j) * inverse_a;
            Vec<Real> covariance = s[u] + bias, sine, k0;
            Vec<Real> cosine = covariance * inverse;
            arc_cosine<Real>(cosine, limit, sine, k0);
            Vec<Real> out = top ? mean : above[u];
            Vec<Real> d_covariance = out * k0, d_scale = out * sine;
            if (tangent) {
                Vec<Real> theta_out = top ? mean : above[map_size + u];
                Vec<Real> input = layer ? theta[u] + covariance : covariance;
                Vec<Real> inverse_sine = sine > floor ? Real(1 / (pi * pi)) / sine : Vec<Real>{};
                Vec<Real> through_k0 = theta_out * input * inverse_sine * inverse;
                Vec<Real> d_theta = theta_out * k0;
                d_scale -= through_k0 * cosine;
                d_covariance += through_k0 + d_theta;  // Θ = window sum of Θ' + S
                scratch.row(1)[c] = d_theta;
            }
            scratch.row(0)[c] = d_covariance;
            Vec<Real> d_here = d_scale * root_b * (inverse_a / 2);
            scratch.row(2)[c] = top ? d_here : d_here + above[2 * map_size + u];
        }
    }

    // A row of the map of w, of locations from u on.
    void write(long u, long i, long used, const Vec<Real> *row, Real *weights, long stride) const {
        for (long c = 0; c < width; c++, weights += stride) {
            bool blank = *at_left(left.roots[0], u + c, layers[0].locations(), i) == 0;
            store(blank ? Vec<Real>{} : row[c], used, weights);
        }
    }

    // Sums for each location of a row and each output += Σ_j α_j ∂k/∂a, over a vector of images j.
    void add_sums(const Vec<Real> *row, const Real *alpha, long outputs, Real *sums) const {
        for (long c = 0; c < width; c++, sums += outputs)
            for (long o = 0; o < outputs; o += lanes) {
                Vec<Real> sum = load(sums + o);
                for (long l = 0; l < lanes; l++)
                    add_product<Real>(sum, row[c][l], load(alpha + l * outputs + o));
                store<Real>(sum, lanes, sums + o);
            }
    }

    const Kernel &kernel;
    const Block<Real> &left, &right;
    const Layer *layers;
    long width, map_size, ring_size = 0;
    Vec<Real> bias, limit;  // of the variances, and of a κ that is not 1
    Real floor;  // of s / π where it divides
};

// Rows [first, last) of to (n / group, rows, group) ← those of from (rows, n), and zeros.
template <class Real>
void pack(const Real *from, long first, long last, long rows, long n, long group, Real *to) {
    constexpr long together = 64;  // whose numbers stay in the cache for all groups
    for (long begin = first; begin < last; begin += together)
        for (long i = 0; i < n; i += group) {
            long count = std::min(n - i, group), end = std::min(begin + together, last);
            Real *target = to + i * rows + begin * group;
            for (long row = begin; row < end; row++, target += group)
                std::fill_n(std::copy_n(from + row * n + i, count, target), group - count, 0);
        }
}

template <class Real, class Call>
int with_tile(const Kernel *k, const Block<Real> *left, const Block<Real> *right, Call call) {
    return guarded([&] {
        if (k->tangent)
            call(Tile<Real, true>(*k, *left, *right));
        else
            call(Tile<Real, false>(*k, *left, *right));
    });
}

}  // namespace

// Left images [i0, i1) with right images [j0, j1), j0 at the beginning of a vector. Rows of `out`
// are `stride` apart. `weights` are (rows, locations, columns), in whose order they are written;
// `alpha` is (columns, outputs), whole vectors of both, its sums are (rows, locations, outputs).
#define EXPORT_TILES(Real)                                                                   \
    EXPORT long kernel_lanes_##Real() { return Lanes<Real>::count; }                         \
    EXPORT void pack_##Real(const Real *from, long first, long last, long rows, long n,      \
                            long group, Real *to) {                                          \
        pack(from, first, last, rows, n, group, to);                                         \
    }                                                                                        \
    EXPORT int kernel_value_##Real(const Kernel *k, const Block<Real> *left,                 \
                                   const Block<Real> *right, long i0, long i1, long j0,      \
                                   long j1, Real *out, long stride) {                        \
        auto call = [&](auto &&tile) { tile.value(i0, i1, j0, j1, out, stride); };           \
        return with_tile(k, left, right, call);                                              \
    }                                                                                        \
    EXPORT int kernel_pullback_##Real(const Kernel *k, const Block<Real> *left,              \
                                      const Block<Real> *right, long i0, long i1, long j0,   \
                                      long j1, const Real *alpha, long outputs,              \
                                      Real *weights, Real *sums) {                           \
        return with_tile(k, left, right, [&](auto &&tile) {                                  \
            tile.pullback(i0, i1, j0, j1, alpha, outputs, weights, sums);                    \
        });                                                                                  \
    }
EXPORT_TILES(float)
EXPORT_TILES(double)
