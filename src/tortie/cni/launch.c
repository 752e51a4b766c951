/* The program that every stand-alone plugin is, where there is a C compiler: has the call served, or starts Python.
 *
 *   a server listens on the socket   arguments, environment, stdin, stderr, directory and namespaces ──► its child
 *                                    stdout, exit code ◄── what the plugin said
 *   nobody there, or nobody free     exec python -I -S -c START NAME, with everything as it was, stdin unread;
 *                                    SERVED_ONLY, for hosts that have no Python: CNI error 11, try again
 *
 * Nothing is sent before the server has said that it takes the call, and after that Python is not started: no call runs
 * twice. An answer that does not come whole is never printed: the call failed with CNI error 11, try again.
 * TORTIE_PLUGINS_SOCKET (another socket) and TORTIE_PLUGINS_PATIENCE (milliseconds that a server may take to say that it
 * takes the call) exist for tests and odd layouts. resident.py is the server, and has the layout of the messages.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef LAUNCH_MARK
#define LAUNCH_MARK ""
#endif
#ifndef PYTHON
#define PYTHON "/usr/bin/python3"
#endif
#ifndef START /* a program: pack.starter */
#define START "from tortie.cni.launch import run; run()"
#endif

enum { TRY_AGAIN_LATER = 11, INTERNAL = 999 }; /* CNI specification, error codes */
enum { PATIENCE = 200 };                       /* ms; a child that is free answers in less than one */
enum { FDS = 5 };                              /* stdin, stderr, directory, network and mount namespace */

static const char mark[] __attribute__((used)) = LAUNCH_MARK; /* tells the installer which source this is */

extern char **environ;

static _Noreturn void fail(int code, const char *msg, const char *about) {
    printf("{\n    \"code\": %d,\n    \"msg\": \"%s", code, msg);
    for (const unsigned char *c = (const unsigned char *)about; *c; c++)
        printf(*c == '"' || *c == '\\' ? "\\%c" : *c < 0x20 ? "?" : "%c", *c);
    puts("\"\n}");
    exit(1);
}

static _Noreturn void start_python(int argc, char **argv, char *program) {
#ifdef SERVED_ONLY
    (void)argc, (void)argv, (void)program;
    fail(TRY_AGAIN_LATER, "nobody serves plugins on this node at the moment; the runtime will retry", "");
#endif
    char *words[argc + 6];
    memcpy(words, (char *[]){PYTHON, "-I", "-S", "-c", START, program}, 6 * sizeof *words);
    memcpy(words + 6, argv + 1, (size_t)argc * sizeof *words); /* with the NULL at its end */
    execv(PYTHON, words);
    fail(INTERNAL, "cannot start " PYTHON ": ", strerror(errno));
}

/* Connected to a server of root's that takes the call, else -1. */
static int server(const char *path, int patience) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct ucred who;
    socklen_t size = sizeof who;
    char go = 0;
    if (strlen(path) >= sizeof address.sun_path)
        return -1;
    strcpy(address.sun_path, path);
    int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct pollfd ready = {.fd = s, .events = POLLIN};
    if (s < 0)
        return -1;
    if (connect(s, (struct sockaddr *)&address, sizeof address) ||
        getsockopt(s, SOL_SOCKET, SO_PEERCRED, &who, &size) || who.uid != 0 ||
        poll(&ready, 1, patience) != 1 || recv(s, &go, 1, 0) != 1 || go != 'G') {
        close(s);
        return -1;
    }
    fcntl(s, F_SETFL, 0); /* from here on it waits */
    return s;
}

static size_t put(char *at, const char *const *strings) {
    size_t len = 0;
    for (; *strings; strings++) {
        size_t n = strlen(*strings) + 1;
        if (at)
            memcpy(at + len, *strings, n);
        len += n;
    }
    return len;
}

static _Noreturn void lost(const char *path) {
    fail(TRY_AGAIN_LATER, "the plugin server ended in the middle of this call; the runtime will retry: ", path);
}

static void request(int s, const char *path, const char *const *words, const int *fds) {
    const char *const *variables = (const char *const *)environ;
    uint32_t head[2] = {(uint32_t)put(NULL, words), (uint32_t)put(NULL, variables)};
    size_t len = sizeof head + head[0] + head[1], done = 0;
    char *data = malloc(len);
    union {
        char room[CMSG_SPACE(FDS * sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    if (!data)
        lost(path);
    memcpy(data, head, sizeof head);
    put(data + sizeof head, words);
    put(data + sizeof head + head[0], variables);
    while (done < len) {
        struct iovec part = {data + done, len - done};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
        if (!done) {
            message.msg_control = control.room;
            message.msg_controllen = sizeof control.room;
            struct cmsghdr *c = CMSG_FIRSTHDR(&message);
            c->cmsg_level = SOL_SOCKET;
            c->cmsg_type = SCM_RIGHTS;
            c->cmsg_len = CMSG_LEN(FDS * sizeof(int));
            memcpy(CMSG_DATA(c), fds, FDS * sizeof(int));
        }
        ssize_t n = sendmsg(s, &message, MSG_NOSIGNAL);
        if (n < 0 && errno != EINTR)
            lost(path);
        done += n > 0 ? (size_t)n : 0;
    }
}

static void receive(int s, const char *path, char *into, size_t len) {
    while (len) {
        ssize_t n = recv(s, into, len, 0);
        if (n == 0 || (n < 0 && errno != EINTR))
            lost(path);
        into += n > 0 ? n : 0;
        len -= n > 0 ? (size_t)n : 0;
    }
}

static int relay(int s, const char *path) {
    uint32_t head[2]; /* exit code, bytes */
    receive(s, path, (char *)head, sizeof head);
    char *said = malloc(head[1] + 1);
    if (!said)
        lost(path);
    receive(s, path, said, head[1]);
    for (size_t done = 0; done < head[1];) {
        ssize_t n = write(1, said + done, head[1] - done);
        if (n < 0 && errno != EINTR)
            return 1;
        done += n > 0 ? (size_t)n : 0;
    }
    return (int)head[0];
}

int main(int argc, char **argv) {
    static char itself[4096];
    const char *path = getenv("TORTIE_PLUGINS_SOCKET"), *patience = getenv("TORTIE_PLUGINS_PATIENCE");
    char *program = argc ? argv[0] : itself;
    if (!path || !*path)
        path = "/run/tortie/plugins.sock";
    if (!strchr(program, '/') && readlink("/proc/self/exe", itself, sizeof itself - 1) > 0)
        program = itself; /* started through PATH: where the others of its kind are */
    if (argc > 1)
        start_python(argc, argv, program);
    int whole = fcntl(0, F_GETFD) >= 0 && fcntl(2, F_GETFD) >= 0; /* before others get these numbers */
    int fds[FDS] = {0, 2, open(".", O_PATH | O_CLOEXEC), open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC),
                    open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC)};
    whole = whole && fds[2] >= 0 && fds[3] >= 0 && fds[4] >= 0;
    int s = whole ? server(path, patience && *patience ? atoi(patience) : PATIENCE) : -1;
    if (s < 0)
        start_python(argc ? argc : 1, argc ? argv : (char *[]){itself, NULL}, program);
    signal(SIGPIPE, SIG_IGN);
    request(s, path, (const char *const[]){program, NULL}, fds);
    return relay(s, path);
}
