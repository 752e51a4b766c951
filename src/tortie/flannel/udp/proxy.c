/* The proxy of the udp backend: packets of a TUN device, each the payload of a datagram to the node of its subnet.
 *
 *     proxy DEVICE SOCKET ICMP [WITHOUT]    descriptors: the TUN device, the UDP socket, a raw socket for ICMP
 *     proxy replay                          for tests: replay.c
 *
 *   TUN device ─► leave_forever  ─► UDP socket ─► other nodes
 *              ◄─ arrive_forever ◄─
 *   stdin ◄─► main ◄─► the daemon: tables, and questions for the counters
 *
 * It is started by proxy.py, which opens all of that, and ends when the daemon is gone: its end of stdin closes then.
 * A message is a header of two numbers (kind, bytes that follow) and is answered by one of the same kind. WITHOUT names
 * what it is to do without, as on a kernel that cannot: tso, uso, gso, gro.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "kernel.h"
#include "replay.h"

#ifndef PROXY_MARK
#define PROXY_MARK ""
#endif

enum { TABLE = 1, COUNTS = 2, ABILITIES = 3, MOST_BYTES = 1 << 24 };

static const char mark[] __attribute__((used)) = PROXY_MARK; /* tells from which source this is */

static _Atomic(struct table *) current;
static struct worker workers[2];

/* All of it, 0 when the daemon is gone. */
static int receive(void *into, size_t len) {
    uint8_t *at = into;
    while (len) {
        ssize_t got = recv(0, at, len, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return 0;
        at += got;
        len -= (size_t)got;
    }
    return 1;
}

static void answer(uint32_t kind, const void *body, size_t len) {
    uint32_t head[2] = {kind, (uint32_t)len};
    struct iovec parts[2] = {{head, sizeof head}, {(void *)body, len}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    if (sendmsg(0, &message, MSG_NOSIGNAL) < 0)
        _exit(0);
}

static void start_threads(void) {
    void *(*work[2])(void *) = {leave_forever, arrive_forever};
    for (int i = 0; i < 2; i++) {
        pthread_t thread;
        errno = pthread_create(&thread, NULL, work[i], &workers[i]);
        if (errno)
            fail("pthread_create");
    }
}

/* Takes a table into use. The one before is freed when neither thread can still be looking at it. Nothing is read
 * before the first one: to pods whose daemon is just starting, a network that is there would be unreachable. */
static void use(const uint8_t *body, size_t len) {
    uint32_t self;
    size_t count = (len - sizeof self) / sizeof(struct entry);
    if (len < sizeof self || (len - sizeof self) % sizeof(struct entry)) {
        errno = EBADMSG;
        fail("a table from the daemon");
    }
    memcpy(&self, body, sizeof self);
    struct entry *entries = calloc(count + 1, sizeof *entries);
    if (!entries)
        fail("calloc");
    memcpy(entries, body + sizeof self, count * sizeof *entries);
    errno = EBADMSG;
    struct table *made = table_new(self, entries, count), *old;
    free(entries);
    if (!made)
        fail("a table from the daemon");
    old = atomic_exchange(&current, made);
    if (!old)
        start_threads();
    for (int i = 0; i < 2; i++) {
        unsigned turn = atomic_load(&workers[i].turn);
        while (turn % 2 && atomic_load(&workers[i].turn) == turn)
            usleep(100);
    }
    table_free(old);
}

static void tell_counts(void) {
    uint64_t all[COUNTERS];
    for (int i = 0; i < COUNTERS; i++)
        all[i] = atomic_load(&workers[0].outlet.counts.of[i]) + atomic_load(&workers[1].outlet.counts.of[i]);
    answer(COUNTS, all, sizeof all);
}

static _Noreturn void serve(const struct abilities *can) {
    uint32_t head[2];
    while (receive(head, sizeof head) && head[1] <= MOST_BYTES) {
        uint8_t *body = malloc((size_t)head[1] + 1);
        if (!body)
            fail("malloc");
        if (!receive(body, head[1]))
            break;
        if (head[0] == TABLE) {
            use(body, head[1]);
            answer(TABLE, NULL, 0);
        } else if (head[0] == COUNTS)
            tell_counts();
        else
            answer(ABILITIES, can, sizeof *can);
        free(body);
    }
    _exit(0);
}

static struct abilities asked_for(const char *without) {
    return (struct abilities){.cut_tcp = !strstr(without, "tso"),
                              .cut_udp = !strstr(without, "uso"),
                              .send_many = !strstr(without, "gso"),
                              .take_many = !strstr(without, "gro")};
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "replay"))
        return replay();
    if (argc < 4) {
        fprintf(stderr, "%s: is started by tortie\n", argv[0]);
        return 2;
    }
    prctl(PR_SET_NAME, "tortie-udp");
    struct opened fds = {atoi(argv[1]), atoi(argv[2]), atoi(argv[3])};
    struct abilities can = abilities(fds, asked_for(argc > 4 ? argv[4] : ""));
    for (int i = 0; i < 2; i++) {
        workers[i].fds = fds;
        workers[i].can = can;
        workers[i].table = &current;
    }
    serve(&can);
}
