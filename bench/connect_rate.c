/* TCP connections, one after the other in each of several threads: opened, accepted, and reset by the client.
 *
 *     connect_rate server PORT THREADS                  until killed; says "listening" when it does
 *     connect_rate client IP PORT THREADS SECONDS       prints how many connections it opened a second
 *
 * A reset leaves no port waiting in TIME_WAIT.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST_THREADS = 64, BACKLOG = 1024 };

static struct sockaddr_in address = {.sin_family = AF_INET};
static atomic_bool stop;
static atomic_long opened;

static void fail(const char *doing) {
    fprintf(stderr, "connect_rate: %s: %s\n", doing, strerror(errno));
    exit(1);
}

static void reset(int connection) {
    struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    setsockopt(connection, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(connection);
}

static void *serve(void *unused) {
    int yes = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) < 0 ||
        setsockopt(listener, SOL_SOCKET, SO_REUSEPORT, &yes, sizeof yes) < 0 ||
        bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, BACKLOG) < 0)
        fail("listen");
    atomic_fetch_add(&opened, 1);
    for (;;) {
        int connection = accept(listener, NULL, NULL);
        if (connection >= 0)
            close(connection); /* the client resets it */
    }
    return unused;
}

static void *call(void *unused) {
    long count = 0;
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        int connection = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connection < 0)
            fail("socket");
        if (connect(connection, (struct sockaddr *)&address, sizeof address) < 0)
            fail("connect");
        reset(connection);
        count++;
    }
    atomic_fetch_add(&opened, count);
    return unused;
}

int main(int argc, char **argv) {
    pthread_t threads[MOST_THREADS];
    int is_client = argc == 6 && !strcmp(argv[1], "client");
    if (!is_client && !(argc == 4 && !strcmp(argv[1], "server")))
        return 2;
    int number = atoi(argv[is_client ? 4 : 3]);
    address.sin_port = htons(atoi(argv[is_client ? 3 : 2]));
    if (number < 1 || number > MOST_THREADS || (is_client && inet_pton(AF_INET, argv[2], &address.sin_addr) != 1))
        return 2;
    struct timespec began, ended;
    clock_gettime(CLOCK_MONOTONIC, &began);
    for (int i = 0; i < number; i++)
        if (pthread_create(&threads[i], NULL, is_client ? call : serve, NULL))
            fail("pthread_create");
    if (!is_client) {
        while (atomic_load(&opened) < number)
            usleep(1000);
        puts("listening");
        fflush(stdout);
        pthread_join(threads[0], NULL);
    }
    usleep((useconds_t)(atof(argv[5]) * 1e6));
    atomic_store(&stop, 1);
    for (int i = 0; i < number; i++)
        pthread_join(threads[i], NULL);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    double took = (double)(ended.tv_sec - began.tv_sec) + (double)(ended.tv_nsec - began.tv_nsec) / 1e9;
    printf("%.1f\n", (double)atomic_load(&opened) / took);
    return 0;
}
