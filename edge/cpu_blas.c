/* cblas_sgemm for MLX on a Linux CPU, whose wheel has the reference BLAS.
 *
 * Products of many rows are passed to numpy's OpenBLAS. For one or a few, as in decoding, a loop
 * reads the matrix at memory bandwidth, while OpenBLAS packs it first. The third kind is the
 * product with a 4-bit matrix, which MLX itself computes one code at a time. MLX calls no other
 * function of this library, so a special `alpha` selects it.
 *
 * Do not compile with -ffast-math: GCC before 13 links such a library with code that flushes
 * denormals in the whole process.
 */

enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112 };

/* Few are up to FEW_ROWS rows. A block of them is multiplied by COLUMNS rows of the matrix, TILE
 * numbers of each at a time, so that all of these stay in the first cache. */
#ifdef __AVX512F__
enum { LANES = 16, BLOCK = 4 };
#else
enum { LANES = 8, BLOCK = 2 };
#endif
enum { FEW_ROWS = 16, COLUMNS = 4, TILE = 1024 };
#define VECTOR(type, count) type __attribute__((vector_size(4 * (count)), aligned(4), may_alias))
typedef VECTOR(float, LANES) floats;
typedef VECTOR(int, LANES) ints;
typedef VECTOR(float, 4) four_floats;

#define INLINE static inline __attribute__((always_inline))

/* An alpha of INT4_ALPHA times the group size, which no network uses, selects the 4-bit product. */
static const float INT4_ALPHA = 0x1p100f;

/* Number of products: Python checks with it that MLX calls this library. */
long edge_products;

/* OpenBLAS's cblas_sgemm with 64-bit integers, set by Python: this library is loaded globally, and
 * linking it to OpenBLAS would make all of OpenBLAS's functions global too. */
void (*edge_openblas_sgemm)(int, int, int, long, long, long, float, const float *, long,
                            const float *, long, float, float *, long);

/* c = beta c; c may be uninitialised if beta is 0. */
static void scale(int n, float beta, float *c) {
  for (int i = 0; i < n; i++) c[i] = beta ? beta * c[i] : 0;
}

/* c += alpha a b^T: a (k), b (n, k), c (n). Four rows at a time, to read a less often. */
static void row_by_rows(int n, int k, float alpha, const float *a, const float *b, long ldb,
                        float *c) {
  int i = 0;
  for (; i + 4 <= n; i += 4, b += 4 * ldb) {
    float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int j = 0; j < k; j++) {
      s0 += b[j] * a[j];
      s1 += b[j + ldb] * a[j];
      s2 += b[j + 2 * ldb] * a[j];
      s3 += b[j + 3 * ldb] * a[j];
    }
    c[i] += alpha * s0, c[i + 1] += alpha * s1, c[i + 2] += alpha * s2, c[i + 3] += alpha * s3;
  }
  for (; i < n; i++, b += ldb) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int j = 0; j < k; j++) sum += b[j] * a[j];
    c[i] += alpha * sum;
  }
}

/* sums += a b^T by lanes: a (rows, k), b (columns, k), sums (rows, COLUMNS). */
INLINE void block(const int rows, const int columns, int k, const float *a, long lda,
                  const float *b, long ldb, floats *sums) {
  floats held[rows][columns];
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < columns; i++) held[r][i] = sums[r * COLUMNS + i];
  for (int j = 0; j < k; j += LANES)
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
      for (int i = 0; i < columns; i++)
        held[r][i] += *(const floats *)(a + r * lda + j) * *(const floats *)(b + i * ldb + j);
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < columns; i++) sums[r * COLUMNS + i] = held[r][i];
}

/* The same for any number of rows and up to COLUMNS columns. */
static void dots(int m, int columns, int k, const float *a, long lda, const float *b, long ldb,
                 floats *sums) {
  int r = 0;
  if (columns < COLUMNS)
    for (; r < m; r++)
      for (int i = 0; i < columns; i++)
        block(1, 1, k, a + r * lda, lda, b + i * ldb, ldb, sums + r * COLUMNS + i);
  for (; r + BLOCK <= m; r += BLOCK)
    block(BLOCK, COLUMNS, k, a + r * lda, lda, b, ldb, sums + r * COLUMNS);
  for (; r < m; r++) block(1, COLUMNS, k, a + r * lda, lda, b, ldb, sums + r * COLUMNS);
}

/* The sum of the lanes. */
INLINE float total(floats sums) {
  four_floats sum = {0};
#pragma GCC unroll 4
  for (int i = 0; i < LANES / 4; i++) sum += ((const four_floats *)&sums)[i];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* c += alpha a b^T: a (m, k), b (n, k), c (m, n); b is read from memory once. */
static void rows_by_rows(int m, int n, int k, float alpha, const float *a, long lda,
                         const float *b, long ldb, float *c, long ldc) {
  const int whole = k / LANES * LANES;
  for (int i = 0; i < n; i += COLUMNS, b += COLUMNS * ldb) {
    const int columns = n - i < COLUMNS ? n - i : COLUMNS;
    floats sums[FEW_ROWS * COLUMNS];
    for (int r = 0; r < m * COLUMNS; r++) sums[r] = (floats){0};
    for (int j = 0; j < whole; j += TILE)
      dots(m, columns, whole - j < TILE ? whole - j : TILE, a + j, lda, b + j, ldb, sums);
    for (int r = 0; r < m; r++)
      for (int q = 0; q < columns; q++) {
        float sum = total(sums[r * COLUMNS + q]);
        for (int j = whole; j < k; j++) sum += a[r * lda + j] * b[q * ldb + j];
        c[r * ldc + i + q] += alpha * sum;
      }
  }
}

/* c += alpha a b: a (k), b (k, n), c (n). Four rows of b at a time, to write c less often. */
static void row_by_columns(int n, int k, float alpha, const float *a, const float *b, long ldb,
                           float *c) {
  int j = 0;
  for (; j + 4 <= k; j += 4, b += 4 * ldb)
#pragma omp simd
    for (int i = 0; i < n; i++)
      c[i] += alpha * (a[j] * b[i] + a[j + 1] * b[i + ldb] + a[j + 2] * b[i + 2 * ldb] +
                       a[j + 3] * b[i + 3 * ldb]);
  for (; j < k; j++, b += ldb)
    for (int i = 0; i < n; i++) c[i] += alpha * a[j] * b[i];
}

/* A 4-bit matrix (n, 8 words) as mx.quantize packs it: word j of a row has codes 8 j to 8 j + 7,
 * lowest bits first, and `lanes` words share a scale and a bias. Codes, scales and biases follow
 * one another in memory. The functions are inlined so that `lanes` is a constant: otherwise GCC
 * does not vectorise them. */
enum { WORDS = TILE / 8 };
#define CODE(j, p) (float)(codes[j] >> 4 * (p) & 15)

/* c = a W^T: a (8 words), c (n). Each lane of a vector sums one word of every group. */
INLINE void row_by_int4(int n, int words, const int lanes, const float *a, const int *codes,
                        float *c) {
  const int groups = words / lanes;
  const float *scales = (const float *)codes + (long)n * words, *biases = scales + (long)n * groups;
  float planes[8][words], sums[groups];
  for (int g = 0; g < groups; g++) sums[g] = 0;
  for (int j = 0; j < 8 * words; j++) {
    planes[j % 8][j / 8] = a[j];
    sums[j / 8 / lanes] += a[j];
  }
  for (int i = 0; i < n; i++, codes += words, scales += groups, biases += groups) {
    float lane[16] = {0}, sum = 0;
    for (int g = 0; g < groups; g++) {
#pragma omp simd
      for (int l = 0; l < lanes; l++) {
        const int j = g * lanes + l;
        lane[l] += scales[g] * (CODE(j, 0) * planes[0][j] + CODE(j, 1) * planes[1][j] +
                                CODE(j, 2) * planes[2][j] + CODE(j, 3) * planes[3][j] +
                                CODE(j, 4) * planes[4][j] + CODE(j, 5) * planes[5][j] +
                                CODE(j, 6) * planes[6][j] + CODE(j, 7) * planes[7][j]);
      }
      sum += biases[g] * sums[g];
    }
    for (int l = 0; l < lanes; l++) sum += lane[l];
    c[i] = sum;
  }
}

/* c (8, words) = some words of a row of W. */
INLINE void decode(int words, const int lanes, const int *codes, const float *scales,
                   const float *biases, float *c) {
  float s[WORDS], b[WORDS];
  for (int g = 0; g < words / lanes; g++)
    for (int l = 0; l < lanes; l++) s[g * lanes + l] = scales[g], b[g * lanes + l] = biases[g];
  int j = 0;
  for (; j + LANES <= words; j += LANES)
#pragma GCC unroll 8
    for (int p = 0; p < 8; p++) {
      const ints code = *(const ints *)(codes + j) >> 4 * p & 15;
      *(floats *)(c + p * words + j) =
          __builtin_convertvector(code, floats) * *(floats *)(s + j) + *(floats *)(b + j);
    }
  for (; j < words; j++)
    for (int p = 0; p < 8; p++) c[p * words + j] = CODE(j, p) * s[j] + b[j];
}

/* c = a W^T: a (m, 8 words), c (m, n). A tile of COLUMNS rows of W at a time is decoded. */
INLINE void rows_by_int4(int m, int n, int words, const int lanes, const float *a,
                         const int *codes, float *c) {
  const int groups = words / lanes;
  const float *scales = (const float *)codes + (long)n * words, *biases = scales + (long)n * groups;
  float planes[m][8 * words], w[COLUMNS][TILE];
  for (int r = 0; r < m; r++)
    for (int t = 0; t < words; t += WORDS) {
      const int some = words - t < WORDS ? words - t : WORDS;
      for (int j = 0; j < some; j++)
        for (int p = 0; p < 8; p++) planes[r][8 * t + p * some + j] = *a++;
    }
  for (int i = 0; i < n; i += COLUMNS) {
    const int columns = n - i < COLUMNS ? n - i : COLUMNS;
    floats sums[FEW_ROWS * COLUMNS];
    for (int r = 0; r < m * COLUMNS; r++) sums[r] = (floats){0};
    for (int t = 0; t < words; t += WORDS) {
      const int some = words - t < WORDS ? words - t : WORDS;
      for (int q = 0; q < columns; q++) {
        const long row = i + q, group = row * groups + t / lanes;
        decode(some, lanes, codes + row * words + t, scales + group, biases + group, w[q]);
      }
      dots(m, columns, 8 * some, planes[0] + 8 * t, 8 * words, w[0], TILE, sums);
    }
    for (int r = 0; r < m; r++)
      for (int q = 0; q < columns; q++) c[(long)r * n + i + q] = total(sums[r * COLUMNS + q]);
  }
}

/* c = W: c (n, 8 words). */
INLINE void dequantise(int n, int words, const int lanes, const int *codes, float *c) {
  const long groups = (long)n * words / lanes;
  const float *scales = (const float *)codes + groups * lanes, *biases = scales + groups;
  for (long g = 0; g < groups; g++)
    for (int j = 0; j < lanes; j++, codes++, c += 8)
#pragma omp simd
      for (int p = 0; p < 8; p++) c[p] = scales[g] * CODE(0, p) + biases[g];
}

/* With k = 1, an outer product, W is at a and c = W; else W is at b and a has m rows of 8 k. */
INLINE void int4(int m, int n, int k, const int lanes, const float *a, const float *b, float *c) {
  if (k == 1)
    dequantise(m, n / 8, lanes, (const int *)a, c);
  else if (m == 1)
    row_by_int4(n, k, lanes, a, (const int *)b, c);
  else
    for (; m > 0; m -= FEW_ROWS, a += FEW_ROWS * 8l * k, c += FEW_ROWS * (long)n)
      rows_by_int4(m < FEW_ROWS ? m : FEW_ROWS, n, k, lanes, a, (const int *)b, c);
}

void cblas_sgemm(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a,
                 int lda, const float *b, int ldb, float beta, float *c, int ldc) {
  edge_products++;
  if (alpha == INT4_ALPHA * 32)
    int4(m, n, k, 4, a, b, c);
  else if (alpha == INT4_ALPHA * 64)
    int4(m, n, k, 8, a, b, c);
  else if (alpha == INT4_ALPHA * 128)
    int4(m, n, k, 16, a, b, c);
  else if (order != ROW_MAJOR || ta != NO_TRANS ||
           (tb == TRANS ? m > FEW_ROWS : m > 1 || tb != NO_TRANS))
    edge_openblas_sgemm(order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  else {
    for (int r = 0; r < m; r++) scale(n, beta, c + (long)r * ldc);
    if (tb == NO_TRANS)
      row_by_columns(n, k, alpha, a, b, ldb, c);
    else if (m == 1)
      row_by_rows(n, k, alpha, a, b, ldb, c);
    else
      rows_by_rows(m, n, k, alpha, a, lda, b, ldb, c, ldc);
  }
}
