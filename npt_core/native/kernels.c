/* A step of the engine on a CPU, in float32: products, attention over pages, what lies between them, and the
 * search of the bank.
 *
 * Every number is computed by one fixed sequence of operations, whatever the other rows of the batch are
 * and however many threads share the work: a row's bits depend on the row alone.
 *
 * Compiled once for each kind of vector unit (see hatch_build.py); `library.py` chooses. Threads are those of
 * the OpenMP that torch has loaded, so that there is one team of them: link with no OpenMP of its own.
 */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#define TILE_ROWS 12 /* 24 of 32 registers hold sums */
#elif defined(__AVX2__)
#define LANES 8
#define TILE_ROWS 6 /* 12 of 16 */
#else
#define LANES 4
#define TILE_ROWS 6
#endif
#define PANEL (2 * LANES)
#define DEPTH 1024 /* inputs of a panel that are read again and again from the second cache */
#define GROUP 128 /* rows whose gates are computed at once */
#define TOGETHER 8 /* rows of a sequence for which keys are read at once */
#define WIDEST 128 /* dimensions of a key */
#define LITTLE 32768 /* operations below which a second thread costs more than it saves */

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

int32_t npt_panel(void) { return PANEL; }

/* Panels [ceil(out / PANEL), in, PANEL] of a matrix [in, out], and the bias [out] that is added to its products, or
 * none. */
struct matrix {
    const float *panels, *bias;
    int64_t out;
};

/* Sums of R rows of `x` and one panel, on top of what `y` holds unless `first`. */
static inline __attribute__((always_inline)) void tile(const int R, const float *x, const int64_t x_row,
                                                       const float *panel, const int64_t depth, float *y,
                                                       const int64_t y_row, const int first) {
    vec left[TILE_ROWS], right[TILE_ROWS];
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
        left[r] = first ? (vec){0} : *(const vec *)(y + r * y_row);
        right[r] = first ? (vec){0} : *(const vec *)(y + r * y_row + LANES);
    }
    for (int64_t k = 0; k < depth; k++) {
        const vec a = *(const vec *)(panel + k * PANEL), b = *(const vec *)(panel + k * PANEL + LANES);
#pragma GCC unroll 12
        for (int r = 0; r < R; r++) {
            const float each = x[r * x_row + k];
            left[r] += each * a;
            right[r] += each * b;
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
        *(vec *)(y + r * y_row) = left[r];
        *(vec *)(y + r * y_row + LANES) = right[r];
    }
}

static void tiles(const int rows, const float *x, const int64_t x_row, const float *panel, const int64_t depth,
                  float *y, const int64_t y_row, const int first) {
    switch (rows) {
#define CASE(R) case R: tile(R, x, x_row, panel, depth, y, y_row, first); break;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if TILE_ROWS > 6
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
#undef CASE
    }
}

/* y [rows, width] = x [rows, in] times the first `width` columns of a panel [in, PANEL], plus bias [width] if there
 * is one. */
static void panel_product(const float *x, const int64_t x_row, const int64_t rows, const int64_t in,
                          const float *panel, const float *bias, const int64_t width, float *y,
                          const int64_t y_row) {
    const int64_t tile_count = (rows + TILE_ROWS - 1) / TILE_ROWS, step = (rows + tile_count - 1) / tile_count;
    for (int64_t from = 0; from < in; from += DEPTH) {
        const int64_t depth = in - from < DEPTH ? in - from : DEPTH;
        for (int64_t row = 0; row < rows; row += step) {
            const int n = rows - row < step ? rows - row : step;
            const float *at = x + row * x_row + from, *part = panel + from * PANEL;
            float *to = y + row * y_row;
            if (width == PANEL) {
                tiles(n, at, x_row, part, depth, to, y_row, from == 0);
                continue;
            }
            float edge[TILE_ROWS * PANEL]; /* the last panel is wider than what is left of y */
            for (int r = 0; r < n && from; r++) memcpy(edge + r * PANEL, to + r * y_row, 4 * width);
            tiles(n, at, x_row, part, depth, edge, PANEL, from == 0);
            for (int r = 0; r < n; r++) memcpy(to + r * y_row, edge + r * PANEL, 4 * width);
        }
    }
    for (int64_t row = 0; row < rows && bias; row++)
        for (int64_t j = 0; j < width; j++) y[row * y_row + j] += bias[j];
}

/* The panel of `matrix` from column `first` on: of y [rows, out] = x [rows, in] times the matrix, plus bias. */
static void columns(const float *x, const int64_t x_row, const int64_t rows, const int64_t in,
                    const struct matrix by, const int64_t first, float *y) {
    const int64_t width = by.out - first < PANEL ? by.out - first : PANEL;
    panel_product(x, x_row, rows, in, by.panels + first * in, by.bias ? by.bias + first : 0, width, y + first, by.out);
}

/* The same, of all of which the panel is full, to y [rows, PANEL]. */
static void part(const float *x, const int64_t rows, const int64_t in, const struct matrix by, const int64_t first,
                 float *y) {
    panel_product(x, in, rows, in, by.panels + first * in, by.bias ? by.bias + first : 0, PANEL, y, PANEL);
}

/* y [rows, out] = x [rows, in] times a matrix, plus its bias. */
void npt_product(const float *x, const int64_t x_row, const int64_t rows, const int64_t in, const struct matrix *by,
                 float *y, const int32_t threads) {
    if (rows == 0) return;
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * in * by->out > LITTLE)
    for (int64_t first = 0; first < by->out; first += PANEL) columns(x, x_row, rows, in, *by, first, y);
}

typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t order __attribute__((vector_size(16)));

/* panel [width, PANEL] from the first `some` of its columns [some, width]; the others stay as they are. */
static void transpose(const float *from, const int64_t some, const int64_t width, float *panel) {
    const int64_t whole = some & ~3, wide = width & ~3;
    for (int64_t c = 0; c < whole; c += 4)
        for (int64_t k = 0; k < wide; k += 4) {
            const float *at = from + c * width + k;
            /* Two panels ahead, each line of 16 floats of the four columns once. */
            __builtin_prefetch(at + (2 * PANEL + k % 16 / 4) * width);
            const four a = *(const four *)at, b = *(const four *)(at + width), d = *(const four *)(at + 2 * width),
                       e = *(const four *)(at + 3 * width);
            const order low = {0, 4, 1, 5}, high = {2, 6, 3, 7}, left = {0, 1, 4, 5}, right = {2, 3, 6, 7};
            const four ab = __builtin_shuffle(a, b, low), de = __builtin_shuffle(d, e, low);
            const four ba = __builtin_shuffle(a, b, high), ed = __builtin_shuffle(d, e, high);
            float *to = panel + k * PANEL + c;
            *(four *)to = __builtin_shuffle(ab, de, left);
            *(four *)(to + PANEL) = __builtin_shuffle(ab, de, right);
            *(four *)(to + 2 * PANEL) = __builtin_shuffle(ba, ed, left);
            *(four *)(to + 3 * PANEL) = __builtin_shuffle(ba, ed, right);
        }
    for (int64_t c = 0; c < some; c++)
        for (int64_t k = c < whole ? wide : 0; k < width; k++) panel[k * PANEL + c] = from[c * width + k];
}

/* best [threads, rows], which starts as minus infinity: the maximum over those of a thread of q [rows, width] times keys
 * [count, width]. At most WIDEST wide. */
void npt_largest(const float *q, const int64_t rows, const int64_t width, const float *keys, const int64_t count,
                 float *best, const int32_t threads) {
#pragma omp parallel num_threads(threads)
    {
        float *mine = best + omp_get_thread_num() * rows;
        float panel[PANEL * WIDEST], scores[TILE_ROWS * PANEL];
#pragma omp for schedule(static)
        for (int64_t first = 0; first < count; first += PANEL) {
            const int64_t some = count - first < PANEL ? count - first : PANEL;
            transpose(keys + first * width, some, width, panel);
            for (int64_t row = 0; row < rows; row += TILE_ROWS) {
                const int n = rows - row < TILE_ROWS ? rows - row : TILE_ROWS;
                tiles(n, q + row * width, width, panel, width, scores, PANEL, 1);
                for (int r = 0; r < n; r++) {
                    float most = mine[row + r];
#pragma omp simd reduction(max : most)
                    for (int64_t c = 0; c < some; c++)
                        most = scores[r * PANEL + c] > most ? scores[r * PANEL + c] : most;
                    mine[row + r] = most;
                }
            }
        }
    }
}

int32_t npt_widest(void) { return WIDEST; }

/* e^x within 2 units in the last place; x above 88 counts as 88. After Cephes (S. Moshier), `expf`. */
static inline __attribute__((always_inline)) float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number */
    const float n = (x * 1.44269504088896341f + magic) - magic;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return p * power;
}

static inline __attribute__((always_inline)) float dot(const float *a, const float *b, const int64_t n) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* Rows that attend together: `count` consecutive tokens of a sequence, the last of which looks at `length` tokens, in
 * pages of `page` slots, with `slot` floats from one to the next, and `row` floats from a query to the next. */
struct view {
    const float *keys, *values;
    const int32_t *pages;
    int64_t count, length, page, slot, row;
};

/* The first row that looks at token `t`. */
static inline int64_t first_row(const struct view at, const int64_t t) {
    const int64_t first = t - at.length + at.count;
    return first < 0 ? 0 : first;
}

/* Heads of each row, `groups` of which share each of `kv_heads` keys and values: out = softmax(scale q k) v. `scores` has
 * room for [rows, heads, length]. Keys are read once for all rows, in the order they lie in; what a row adds up,
 * and in which order, does not depend on the others. */
static inline __attribute__((always_inline)) void attend_rows(const float *q, const struct view at,
                                                              const int64_t kv_heads, const int64_t groups,
                                                              const int64_t width, const float scale,
                                                              float *scores, float *out) {
    const int64_t heads = kv_heads * groups;
    for (int64_t t = 0; t < at.length; t++) {
        const float *k = at.keys + (at.pages[t / at.page] * at.page + t % at.page) * at.slot;
        for (int64_t r = first_row(at, t); r < at.count; r++)
            for (int64_t shared = 0; shared < kv_heads; shared++)
                for (int64_t h = shared * groups; h < (shared + 1) * groups; h++)
                    scores[(r * heads + h) * at.length + t] =
                        scale * dot(q + r * at.row + h * width, k + shared * width, width);
    }
    for (int64_t r = 0; r < at.count; r++) {
        const int64_t length = at.length - at.count + 1 + r;
        memset(out + r * at.row, 0, 4 * heads * width);
        for (int64_t h = 0; h < heads; h++) {
            float *score = scores + (r * heads + h) * at.length, most = -INFINITY, sum = 0.0f;
            for (int64_t t = 0; t < length; t++) most = score[t] > most ? score[t] : most;
#pragma omp simd reduction(+ : sum)
            for (int64_t t = 0; t < length; t++) {
                score[t] = exponential(score[t] - most);
                sum += score[t];
            }
            const float share = 1.0f / sum;
#pragma omp simd
            for (int64_t t = 0; t < length; t++) score[t] *= share;
        }
    }
    for (int64_t t = 0; t < at.length; t++) {
        const float *v = at.values + (at.pages[t / at.page] * at.page + t % at.page) * at.slot;
        for (int64_t r = first_row(at, t); r < at.count; r++)
            for (int64_t shared = 0; shared < kv_heads; shared++)
                for (int64_t h = shared * groups; h < (shared + 1) * groups; h++) {
                    const float *value = v + shared * width, share = scores[(r * heads + h) * at.length + t];
                    float *to = out + r * at.row + h * width;
#pragma omp simd
                    for (int64_t i = 0; i < width; i++) to[i] += share * value[i];
                }
    }
}

/* The usual widths are known when this is compiled, which makes it three times as fast. */
static void attend_rows_of(const float *q, const struct view at, const int64_t kv_heads, const int64_t groups,
                           const int64_t width, const float scale, float *scores, float *out) {
    switch (width) {
    case 64: attend_rows(q, at, kv_heads, groups, 64, scale, scores, out); break;
    case 128: attend_rows(q, at, kv_heads, groups, 128, scale, scores, out); break;
    default: attend_rows(q, at, kv_heads, groups, width, scale, scores, out);
    }
}

int32_t npt_together(void) { return TOGETHER; }

/* Rotary embedding: to[i] = x[i] cos[i] + x[i + half] sin[i], with the sine signed. */
static inline void rotate(const float *x, const float *cosine, const float *sine, const int64_t half, float *to) {
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        to[i] = x[i] * cosine[i] + x[i + half] * sine[i];
        to[i + half] = x[i + half] * cosine[i + half] + x[i] * sine[i + half];
    }
}

/* What all rows of a batch attend by. Row i is at `positions[i]`, its key and value go to slot `slots[i]`, and it
 * attends to `lengths[i]` tokens in the pages from `pages[starts[i]]` on; `cosines` and `sines` are [positions, width]. */
struct batch {
    const float *cosines, *sines;
    const int64_t *positions, *slots, *starts, *lengths;
    const int32_t *pages;
    int64_t rows, heads, kv_heads, width, page;
    float scale;
};

/* Of qkv [heads + 2 kv_heads, width] of a row the queries are rotated to q [heads, width], the keys into their slot
 * of keys [slots, kv_heads, width], and the values copied into theirs. */
static void place(const float *qkv, const struct batch *by, const int64_t row, float *q, float *keys,
                  float *values) {
    const int64_t width = by->width, half = width / 2, slot = by->slots[row] * by->kv_heads * width;
    const float *cosine = by->cosines + by->positions[row] * width, *sine = by->sines + by->positions[row] * width;
    for (int64_t h = 0; h < by->heads; h++) rotate(qkv + h * width, cosine, sine, half, q + h * width);
    for (int64_t h = 0; h < by->kv_heads; h++)
        rotate(qkv + (by->heads + h) * width, cosine, sine, half, keys + slot + h * width);
    memcpy(values + slot, qkv + (by->heads + by->kv_heads) * width, 4 * by->kv_heads * width);
}

/* Whether `row` is the next token of the sequence of the row before it, which takes it along: up to TOGETHER tokens
 * attend at once. */
static int taken_along(const struct batch *by, const int64_t row) {
    const int64_t *starts = by->starts, *lengths = by->lengths;
    return row > 0 && lengths[row] % TOGETHER && starts[row] == starts[row - 1] && lengths[row] == lengths[row - 1] + 1;
}

/* The heads of `part` keys, from `first` on, of `row` and of the tokens that attend together with it: of q
 * [rows, heads, width] to out of that shape. */
static void attend(const float *q, const struct batch *by, const int64_t row, const int64_t first,
                   const int64_t part, const float *keys, const float *values, float *scores, float *out) {
    if (taken_along(by, row)) return;
    int64_t last = row;
    while (last + 1 < by->rows && taken_along(by, last + 1)) last++;
    const int64_t width = by->width, groups = by->heads / by->kv_heads;
    const struct view at = {keys + first * width,    values + first * width,
                            by->pages + by->starts[row], last - row + 1,
                            by->lengths[last],       by->page,
                            by->kv_heads * width,    by->heads * width};
    const int64_t offset = (row * by->heads + first * groups) * width;
    attend_rows_of(q + offset, at, part, groups, width, by->scale, scores, out + offset);
}

/* n [rows, in] times `projection` is qkv [rows, heads + 2 kv_heads, width]; keys and values go into their slots of
 * keys and values [slots, kv_heads, width], and out [rows, heads, width] is what the queries, rotated to q of that
 * shape, attend to. `scratch` is [threads, room], with room for the scores of TOGETHER rows. */
void npt_attention(const float *n, const int64_t in, const struct matrix *projection, const struct batch *by,
                   float *qkv, float *q, float *keys, float *values, float *scratch, const int64_t room, float *out,
                   const int32_t threads) {
    const int64_t rows = by->rows;
    /* Few rows are shared among threads by heads, many whole: memory is read faster so. */
    const int64_t parts = rows < 2 * threads ? by->kv_heads : 1, part = by->kv_heads / parts;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t first = 0; first < projection->out; first += PANEL)
            columns(n, in, rows, in, *projection, first, qkv);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++)
            place(qkv + row * projection->out, by, row, q + row * by->heads * by->width, keys, values);
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < rows * parts; item++)
            attend(q, by, item / parts, item % parts * part, part, keys, values,
                   scratch + omp_get_thread_num() * room, out);
    }
}

/* total = x + y (y may be missing: total is not written then), normed = total / rms(total) * gain;
 * all [rows, d]. */
void npt_norm(const float *x, const float *y, const float *gain, const float epsilon, const int64_t rows,
              const int64_t d, float *total, float *normed) {
    for (int64_t row = 0; row < rows; row++) {
        const float *in = x + row * d;
        float *out = normed + row * d;
        if (y) {
            float *sum = total + row * d;
            const float *add = y + row * d;
#pragma omp simd
            for (int64_t i = 0; i < d; i++) sum[i] = in[i] + add[i];
            in = sum;
        }
        const float scale = 1.0f / sqrtf(dot(in, in, d) / d + epsilon);
#pragma omp simd
        for (int64_t i = 0; i < d; i++) out[i] = in[i] * scale * gain[i];
    }
}

/* z [n] = silu(g (1 + s mult) + s add) up; `add` or `mult` or both may be missing. */
static inline void gate_row(const float *g, const float *up, const float *add, const float *mult, const float s,
                            const int64_t n, float *z) {
    if (mult) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) z[i] = g[i] * (1.0f + s * mult[i]);
    } else {
        memcpy(z, g, 4 * n);
    }
    if (add) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) z[i] += s * add[i];
    }
#pragma omp simd
    for (int64_t i = 0; i < n; i++) z[i] = z[i] / (1.0f + exponential(-z[i])) * up[i];
}

/* z [rows, n] by rows of g, up, add and mult, each with rows of its own length; `scales` [rows] may be missing:
 * s is 1 then. */
void npt_gate(const float *g, const int64_t g_row, const float *up, const int64_t up_row, const float *add,
              const float *mult, const int64_t modulation_row, const float *scales, const int64_t rows,
              const int64_t n, float *z, const int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * n > LITTLE)
    for (int64_t row = 0; row < rows; row++)
        gate_row(g + row * g_row, up + row * up_row, add ? add + row * modulation_row : 0,
                 mult ? mult + row * modulation_row : 0, scales ? scales[row] : 1.0f, n, z + row * n);
}

/* z [rows, ffn] as npt_gate makes it of products, in one go, with their very numbers: g and up, side by side, are
 * n [rows, in] times `gate_up` [in, 2 ffn]; of `low` = a [rows, wide] times `down` [wide, rank], which goes to a
 * scratch [rows, rank], times `modulate`, `add` is the first part, if there is one, and `mult` the last. Panels must
 * not reach over two parts: ffn is a multiple of PANEL. */
void npt_neurons(const float *n, const int64_t rows, const int64_t in, const struct matrix *gate_up, const float *a,
                 const int64_t wide, const struct matrix *down, const struct matrix *modulate, const int32_t adds,
                 const int32_t multiplies, const float *scales, float *low, const int64_t ffn, float *z,
                 const int32_t threads) {
#pragma omp parallel num_threads(threads) if (rows * in * ffn > LITTLE)
    {
        if (adds || multiplies) {
#pragma omp for schedule(static)
            for (int64_t first = 0; first < down->out; first += PANEL)
                columns(a, wide, rows, wide, *down, first, low);
        }
        float parts[4][GROUP * PANEL];
#pragma omp for schedule(static)
        for (int64_t column = 0; column < ffn; column += PANEL)
            for (int64_t row = 0; row < rows; row += GROUP) {
                const int64_t some = rows - row < GROUP ? rows - row : GROUP;
                part(n + row * in, some, in, *gate_up, column, parts[0]);
                part(n + row * in, some, in, *gate_up, ffn + column, parts[1]);
                const float *by = low + row * (down ? down->out : 0);
                if (adds) part(by, some, down->out, *modulate, column, parts[2]);
                if (multiplies) part(by, some, down->out, *modulate, (adds ? ffn : 0) + column, parts[3]);
                for (int64_t r = 0; r < some; r++)
                    gate_row(parts[0] + r * PANEL, parts[1] + r * PANEL, adds ? parts[2] + r * PANEL : 0,
                             multiplies ? parts[3] + r * PANEL : 0, scales ? scales[row + r] : 1.0f, PANEL,
                             z + (row + r) * ffn + column);
            }
    }
}
