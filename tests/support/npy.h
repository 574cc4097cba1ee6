/* npy.h: reads the golden NumPy arrays. For tests: whatever is wrong prints a message and aborts.
 */
#ifndef GLMD_TESTS_SUPPORT_NPY_H
#define GLMD_TESTS_SUPPORT_NPY_H

#include <stddef.h>
#include <stdint.h>

enum { NPY_MAX_DIMS = 6 };

/* float16 is read as its bits. */
enum npy_type { NPY_F32, NPY_F16, NPY_U8, NPY_I8 };

struct npy {
    enum npy_type type;
    size_t n_dims;
    size_t shape[NPY_MAX_DIMS]; /* row-major */
    size_t n;                   /* product of shape */
    union {
        void *data; /* owned; free with npy_deinit */
        float *f32;
        uint16_t *f16;
        uint8_t *u8;
        int8_t *i8;
    };
};

/* Loads GLMD_SOURCE_DIR/tests/golden/<name> ("glm130b/quant/w.npy"), which must be of the type. */
void npy_load_golden(struct npy *a, const char *name, enum npy_type type);
/* The same for any path. */
void npy_load(struct npy *a, const char *path, enum npy_type type);
void npy_deinit(struct npy *a);

/* GLMD_SOURCE_DIR/tests/golden/<name>, malloc'd. */
char *golden_path(const char *name);

/* GLMD_SOURCE_DIR, or the working directory when it is not set. */
const char *source_dir(void);

#endif
