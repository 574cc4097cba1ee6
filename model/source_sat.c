/* source_sat.c: see source_sat.h. Opening and checking; sat_read.c reads tensors. */
#include "model/source_sat.h"

#include <assert.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "model/checksum.h"
#include "model/file.h"
#include "model/safetensors.h"
#include "model/source_sat_internal.h"

static const char embedding_name[] = "transformer.word_embeddings.weight";
static const char layers_prefix[] = "transformer.layers.";
static const char file_prefix[] = "mp_rank_", file_suffix[] = "_model_states.pt";

const char *sat_path(const struct sat_source *s)
{
    return s->path;
}

const struct sat_info *sat_info(const struct sat_source *s)
{
    return &s->info;
}

/* The iteration folder's name: the first line of `latest`. */
static int read_latest(struct sat_source *s, struct err *e)
{
    struct buf text = {0};
    char *path = file_join(s->path, "latest");
    if (!path)
        return err_set(e, -ENOMEM, "%s: out of memory", s->path);
    int r = file_read_all(path, 4096, &text, e);
    if (r == -ENOENT)
        r = err_set(e, -ENOENT,
                    "%s: missing: expected the folder that holds `latest` and the folder of the "
                    "iteration",
                    path);
    if (r == 0) {
        size_t n = strcspn(text.data, "\r\n");
        text.data[n] = '\0';
        if (!st_name_ok(text.data) || text.data[0] == '.')
            r = err_set(e, -EINVAL,
                        "%s: expected the name of an iteration folder ([A-Za-z0-9._-], not "
                        "starting with a dot), found \"%.64s\"",
                        path, text.data);
        else
            memcpy(s->info.iteration, text.data, n + 1);
    }
    free(path);
    buf_deinit(&text);
    return r;
}

/* "mp_rank_03_model_states.pt" -> 3; -1 for any other name. */
static int shard_of_name(const char *name)
{
    size_t n = strlen(name);
    if (n <= sizeof file_prefix - 1 + sizeof file_suffix - 1 ||
        strncmp(name, file_prefix, sizeof file_prefix - 1) != 0 ||
        strcmp(name + n - (sizeof file_suffix - 1), file_suffix) != 0)
        return -1;
    const char *p = name + sizeof file_prefix - 1;
    size_t digits = n - (sizeof file_prefix - 1) - (sizeof file_suffix - 1);
    int rank = 0;
    if (digits < 2 || digits > 4)
        return -1;
    for (size_t i = 0; i < digits; i++) {
        if (p[i] < '0' || p[i] > '9')
            return -1;
        rank = rank * 10 + (p[i] - '0');
    }
    return rank;
}

/* Finds the shards' files: ranks 0..n-1 without a gap. */
static int find_shards(struct sat_source *s, const char *folder, struct err *e)
{
    DIR *dir = opendir(folder);
    if (!dir)
        return err_set(e, -errno, "%s: cannot open the iteration folder that `latest` names: %s",
                       folder, err_name(-errno));
    int r = 0;
    size_t n = 0, end = 0;
    const struct dirent *entry;
    while ((entry = readdir(dir)) && r == 0) { /* NOLINT: only this thread reads this stream */
        int rank = shard_of_name(entry->d_name);
        if (rank < 0)
            continue;
        if (rank >= SAT_MAX_SHARDS || s->shards[rank].path) {
            r = err_set(e, -EINVAL, "%s: file %.64s: expected ranks 0 to %d, each once", folder,
                        entry->d_name, SAT_MAX_SHARDS - 1);
            break;
        }
        s->shards[rank].path = file_join(folder, entry->d_name);
        if (!s->shards[rank].path)
            r = err_set(e, -ENOMEM, "%s: out of memory", folder);
        n++;
        end = MAX(end, (size_t)rank + 1);
    }
    closedir(dir);
    if (r < 0)
        return r;
    if (n == 0)
        return err_set(e, -ENOENT, "%s: expected files mp_rank_XX_model_states.pt, found none",
                       folder);
    for (size_t i = 0; i < end; i++) {
        if (!s->shards[i].path)
            return err_set(e, -ENOENT,
                           "%s: mp_rank_%02zu_model_states.pt is missing, but there are higher "
                           "ranks: is the download complete?",
                           folder, i);
    }
    s->info.n_shards = (uint32_t)end;
    return 0;
}

/* Ties each tensor to the archive entry of its storage. */
static int find_storages(struct sat_shard *shard, struct err *e)
{
    shard->storages = alloc_array(shard->table.n, sizeof(const struct torchzip_entry *));
    if (!shard->storages)
        return err_set(e, -ENOMEM, "%s: out of memory", shard->path);
    for (size_t i = 0; i < shard->table.n; i++) {
        const struct pickle_tensor *t = &shard->table.tensors[i];
        char name[sizeof "data/" + PICKLE_MAX_KEY_BYTES];
        snprintf(name, sizeof name, "data/%s", t->key);
        const struct torchzip_entry *entry = torchzip_find(&shard->zip, name);
        uint64_t bytes;
        if (!entry)
            return err_set(e, -EBADMSG, "%s: tensor \"%s\": entry %s is missing", shard->path,
                           t->name, name);
        if (__builtin_mul_overflow(t->storage_n, pickle_dtype_bytes(t->dtype), &bytes) ||
            entry->bytes < bytes)
            return err_set(e, -EBADMSG,
                           "%s: tensor \"%s\": expected a storage of %llu %s values, found %llu "
                           "bytes",
                           shard->path, t->name, (unsigned long long)t->storage_n,
                           pickle_dtype_name(t->dtype), (unsigned long long)entry->bytes);
        shard->storages[i] = entry;
    }
    return 0;
}

/* Newer writers say in which byte order they wrote. */
static int check_byte_order(const struct sat_shard *shard, struct err *e)
{
    const struct torchzip_entry *entry = torchzip_find(&shard->zip, "byteorder");
    char text[6];
    if (!entry)
        return 0;
    if (entry->bytes != sizeof text)
        return err_set(e, -ENOTSUP, "%s: expected byte order \"little\"", shard->path);
    int r = file_read_at(shard->fd, text, sizeof text, entry->offset, shard->path, e);
    if (r == 0 && memcmp(text, "little", sizeof text) != 0)
        r = err_set(e, -ENOTSUP, "%s: expected byte order \"little\"", shard->path);
    return r;
}

static int open_shard(struct sat_shard *shard, struct err *e)
{
    int r = file_open(shard->path, &shard->fd, &shard->bytes, e);
    if (r == 0)
        r = torchzip_read(shard->fd, shard->bytes, shard->path, &shard->zip, e);
    if (r < 0)
        return r;
    posix_fadvise(shard->fd, 0, 0, POSIX_FADV_SEQUENTIAL); /* larger read-ahead; may be ignored */
    const struct torchzip_entry *pickle = torchzip_find(&shard->zip, "data.pkl");
    if (!pickle || pickle->bytes > PICKLE_MAX_BYTES)
        return err_set(e, -EBADMSG,
                       "%s: expected an entry data.pkl of at most %d bytes; files that torch.save "
                       "wrote before version 1.6 must be saved again",
                       shard->path, PICKLE_MAX_BYTES);
    uint8_t *text = malloc(pickle->bytes ? (size_t)pickle->bytes : 1);
    if (!text)
        return err_set(e, -ENOMEM, "%s: out of memory", shard->path);
    r = file_read_at(shard->fd, text, (size_t)pickle->bytes, pickle->offset, shard->path, e);
    if (r == 0)
        r = pickle_read(text, (size_t)pickle->bytes, shard->path, &shard->table, e);
    free(text);
    if (r == 0)
        r = check_byte_order(shard, e);
    return r < 0 ? r : find_storages(shard, e);
}

/* Rows and columns of a tensor of at most two dimensions; a 1-D tensor has one column. */
static bool tensor_matrix(const struct pickle_tensor *t, uint64_t *ret_rows, uint64_t *ret_cols)
{
    if (t->n_dims < 1 || t->n_dims > 2)
        return false;
    *ret_rows = t->shape[0];
    *ret_cols = t->n_dims == 2 ? t->shape[1] : 1;
    return true;
}

static const struct pickle_tensor *matrix_of(const struct sat_source *s, const char *name,
                                             uint64_t *ret_rows, uint64_t *ret_cols, struct err *e)
{
    const struct pickle_tensor *t = pickle_find(&s->shards[0].table, name);
    if (!t || !tensor_matrix(t, ret_rows, ret_cols)) {
        err_set(e, -EBADMSG,
                "%s: tensor \"%s\" is missing or no matrix: is this a GLM-130B checkpoint?",
                s->shards[0].path, name);
        return NULL;
    }
    return t;
}

/* One more than the highest layer that any name mentions. */
static uint32_t count_layers(const struct pickle_table *table)
{
    uint32_t n_layers = 0;
    for (size_t i = 0; i < table->n; i++) {
        const char *name = table->tensors[i].name;
        uint32_t layer = 0;
        if (strncmp(name, layers_prefix, sizeof layers_prefix - 1) != 0)
            continue;
        const char *p = name + sizeof layers_prefix - 1;
        for (; *p >= '0' && *p <= '9' && layer < 100000; p++)
            layer = layer * 10 + (uint32_t)(*p - '0');
        if (*p == '.')
            n_layers = MAX(n_layers, layer + 1);
    }
    return n_layers;
}

/* Sizes from the shapes in the first shard; sat_check compares everything with them. */
static int infer_sizes(struct sat_source *s, struct err *e)
{
    uint64_t v = 0, h = 0, h2 = 0, w = 0, qkv = 0, rows = 0;
    uint64_t n = s->info.n_shards;
    const struct pickle_tensor *t = matrix_of(s, embedding_name, &v, &h, e);
    if (!t)
        return -EBADMSG;
    t = matrix_of(s, "transformer.layers.0.attention.query_key_value.weight", &qkv, &rows, e);
    if (!t)
        return -EBADMSG;
    s->info.scheme.weights = QUANT_FP16;
    if (t->dtype == PICKLE_I8 || t->dtype == PICKLE_U8)
        s->info.scheme.weights = rows == h ? QUANT_INT8 : QUANT_INT4;
    if (s->info.scheme.weights != QUANT_FP16 && n > 1) {
        s->info.scheme.group = QUANT_GROUP_SHARD;
        s->info.scheme.group_n = (uint32_t)n;
    }
    if (!matrix_of(s, "transformer.layers.0.mlp.dense_4h_to_h.weight", &h2, &w, e))
        return -EBADMSG;
    uint64_t inner = s->info.scheme.weights == QUANT_INT4 ? 2 * w * n : w * n;
    if (h == 0 || h > UINT32_MAX / 3 || v > UINT32_MAX / n || inner > UINT32_MAX || inner == 0)
        return err_set(e, -EBADMSG, "%s: sizes out of range", s->shards[0].path);
    if (qkv * n != 3 * h)
        return err_set(e, -EINVAL,
                       "%s: query_key_value has %llu rows per shard; %llu shards of a hidden size "
                       "of %llu would have %llu: shards of different degrees are mixed, or some "
                       "are missing",
                       s->shards[0].path, (unsigned long long)qkv, (unsigned long long)n,
                       (unsigned long long)h, (unsigned long long)(3 * h / n));
    s->info.hidden = (uint32_t)h;
    s->info.vocab = (uint32_t)(v * n);
    s->info.inner = (uint32_t)inner;
    s->info.n_layers = count_layers(&s->shards[0].table);
    return 0;
}

/* What makes two checkpoints different without reading them whole: names, sizes, ZIP checksums. */
static int fingerprint(struct sat_source *s, struct err *e)
{
    struct checksum_state *state = checksum_new();
    struct checksum sum;
    if (!state)
        return err_set(e, -ENOMEM, "%s: out of memory", s->path);
    checksum_update(state, s->info.iteration, strlen(s->info.iteration) + 1);
    for (uint32_t i = 0; i < s->info.n_shards; i++) {
        const struct sat_shard *shard = &s->shards[i];
        checksum_update(state, &shard->bytes, sizeof shard->bytes);
        for (size_t j = 0; j < shard->zip.n; j++) {
            const struct torchzip_entry *entry = &shard->zip.entries[j];
            checksum_update(state, entry->name, strlen(entry->name) + 1);
            checksum_update(state, &entry->offset, sizeof entry->offset);
            checksum_update(state, &entry->crc, sizeof entry->crc);
        }
    }
    checksum_final(state, &sum);
    checksum_free(state);
    checksum_hex(&sum, s->info.fingerprint);
    return 0;
}

int sat_open(const char *path, struct sat_source **ret, struct err *e)
{
    struct sat_source *s = calloc(1, sizeof *s);
    if (!s || !(s->path = strdup(path))) {
        free(s);
        return err_set(e, -ENOMEM, "%s: out of memory", path);
    }
    for (size_t i = 0; i < SAT_MAX_SHARDS; i++)
        s->shards[i].fd = -1;
    int r = read_latest(s, e);
    char *folder = r == 0 ? file_join(path, s->info.iteration) : NULL;
    if (r == 0)
        r = folder ? find_shards(s, folder, e) : err_set(e, -ENOMEM, "%s: out of memory", path);
    free(folder);
    for (uint32_t i = 0; i < s->info.n_shards && r == 0; i++) {
        r = open_shard(&s->shards[i], e);
        s->info.file_bytes += s->shards[i].bytes;
    }
    if (r == 0)
        r = infer_sizes(s, e);
    if (r == 0)
        r = fingerprint(s, e);
    if (r < 0) {
        sat_close(s);
        return r;
    }
    *ret = s;
    return 0;
}

void sat_close(struct sat_source *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < SAT_MAX_SHARDS; i++) {
        struct sat_shard *shard = &s->shards[i];
        if (shard->fd >= 0)
            close(shard->fd);
        torchzip_deinit(&shard->zip);
        pickle_table_deinit(&shard->table);
        free(shard->storages);
        free(shard->path);
    }
    free(s->path);
    free(s);
}

void sat_weight(const struct sat_source *s, const struct shard_tensor *t, struct sat_tensor *ret)
{
    *ret = (struct sat_tensor){.t = *t, .element_bytes = 2};
    if (quant_applies(&s->info.scheme, t)) {
        ret->element_bytes = 1;
        ret->t.cols = quant_row_bytes(s->info.scheme.weights, t->cols);
    }
}

void sat_scale(const struct sat_source *s, const struct shard_tensor *t, struct sat_tensor *ret)
{
    *ret = (struct sat_tensor){.t = *t, .element_bytes = 2};
    ret->t.cols = quant_n_groups(&s->info.scheme, t);
    size_t n = strlen(ret->t.name);
    assert(n + sizeof "_scale" <= sizeof ret->t.name);
    memcpy(ret->t.name + n, "_scale", sizeof "_scale");
}

/* The part of one shard must have the type and the shape that the whole calls for. */
static int check_part(const struct sat_source *s, uint32_t rank, const struct sat_tensor *t,
                      struct err *e)
{
    const struct sat_shard *shard = &s->shards[rank];
    const struct pickle_tensor *part = pickle_find(&shard->table, t->t.name);
    if (!part)
        return err_set(e, -EBADMSG, "%s: tensor \"%s\" is missing", shard->path, t->t.name);
    bool right_type = t->element_bytes == 2 ? part->dtype == PICKLE_F16
                                            : part->dtype == PICKLE_I8 || part->dtype == PICKLE_U8;
    if (!right_type)
        return err_set(e, -EBADMSG, "%s: tensor \"%s\": expected %s, found %s", shard->path,
                       t->t.name, t->element_bytes == 2 ? "float16" : "int8",
                       pickle_dtype_name(part->dtype));
    struct shard_piece pieces[2];
    size_t n = shard_pieces(&t->t, s->info.n_shards, rank, pieces);
    uint64_t rows = 0, cols = 0, want = pieces[0].n_rows + (n == 2 ? pieces[1].n_rows : 0);
    if (!tensor_matrix(part, &rows, &cols) || rows != want || cols != pieces[0].n_cols)
        return err_set(e, -EBADMSG,
                       "%s: tensor \"%s\": expected [%llu, %llu] of %u shards, found [%llu, %llu]"
                       "%s: shards of different degrees are mixed, or the configuration is "
                       "another model's",
                       shard->path, t->t.name, (unsigned long long)want,
                       (unsigned long long)pieces[0].n_cols, s->info.n_shards,
                       (unsigned long long)rows, (unsigned long long)cols,
                       part->n_dims > 2 ? " and more dimensions" : "");
    if (part->n_dims == 2 && cols > 1 && part->stride[1] != 1)
        return err_set(e, -ENOTSUP,
                       "%s: tensor \"%s\" was saved transposed: call .contiguous() before "
                       "torch.save",
                       shard->path, t->t.name);
    return 0;
}

static int check_tensor(const struct sat_source *s, const struct sat_tensor *t, struct err *e)
{
    for (uint32_t rank = 0; rank < s->info.n_shards; rank++) {
        int r = check_part(s, rank, t, e);
        if (r < 0)
            return r;
    }
    return 0;
}

int sat_check(const struct sat_source *s, const struct arch *a, struct err *e)
{
    const struct sat_info *i = &s->info;
    if (i->n_layers != a->n_layers || i->hidden != a->hidden || i->inner != a->inner ||
        i->vocab != a->vocab)
        return err_set(e, -EINVAL,
                       "%s: the configuration has %u layers, hidden %u, inner %u, vocabulary %u; "
                       "the tensors have %u, %u, %u, %u: pass the checkpoint's own --config",
                       s->path, a->n_layers, a->hidden, a->inner, a->vocab, i->n_layers, i->hidden,
                       i->inner, i->vocab);
    int r = arch_check_tp(a, i->n_shards, e);
    if (r < 0)
        return err_prefix(e, "%s: %u shards", s->path, i->n_shards);
    r = quant_check(&i->scheme, a, e);
    for (size_t k = 0; k < shard_n_tensors(a) && r == 0; k++) {
        struct shard_tensor t;
        struct sat_tensor stored;
        shard_tensor_at(a, k, &t);
        sat_weight(s, &t, &stored);
        r = check_tensor(s, &stored, e);
        if (r == 0 && quant_applies(&i->scheme, &t)) {
            sat_scale(s, &t, &stored);
            r = check_tensor(s, &stored, e);
        }
    }
    return r;
}

/* Whether the architecture has the tensor, or scales for it. */
static bool is_known(const struct sat_source *s, const struct arch *a, const char *name)
{
    static const char scale_suffix[] = "_scale", rotary[] = ".rotary_emb.inv_freq";
    struct shard_tensor t;
    size_t n = strlen(name);
    if (n >= sizeof rotary && strcmp(name + n - (sizeof rotary - 1), rotary) == 0)
        return true; /* computed from rope_base; what the file says is ignored, as published */
    if (shard_find(a, name, &t) == 0)
        return true;
    if (n < sizeof scale_suffix || n >= sizeof t.name ||
        strcmp(name + n - (sizeof scale_suffix - 1), scale_suffix) != 0)
        return false;
    char base[sizeof t.name];
    memcpy(base, name, n - (sizeof scale_suffix - 1));
    base[n - (sizeof scale_suffix - 1)] = '\0';
    return shard_find(a, base, &t) == 0 && quant_applies(&s->info.scheme, &t);
}

size_t sat_n_unknown(const struct sat_source *s, const struct arch *a, const char **ret_example)
{
    size_t n = 0;
    *ret_example = NULL;
    const struct pickle_table *table = &s->shards[0].table;
    for (size_t i = 0; i < table->n; i++) {
        if (is_known(s, a, table->tensors[i].name))
            continue;
        *ret_example = table->tensors[i].name;
        n++;
    }
    return n;
}
