/* cli.h: the verbs of `glmd`. One file per verb, cmd_<verb>.c, each with one entry point. */
#ifndef GLMD_CLI_CLI_H
#define GLMD_CLI_CLI_H

/* Exit codes, the same for every verb. */
enum {
    EXIT_OK = 0,
    EXIT_FAILED = 1,      /* it did not work: the message says why */
    EXIT_USAGE = 2,       /* the command line is wrong */
    EXIT_UNAVAILABLE = 3, /* no server answers, or it is not healthy */
};

/* argv[0] is the verb. Options are parsed with getopt_long; `--help` prints usage and returns
 * EXIT_OK. */
int cmd_abort(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_compare(int argc, char **argv);
int cmd_config(int argc, char **argv);
int cmd_convert(int argc, char **argv);
int cmd_detokenize(int argc, char **argv);
int cmd_drain(int argc, char **argv);
int cmd_fill(int argc, char **argv);
int cmd_generate(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_keys(int argc, char **argv);
int cmd_logits(int argc, char **argv);
int cmd_metrics(int argc, char **argv);
int cmd_plan(int argc, char **argv);
int cmd_score(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_tokenize(int argc, char **argv);
int cmd_why(int argc, char **argv);

#endif
