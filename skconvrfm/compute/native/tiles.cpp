// The recursion of the convolutional kernels for one pair of blocks of images, fused. The steps
// and names are those of kernels/convolutional.py.
// A vector of right images is carried side by side, one image to a lane; a left image then costs
// that many pairs at once, and all its maps stay in the cache of one core.
// Maps are (rows, columns) of vectors. Left images are stored as patches (locations, d, n) and
// roots (locations, n), one array a layer; right images by vectors, as patches (n / lanes,
// locations, d, lanes) and roots (n / lanes, locations, lanes).
#include <cstdlib>

#include "vectors.h"

namespace {

constexpr long together = 8;  // left images whose first covariances share a load
constexpr double pi = 3.14159265358979323846;

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
        Vec<Real> *slot = ring + (row % patch_rows) * out.columns;
        for (long c = 0; c < out.columns; c++) {
            long first = c > left ? c - left : 0, last = c - left + patch_columns;
            last = std::min(last, in.columns);
            Vec<Real> sum = source[first];
            for (long k = first + 1; k < last; k++)
                sum += source[k];
            slot[c] = sum;
        }
        for (; next < out.rows; next++) {
            long first = next > top ? next - top : 0, last = next - top + patch_rows;
            last = std::min(last, in.rows);
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

template <class Real, bool tangent> class Tile {
  public:
    Tile(const Kernel &kernel, const Block<Real> &left, const Block<Real> &right)
        : kernel(kernel), left(left), right(right), layers(kernel.layers),
          width(layers[0].columns), map_size(layers[0].locations()),
          bias(Real(kernel.bias_square)), gap(Real(kernel.parallel_gap)) {
        for (long l = 1; l < kernel.depth; l++)
            for (long side = l - 1; side <= l; side++)
                ring_size = std::max(ring_size, layers[l].patch_rows * layers[side].columns);
    }

    void value(long i0, long i1, long j0, long j1, Real *out, long stride) {
        Scratch scratch(together + 1, 2, *this);
        Vec<Real> *theta = scratch.map(together);
        for_pairs(i0, i1, j0, j1, scratch, [&](long i, long j, long used, Vec<Real> *s) {
            // A layer's output never overtakes its input: one map serves all.
            for (long l = 0; l + 1 < kernel.depth; l++)
                up(l, i, j, s, theta, s, theta, scratch);
            Vec<Real> mean = readout(i, j, s, theta, scratch);
            std::memcpy(out + (i - i0) * stride + (j - j0), &mean, used * sizeof(Real));
        });
    }

    void pullback(long i0, long i1, long j0, long j1, Real *weights, Real *self_weights,
                  long rows, long columns) {
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
                write(row, i, used, scratch, rows, columns, (i - i0) * columns + j - j0,
                      weights, self_weights);
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
            for (long i = i0; i < i1; i += together) {
                long count = std::min(i1 - i, together);
                first_covariance(i, count, j, scratch);
                for (long t = 0; t < count; t++)
                    call(i + t, j, std::min(j1 - j, lanes), scratch.map(t));
            }
    }

    // Maps ← <T v(x), T v(z)> / c for a few left images and one vector of right ones.
    void first_covariance(long i, long count, long j, const Scratch &scratch) const {
        long d = kernel.patch_dim;
        Real scale = Real(1 / kernel.channels);
        for (long u = 0; u < map_size; u++) {
            const Real *x = left.patches + u * d * left.n + i;
            const Real *z = right.patches + (j * map_size + u * lanes) * d;
            Vec<Real> sum[together] = {};
            if (count == together)
                for (long e = 0; e < d; e++) {
                    Vec<Real> lane = load(z + e * lanes);
#pragma GCC unroll 8
                    for (long t = 0; t < together; t++)
                        add_product<Real>(sum[t], x[e * left.n + t], lane);
                }
            else
                for (long t = 0; t < count; t++)
                    for (long e = 0; e < d; e++)
                        add_product<Real>(sum[t], x[e * left.n + t], load(z + e * lanes));
            for (long t = 0; t < count; t++)
                scratch.map(t)[u] = sum[t] * scale;
        }
    }

    // A vector of right images' roots; j is a multiple of lanes.
    INLINE Vec<Real> at(const Real *const *roots, long layer, long u, long j) const {
        return load(roots[layer] + j * layers[layer].locations() + u * lanes);
    }

    // A row of S' and Θ' of a layer, from the window sums S (without its bias) and of Θ'.
    INLINE void relu_row(long layer, long row, long i, long j, const Vec<Real> *s,
                         const Vec<Real> *theta, Vec<Real> *s_out, Vec<Real> *theta_out) const {
        long columns = layers[layer].columns, u = row * columns;
        for (long c = 0; c < columns; c++, u++) {
            Real root = left.roots[layer][u * left.n + i];
            Real inverse = left.inverse_roots[layer][u * left.n + i];
            Vec<Real> roots = at(right.roots, layer, u, j);
            Vec<Real> inverses = at(right.inverse_roots, layer, u, j);
            Vec<Real> covariance = s[u] + bias, sine, k0;
            Vec<Real> cosine = clip_cosine<Real>(covariance * (inverses * inverse), gap);
            arc_cosine<Real>(cosine, sine, k0);
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
        const Real floor = std::sqrt(2 * gap) / 2 * Real(1 / pi);
        long columns = layers[layer].columns, u = row * columns;
        for (long c = 0; c < columns; c++, u++) {
            Real inverse_a = left.inverse_roots[layer][u * left.n + i];
            Vec<Real> root_b = at(right.roots, layer, u, j);
            Vec<Real> inverse = at(right.inverse_roots, layer, u, j) * inverse_a;
            Vec<Real> covariance = s[u] + bias, sine, k0;
            Vec<Real> cosine = clip_cosine<Real>(covariance * inverse, gap);
            arc_cosine<Real>(cosine, sine, k0);
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
// are `stride` apart; `weights` and `self_weights` lie in arrays (locations, rows, columns).
#define EXPORT_TILES(Real)                                                                   \
    EXPORT long kernel_lanes_##Real() { return Lanes<Real>::count; }                         \
    EXPORT int kernel_value_##Real(const Kernel *k, const Block<Real> *left,                 \
                                   const Block<Real> *right, long i0, long i1, long j0,      \
                                   long j1, Real *out, long stride) {                        \
        auto call = [&](auto &&tile) { tile.value(i0, i1, j0, j1, out, stride); };           \
        return with_tile(k, left, right, call);                                              \
    }                                                                                        \
    EXPORT int kernel_pullback_##Real(const Kernel *k, const Block<Real> *left,              \
                                      const Block<Real> *right, long i0, long i1, long j0,   \
                                      long j1, Real *weights, Real *self_weights, long rows, \
                                      long columns) {                                        \
        return with_tile(k, left, right, [&](auto &&tile) {                                  \
            tile.pullback(i0, i1, j0, j1, weights, self_weights, rows, columns);             \
        });                                                                                  \
    }
EXPORT_TILES(float)
EXPORT_TILES(double)
