/* The executables `calico` and `calico-ipam`: carry one CNI call to the agent and its answer back.
 *
 *   environment + stdin ── POST /cni/<own name> HTTP/1.0 over a Unix socket ──► agent
 *   stdout, exit code   ◄── 200: result, exit 0; other status: error object, exit 1
 *
 * No credential, no JSON parser, nothing to configure: TORTIE_AGENT_SOCKET (default /run/tortie/agent.sock) and
 * TORTIE_CNI_TIMEOUT (seconds for the whole exchange, default 90) exist for tests and odd layouts. Half an answer is
 * never printed: without all of Content-Length the call failed. An agent that is away is CNI error 11, try again.
 * main.py is the same program in Python, for machines without a compiler; a test holds the two together.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef TORTIE_VERSION
#define TORTIE_VERSION "unknown"
#endif
#ifndef STUB_MARK
#define STUB_MARK ""
#endif

enum { INVALID_ENVIRONMENT = 4, IO_FAILURE = 5, TRY_AGAIN_LATER = 11 }; /* CNI specification, error codes */

static const char mark[] __attribute__((used)) = STUB_MARK; /* tells the installer which source this is */

static const char digits[] = "0123456789";
static const char name_bytes[] = "-._0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

static const char *const headers[][2] = {
    {"CNI_COMMAND", "Cni-Command"}, {"CNI_CONTAINERID", "Cni-Containerid"},
    {"CNI_NETNS", "Cni-Netns"},     {"CNI_IFNAME", "Cni-Ifname"},
    {"CNI_ARGS", "Cni-Args"},       {"CNI_PATH", "Cni-Path"},
    {"CNI_NETNS_OVERRIDE", "Cni-Netns-Override"},
};

struct bytes { /* always followed by a NUL */
    char *at;
    size_t len, room;
};

static const char *agent = "/run/tortie/agent.sock";
static const char *timeout = "90";
static long long deadline; /* ms of CLOCK_MONOTONIC */

static void print_json(const char *key, const char *text) {
    printf(",\n    \"%s\": \"", key);
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        if (*c < 0x20 || *c == 0x7f)
            printf("\\u%04x", *c);
        else
            printf(*c == '"' || *c == '\\' ? "\\%c" : "%c", *c);
    }
    putchar('"');
}

static _Noreturn void fail(int code, const char *msg, const char *details) {
    printf("{\n    \"code\": %d", code);
    print_json("msg", msg);
    if (*details)
        print_json("details", details);
    printf("\n}");
    exit(1);
}

static _Noreturn void unserved(const char *step, const char *why) {
    char msg[512], details[256];
    snprintf(msg, sizeof msg, "the agent did not serve this call on %s; the runtime will retry", agent);
    snprintf(details, sizeof details, "%s%s", step, why);
    fail(TRY_AGAIN_LATER, msg, details);
}

static void reserve(struct bytes *b, size_t more) {
    if (b->len + more < b->room)
        return;
    b->room = 2 * (b->len + more) + 1;
    if (!(b->at = realloc(b->at, b->room)))
        fail(IO_FAILURE, "out of memory", "");
}

static void append(struct bytes *b, const char *text) {
    size_t n = strlen(text);
    reserve(b, n);
    memcpy(b->at + b->len, text, n + 1);
    b->len += n;
}

static void read_stdin(struct bytes *b) {
    ssize_t n;
    do {
        reserve(b, 65536);
        n = read(0, b->at + b->len, 65536);
        if (n > 0)
            b->len += (size_t)n;
    } while (n > 0 || (n < 0 && errno == EINTR));
    if (n < 0)
        fail(IO_FAILURE, "cannot read the network configuration from stdin", strerror(errno));
}

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static _Noreturn void late(void) {
    unserved("no answer within the seconds allowed: ", timeout);
}

/* The next call on the socket waits no longer than is left; SO_SNDTIMEO bounds connect too. */
static void allow_what_is_left(int s, int option) {
    long long left = deadline - now();
    struct timeval t = {.tv_sec = left / 1000, .tv_usec = left % 1000 * 1000};
    if (left <= 0)
        late();
    setsockopt(s, SOL_SOCKET, option, &t, sizeof t);
}

static int connected(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    strcpy(address.sun_path, agent); /* its length was checked */
    for (;;) {
        allow_what_is_left(s, SO_SNDTIMEO);
        if (!connect(s, (struct sockaddr *)&address, sizeof address))
            return s;
        if (errno == EAGAIN)
            late();
        if (errno != EINTR)
            unserved("connect: ", strerror(errno));
    }
}

static void send_all(int s, const char *data, size_t len) {
    while (len) {
        allow_what_is_left(s, SO_SNDTIMEO);
        ssize_t n = send(s, data, len, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN)
            late();
        if (n < 0 && errno != EINTR)
            return; /* the agent stopped reading: it may have said why */
        if (n > 0)
            data += n, len -= (size_t)n;
    }
}

/* Where the body begins once all of it is there, else NULL. */
static char *body_of(const struct bytes *b, size_t *len, int *status) {
    static const char bad[] = "the answer is not HTTP/1 with a Content-Length";
    char *end = memmem(b->at, b->len, "\r\n\r\n", 4), *field, *stop;
    if (!end)
        return NULL;
    *end = 0; /* for the search */
    if (strncmp(b->at, "HTTP/1.", 7) || end - b->at < 12 || b->at[8] != ' ' || strspn(b->at + 9, digits) < 3 ||
        !(field = strcasestr(b->at, "\r\ncontent-length:")))
        unserved(bad, "");
    field += strlen("\r\ncontent-length:");
    field += strspn(field, " \t");
    stop = field + strspn(field, digits);
    if (stop == field || (*stop && *stop != '\r'))
        unserved(bad, "");
    *status = atoi(b->at + 9);
    *len = strtoull(field, NULL, 10);
    *end = '\r';
    return *len <= (size_t)(b->at + b->len - (end + 4)) ? end + 4 : NULL;
}

static int relay_answer(int s) {
    struct bytes b = {0};
    size_t len = 0;
    int status = 0;
    char *body;
    while (!(body = b.len ? body_of(&b, &len, &status) : NULL)) {
        reserve(&b, 65536);
        allow_what_is_left(s, SO_RCVTIMEO);
        ssize_t n = recv(s, b.at + b.len, 65536, 0);
        if (n < 0 && errno == EAGAIN)
            late();
        if (n == 0 || (n < 0 && errno != EINTR))
            unserved("the connection closed before the whole answer came", "");
        if (n > 0)
            b.len += (size_t)n;
    }
    if (status != 200 && (!len || *body != '{')) {
        char why[64];
        snprintf(why, sizeof why, "HTTP status %d without a CNI error", status);
        unserved(why, "");
    }
    for (size_t done = 0; done < len;) {
        ssize_t n = write(1, body + done, len - done);
        if (n < 0 && errno != EINTR)
            return 1;
        done += n > 0 ? (size_t)n : 0;
    }
    return status == 200 ? 0 : 1;
}

/* A header line cannot carry control characters, and HTTP strips blanks around a value: neither goes through. */
static void append_header(struct bytes *b, const char *name, const char *header, const char *value) {
    char msg[128];
    size_t n = strlen(value);
    for (const unsigned char *c = (const unsigned char *)value; *c; c++)
        if (*c < 0x20 || *c == 0x7f) {
            snprintf(msg, sizeof msg, "%s holds a control character", name);
            fail(INVALID_ENVIRONMENT, msg, "");
        }
    if (value[0] == ' ' || value[n - 1] == ' ') {
        snprintf(msg, sizeof msg, "%s begins or ends with a blank", name);
        fail(INVALID_ENVIRONMENT, msg, "");
    }
    append(b, header);
    append(b, ": ");
    append(b, value);
    append(b, "\r\n");
}

static const char *setting(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

int main(int argc, char **argv) {
    const char *slash = argc ? strrchr(argv[0], '/') : NULL;
    const char *plugin = slash ? slash + 1 : argc ? argv[0] : "calico";
    const char *command = setting("CNI_COMMAND", "");
    struct bytes conf = {0}, head = {0};
    char length[64];

    if (argc == 2 && !strcmp(argv[1], "-v"))
        return puts(TORTIE_VERSION) < 0;
    if (!*command) {
        fprintf(stderr, "CNI %s plugin version " TORTIE_VERSION "\n", plugin);
        fputs("CNI protocol versions supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0\n", stderr);
        return 0;
    }
    if (!strcmp(command, "VERSION"))
        return puts("{\"cniVersion\":\"1.1.0\",\"supportedVersions\":"
                    "[\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}") < 0;

    signal(SIGPIPE, SIG_IGN);
    agent = setting("TORTIE_AGENT_SOCKET", agent);
    timeout = setting("TORTIE_CNI_TIMEOUT", timeout);
    if (strlen(agent) >= sizeof((struct sockaddr_un *)0)->sun_path)
        fail(INVALID_ENVIRONMENT, "TORTIE_AGENT_SOCKET is longer than 107 bytes", agent);
    if (timeout[strspn(timeout, digits)] || strlen(timeout) > 5 || !atoi(timeout))
        fail(INVALID_ENVIRONMENT, "TORTIE_CNI_TIMEOUT must be a number of seconds from 1 to 99999", timeout);
    if (!*plugin || plugin[strspn(plugin, name_bytes)])
        fail(INVALID_ENVIRONMENT, "the plugin's file name may hold letters, digits, - _ and . only", plugin);

    append(&head, "POST /cni/");
    append(&head, plugin);
    append(&head, " HTTP/1.0\r\n");
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++)
        if (*setting(headers[i][0], ""))
            append_header(&head, headers[i][0], headers[i][1], getenv(headers[i][0]));
    read_stdin(&conf);
    snprintf(length, sizeof length, "Content-Length: %zu\r\n\r\n", conf.len);
    append(&head, length);

    deadline = now() + atoi(timeout) * 1000LL;
    int s = connected();
    send_all(s, head.at, head.len);
    send_all(s, conf.at, conf.len);
    return relay_answer(s);
}
