/* cblas_sgemm for MLX on a Linux CPU, whose wheel has the reference BLAS.
 *
 * Products of many rows are passed to numpy's OpenBLAS. For one or a few, as in decoding, a plain
 * loop reads the matrix at memory bandwidth, while OpenBLAS packs it first. The third kind is the
 * product with a 4-bit matrix, which MLX itself computes one code at a time. MLX calls no other
 * function of this library, so a special `alpha` selects it.
 *
 * Do not compile with -ffast-math: GCC before 13 links such a library with code that flushes
 * denormals in the whole process.
 */

enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112 };

/* Up to so many rows a plain loop is faster than OpenBLAS, which packs the matrix first. */
enum { FEW_ROWS = 8 };

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

/* c += alpha a b^T: a (k), b (k), c (1). */
static inline void dot(int k, float alpha, const float *a, const float *b, float *c) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int j = 0; j < k; j++) sum += b[j] * a[j];
  *c += alpha * sum;
}

/* The same for four rows of b, to read a less often: b (4, k), c (4). */
static inline void four_dots(int k, float alpha, const float *a, const float *b, long ldb,
                             float *c) {
  float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
  for (int j = 0; j < k; j++) {
    s0 += b[j] * a[j];
    s1 += b[j + ldb] * a[j];
    s2 += b[j + 2 * ldb] * a[j];
    s3 += b[j + 3 * ldb] * a[j];
  }
  c[0] += alpha * s0, c[1] += alpha * s1, c[2] += alpha * s2, c[3] += alpha * s3;
}

/* The same for two rows of a as well: a (2, k), c (2, 4). */
static inline void eight_dots(int k, float alpha, const float *a, long lda, const float *b,
                              long ldb, float *c, long ldc) {
  float s0 = 0, s1 = 0, s2 = 0, s3 = 0, t0 = 0, t1 = 0, t2 = 0, t3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3, t0, t1, t2, t3)
  for (int j = 0; j < k; j++) {
    s0 += b[j] * a[j], t0 += b[j] * a[j + lda];
    s1 += b[j + ldb] * a[j], t1 += b[j + ldb] * a[j + lda];
    s2 += b[j + 2 * ldb] * a[j], t2 += b[j + 2 * ldb] * a[j + lda];
    s3 += b[j + 3 * ldb] * a[j], t3 += b[j + 3 * ldb] * a[j + lda];
  }
  c[0] += alpha * s0, c[1] += alpha * s1, c[2] += alpha * s2, c[3] += alpha * s3;
  c += ldc;
  c[0] += alpha * t0, c[1] += alpha * t1, c[2] += alpha * t2, c[3] += alpha * t3;
}

/* c += alpha a b^T: a (m, k), b (n, k), c (m, n); b is read from memory once. */
static void rows_by_rows(int m, int n, int k, float alpha, const float *a, long lda,
                         const float *b, long ldb, float *c, long ldc) {
  int i = 0;
  for (; i + 4 <= n; i += 4, b += 4 * ldb) {
    int r = 0;
    for (; r + 2 <= m; r += 2) eight_dots(k, alpha, a + r * lda, lda, b, ldb, c + r * ldc + i, ldc);
    if (r < m) four_dots(k, alpha, a + r * lda, b, ldb, c + r * ldc + i);
  }
  for (; i < n; i++, b += ldb)
    for (int r = 0; r < m; r++) dot(k, alpha, a + r * lda, b, c + r * ldc + i);
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
#define INT4 static inline __attribute__((always_inline)) void
#define CODE(j, p) (float)(codes[j] >> 4 * (p) & 15)

/* c = a W^T: a (rows, 8 words), c (rows, n). Each lane of a vector sums one word of every group. */
INT4 rows_by_int4(const int rows, int n, int words, const int lanes, const float *a,
                  const int *codes, float *c) {
  const int groups = words / lanes;
  const float *scales = (const float *)codes + (long)n * words, *biases = scales + (long)n * groups;
  float planes[rows][8][words], sums[rows][groups];
  for (int r = 0; r < rows; r++, a += 8 * words) {
    for (int g = 0; g < groups; g++) sums[r][g] = 0;
    for (int j = 0; j < 8 * words; j++) {
      planes[r][j % 8][j / 8] = a[j];
      sums[r][j / 8 / lanes] += a[j];
    }
  }
  for (int i = 0; i < n; i++, codes += words, scales += groups, biases += groups) {
    float lane[rows][16], sum[rows];
    for (int r = 0; r < rows; r++) {
      sum[r] = 0;
      for (int l = 0; l < lanes; l++) lane[r][l] = 0;
    }
    for (int g = 0; g < groups; g++) {
#pragma omp simd
      for (int l = 0; l < lanes; l++) {
        const int j = g * lanes + l;
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
          lane[r][l] += scales[g] * (CODE(j, 0) * planes[r][0][j] + CODE(j, 1) * planes[r][1][j] +
                                     CODE(j, 2) * planes[r][2][j] + CODE(j, 3) * planes[r][3][j] +
                                     CODE(j, 4) * planes[r][4][j] + CODE(j, 5) * planes[r][5][j] +
                                     CODE(j, 6) * planes[r][6][j] + CODE(j, 7) * planes[r][7][j]);
      }
      for (int r = 0; r < rows; r++) sum[r] += biases[g] * sums[r][g];
    }
    for (int r = 0; r < rows; r++) {
      for (int l = 0; l < lanes; l++) sum[r] += lane[r][l];
      c[(long)r * n + i] = sum[r];
    }
  }
}

/* c = W: c (n, 8 words). */
INT4 dequantise(int n, int words, const int lanes, const int *codes, float *c) {
  const long groups = (long)n * words / lanes;
  const float *scales = (const float *)codes + groups * lanes, *biases = scales + groups;
  for (long g = 0; g < groups; g++)
    for (int j = 0; j < lanes; j++, codes++, c += 8)
#pragma omp simd
      for (int p = 0; p < 8; p++) c[p] = scales[g] * CODE(0, p) + biases[g];
}

/* With k = 1, an outer product, W is at a and c = W; else W is at b and a has m rows of 8 k. */
INT4 int4(int m, int n, int k, const int lanes, const float *a, const float *b, float *c) {
  const int *codes = (const int *)b;
  if (k == 1)
    dequantise(m, n / 8, lanes, (const int *)a, c);
  else {
    for (; m >= 4; m -= 4, a += 32 * k, c += 4 * n) rows_by_int4(4, n, k, lanes, a, codes, c);
    for (; m >= 2; m -= 2, a += 16 * k, c += 2 * n) rows_by_int4(2, n, k, lanes, a, codes, c);
    if (m) rows_by_int4(1, n, k, lanes, a, codes, c);
  }
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
    else
      rows_by_rows(m, n, k, alpha, a, lda, b, ldb, c, ldc);
  }
}
