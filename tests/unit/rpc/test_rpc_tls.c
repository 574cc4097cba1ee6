/* test_rpc_tls.c: encrypted and mutually authenticated connections, and what is said about bad
 * certificate files at start. */
#include "rig.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "certs.h"

struct fixture {
    struct rig rig;
    struct certs *certs, *others; /* `others`: an authority that nobody trusts */
    char other_directory[104];
    char ca[128], other_ca[128], expired_cert[128], expired_key[128];
    char server_cert[128], server_key[128], client_cert[128], client_key[128];
    char foreign_cert[128], foreign_key[128];
};

static void name_file(char path[128], const char *directory, const char *name)
{
    snprintf(path, 128, "%s/%s", directory, name);
}

static int setup(void **state)
{
    static struct fixture f;
    memset(&f, 0, sizeof f);
    rig_init_bare(&f.rig);
    const char *d = f.rig.directory;
    f.certs = certs_new(d);
    certs_issue(f.certs, "server", "glmd.test", 3600);
    certs_issue(f.certs, "client", "worker.test", 3600);
    certs_issue(f.certs, "expired", "glmd.test", -60);
    name_file(f.ca, d, "ca.crt");
    name_file(f.server_cert, d, "server.crt");
    name_file(f.server_key, d, "server.key");
    name_file(f.client_cert, d, "client.crt");
    name_file(f.client_key, d, "client.key");
    name_file(f.expired_cert, d, "expired.crt");
    name_file(f.expired_key, d, "expired.key");
    snprintf(f.other_directory, sizeof f.other_directory, "%s-x", d);
    assert_int_equal(mkdir(f.other_directory, 0700), 0);
    f.others = certs_new(f.other_directory);
    certs_issue(f.others, "foreign", "worker.test", 3600);
    name_file(f.other_ca, f.other_directory, "ca.crt");
    name_file(f.foreign_cert, f.other_directory, "foreign.crt");
    name_file(f.foreign_key, f.other_directory, "foreign.key");
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    certs_free(f->certs, false);
    certs_free(f->others, false);
    rmdir(f->other_directory);
    rig_deinit(&f->rig);
    return 0;
}

static struct rpc_tls server_tls(const struct fixture *f, bool mutual)
{
    return (struct rpc_tls){
        .ca_file = mutual ? f->ca : NULL, .cert_file = f->server_cert, .key_file = f->server_key};
}

/* One call on a channel of its own; its status. */
static enum rpc_status call_with(struct fixture *f, const struct rpc_tls *tls)
{
    struct rig *r = &f->rig;
    rig_dial(r, NULL, tls);
    struct client c = {0};
    assert_int_equal(
        rpc_open(r->channel, "/test.Test/Unary", 0, false, &client_callbacks, &c, &c.call), 0);
    assert_int_equal(rpc_send(c.call, "x", 1), 0);
    rpc_half_close(c.call);
    WAIT(r, c.n_done);
    rpc_channel_close(r->channel);
    r->channel = NULL;
    if (c.status == RPC_OK)
        assert_int_equal(c.n_messages, 1);
    return c.status;
}

static void test_server_certificate(void **state)
{
    struct fixture *f = *state;
    struct rpc_tls tls = server_tls(f, false);
    rig_serve(&f->rig, "tcp", NULL, &tls);
    const struct rpc_tls good = {.ca_file = f->ca, .target_name = "glmd.test"};
    assert_int_equal(call_with(f, &good), RPC_OK);
    const struct rpc_tls wrong_name = {.ca_file = f->ca, .target_name = "other.test"};
    assert_int_equal(call_with(f, &wrong_name), RPC_UNAVAILABLE);
    const struct rpc_tls no_name = {.ca_file = f->ca, .cert_file = "", .key_file = ""};
    assert_int_equal(call_with(f, &no_name), RPC_UNAVAILABLE); /* 127.0.0.1 is not in it */
    const struct rpc_tls wrong_ca = {.ca_file = f->other_ca, .target_name = "glmd.test"};
    assert_int_equal(call_with(f, &wrong_ca), RPC_UNAVAILABLE);
    assert_int_equal(call_with(f, NULL), RPC_UNAVAILABLE); /* plaintext */
    assert_int_equal(call_with(f, &good), RPC_OK);
}

static void test_mutual(void **state)
{
    struct fixture *f = *state;
    struct rpc_tls tls = server_tls(f, true);
    rig_serve(&f->rig, "tcp", NULL, &tls);
    const struct rpc_tls good = {f->ca, f->client_cert, f->client_key, "glmd.test"};
    assert_int_equal(call_with(f, &good), RPC_OK);
    const struct rpc_tls nobody = {.ca_file = f->ca, .target_name = "glmd.test"};
    assert_int_equal(call_with(f, &nobody), RPC_UNAVAILABLE);
    const struct rpc_tls foreign = {f->ca, f->foreign_cert, f->foreign_key, "glmd.test"};
    assert_int_equal(call_with(f, &foreign), RPC_UNAVAILABLE);
    assert_int_equal(call_with(f, NULL), RPC_UNAVAILABLE);
    assert_int_equal(call_with(f, &good), RPC_OK);
}

static void test_mutual_over_unix(void **state)
{
    struct fixture *f = *state;
    struct rpc_tls tls = server_tls(f, true);
    rig_serve(&f->rig, "unix", NULL, &tls);
    const struct rpc_tls good = {f->ca, f->client_cert, f->client_key, "glmd.test"};
    assert_int_equal(call_with(f, &good), RPC_OK);
}

static void test_bad_files(void **state)
{
    struct fixture *f = *state;
    char missing[128], text[128];
    name_file(missing, f->rig.directory, "missing.crt");
    name_file(text, f->rig.directory, "text");
    int fd = open(text, O_CREAT | O_WRONLY, 0600);
    assert_int_equal(write(fd, "not PEM\n", 8), 8);
    close(fd);
    const struct {
        struct rpc_tls tls;
        int code;
        const char *says;
    } cases[] = {
        {{NULL, f->server_cert, NULL, NULL}, -EINVAL, "go together; only the certificate"},
        {{NULL, NULL, f->server_key, NULL}, -EINVAL, "go together; only the key"},
        {{f->ca, NULL, NULL, NULL}, -EINVAL, "a server needs a certificate"},
        {{NULL, missing, f->server_key, NULL}, -ENOENT, "cannot read the certificate file"},
        {{NULL, f->server_cert, missing, NULL}, -ENOENT, "cannot read the key file"},
        {{missing, f->server_cert, f->server_key, NULL}, -ENOENT, "cannot read the CA file"},
        {{f->rig.directory, f->server_cert, f->server_key, NULL}, -EINVAL, "expected a PEM file"},
        {{text, f->server_cert, f->server_key, NULL}, -EINVAL, "holds no certificate in PEM"},
        {{NULL, text, f->server_key, NULL}, -EINVAL, "holds no certificate in PEM"},
        {{NULL, f->server_cert, text, NULL}, -EINVAL, "holds no private key in PEM"},
        {{NULL, f->server_cert, f->client_key, NULL}, -EINVAL, "does not belong to the first"},
        {{NULL, f->expired_cert, f->expired_key, NULL}, -EKEYEXPIRED, "has expired"},
    };
    assert_int_equal(rpc_server_new(f->rig.runtime, NULL, &f->rig.server), 0);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct err e = ERR_INIT;
        int port;
        int code = rpc_server_listen(f->rig.server, "127.0.0.1:0", &cases[i].tls, &port, &e);
        if (code != cases[i].code || !strstr(e.message, cases[i].says))
            fail_msg("case %zu: expected %d \"%s\", found %d \"%s\"", i, cases[i].code,
                     cases[i].says, code, e.message);
    }
    struct err e = ERR_INIT;
    struct rpc_channel *ch;
    const struct rpc_tls no_ca = {NULL, f->client_cert, f->client_key, NULL};
    assert_int_equal(rpc_channel_new(f->rig.runtime, "host:1", &no_ca, NULL, &ch, &e), -EINVAL);
    assert_non_null(strstr(e.message, "a client needs the CA file"));
    unlink(text);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        TEST(test_server_certificate),
        TEST(test_mutual),
        TEST(test_mutual_over_unix),
        TEST(test_bad_files),
    };
    return cmocka_run_group_tests_name("rpc_tls", tests, NULL, NULL);
}
