// Convolution with given filters, activation and pool, as in features/maps.py, fused.
#include <limits>
#include <vector>

#include "vectors.h"

namespace {

// `most_vectors` of filters meet a `group` of locations: with a pixel, they fill the registers.
#if defined(__AVX512F__)
constexpr long register_bytes = 64, most_vectors = 4, group = 6;
#elif defined(__AVX__)
constexpr long register_bytes = 32, most_vectors = 2, group = 5;
#elif defined(__aarch64__)
constexpr long register_bytes = 16, most_vectors = 4, group = 6;
#else
constexpr long register_bytes = 16, most_vectors = 2, group = 5;
#endif

struct FilterLayer {
    long height, width, channels;  // of an image with the zeros around it
    long rows, columns, patch_rows, patch_columns;  // locations and patches
    long grid_rows, grid_columns;  // cells of the pool
    long vectors;                  // of filters
    long order;                    // of the means of powers; 0 for maxima
    double least;                  // what the activation raises its input to
    const long *row_edges, *column_edges;  // where cells begin, and the last one ends
    long locations() const { return rows * columns; }
};

// The maps of the filters, a few locations at a time in registers, and from there into the means
// of their cells: neither maps nor patches, which are read in their image, are ever in memory.
// Images are (n, height, width, channels). Filters are (vectors, d, lanes), of the size of a
// register, their entries in the order (row, column, channel) in which a patch lies in its image;
// biases are (vectors, lanes), means (n, grid rows, grid columns, vectors, lanes). Products with a
// patch are multiplied by its scale, (n, rows, columns), where there are scales.
template <class Real> class FilterMaps {
  public:
    static constexpr long lanes = register_bytes / sizeof(Real);

    FilterMaps(const FilterLayer &layer, const Real *images, const Real *filters,
               const Real *biases, const Real *scales, Real *means)
        : layer(layer), run(layer.patch_columns * layer.channels),
          line(layer.width * layer.channels), images(images), filters(filters),
          biases(biases), scales(scales), means(means), least(Real(layer.least)) {
        places.reserve(layer.locations());
        Cell row;
        for (long r = 0; r < layer.rows; r++) {
            row.move(r, layer.row_edges);
            Cell column;
            for (long c = 0; c < layer.columns; c++) {
                column.move(c, layer.column_edges);
                places.push_back({r * line + c * layer.channels,
                                  row.index * layer.grid_columns + column.index,
                                  row.begins && column.begins,
                                  Real(1) / Real(row.size * column.size)});
            }
        }
    }

    void compute(long n) {
        in_parts<most_vectors>(layer.vectors, [&](long first, auto vectors) {
            panel<vectors>(first, n);
        });
    }

  private:
    typedef Real Register __attribute__((vector_size(register_bytes)));
    enum class Order { one, higher, infinite };
    static constexpr Real infinity = std::numeric_limits<Real>::infinity();

    static INLINE Register at(const Real *from) {
        Register v;
        std::memcpy(&v, from, sizeof v);
        return v;
    }

    // The cell of a dimension in which a location lies.
    struct Cell {
        long index = 0, size = 0;
        bool begins = false;
        void move(long location, const long *edges) {
            index += location == edges[index + 1];
            size = edges[index + 1] - edges[index];
            begins = location == edges[index];
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
        const Real *scale = scales;
        const Place *here = places.data(), *end = here + places.size(), *in_group[group];
        for (long left = n * layer.locations(); left > 0; left -= group) {
            long count = std::min(left, group);
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
            if (scales) {
                add_biases<vectors>(first, scale, count, sum);
                scale += count;
            }
            if (layer.order == 1)
                pool<vectors, Order::one>(sum, count, in_group, targets);
            else if (layer.order)
                pool<vectors, Order::higher>(sum, count, in_group, targets);
            else
                pool<vectors, Order::infinite>(sum, count, in_group, targets);
        }
    }

    // Products of a panel of filters with a few patches, and biases where there are no scales.
    template <int vectors>
    INLINE void convolve(long first, const Real *const *pixels,
                         Register (&sum)[group][vectors]) const {
#pragma GCC unroll 6
        for (long t = 0; t < group; t++)
#pragma GCC unroll 4
            for (long v = 0; v < vectors; v++)
                sum[t][v] = scales ? Register{} : at(biases + (first + v) * lanes);
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

    template <int vectors>
    INLINE void add_biases(long first, const Real *scale, long count,
                           Register (&sum)[group][vectors]) const {
#pragma GCC unroll 6
        for (long t = 0; t < group && t < count; t++)
#pragma GCC unroll 4
            for (long v = 0; v < vectors; v++)
                sum[t][v] = sum[t][v] * scale[t] + at(biases + (first + v) * lanes);
    }

    // The power of an absolute value.
    INLINE Register power(Register u) const {
        const Register size = u < 0 ? -u : u;
        Register product = size;
        for (long factor = 1; factor < layer.order; factor++)
            product *= size;
        return product;
    }

    // One location after another, for one order of sums however locations are grouped.
    template <int vectors, Order order>
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
                    mean[v] = Register{} - (order == Order::infinite ? infinity : 0);
                else if (moves)
                    mean[v] = at(targets[t] + v * lanes);
                Register part = sum[t][v] < least ? Register{} + least : sum[t][v];
                if constexpr (order == Order::infinite) {  // NaN stays
                    mean[v] = part <= mean[v] || mean[v] != mean[v] ? mean[v] : part;
                } else {
                    if constexpr (order == Order::higher)
                        part = power(part);
                    part = here.weight * part;
                    ROUNDED(part);
                    mean[v] += part;
                }
                if (leaves)
                    std::memcpy(targets[t] + v * lanes, &mean[v], sizeof mean[v]);
            }
        }
    }

    const FilterLayer &layer;
    long run, line;  // of a patch's row and an image's row
    const Real *images, *filters, *biases, *scales;
    Real *means, least;
    std::vector<Place> places;
};

}  // namespace

#define EXPORT_FILTERS(Real)                                                                 \
    EXPORT long filter_lanes_##Real() { return FilterMaps<Real>::lanes; }                    \
    EXPORT int filter_maps_##Real(const FilterLayer *layer, long n, const Real *images,      \
                                  const Real *filters, const Real *biases,                   \
                                  const Real *scales, Real *means) {                         \
        return guarded([&] {                                                                 \
            FilterMaps<Real>(*layer, images, filters, biases, scales, means).compute(n);     \
        });                                                                                  \
    }
EXPORT_FILTERS(float)
EXPORT_FILTERS(double)
