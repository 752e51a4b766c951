/* Small UDP packets from one place to another, as many as there can be: one thread sends, one counts.
 *
 *     packet_rate receive IP PORT SECONDS                      prints the packets that came in a second, once begun
 *     packet_rate send IP PORT SECONDS BYTES PER_SECOND        prints the packets that were sent in a second; 0: no limit
 *
 * Each packet is sent by itself: what comes together has been put together on its way.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { AT_ONCE = 32, MOST = 2048, BUFFER = 8 << 20, PATIENCE = 10000 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void fail(const char *doing) {
    fprintf(stderr, "packet_rate: %s: %s\n", doing, strerror(errno));
    exit(1);
}

static struct mmsghdr messages[AT_ONCE];
static struct iovec parts[AT_ONCE];
static char data[AT_ONCE][MOST];

/* Begins with the first packet; ends after the time, or when nothing has come for long. */
static double receive(int s, double seconds) {
    struct pollfd ready = {.fd = s, .events = POLLIN};
    if (poll(&ready, 1, PATIENCE) != 1)
        return 0;
    double began = now(), ends = began + seconds;
    for (long count = 0;;) {
        int got = recvmmsg(s, messages, AT_ONCE, MSG_DONTWAIT, NULL);
        count += got > 0 ? got : 0;
        if (now() >= ends)
            return (double)count / (now() - began);
        if (got < AT_ONCE)
            poll(&ready, 1, 1);
    }
}

static double send_all(int s, double seconds, double per_second) {
    double began = now(), t = began;
    long count = 0;
    while ((t = now()) < began + seconds) {
        if (per_second > 0 && (double)count > (t - began) * per_second) {
            usleep(50);
            continue;
        }
        int sent = sendmmsg(s, messages, AT_ONCE, 0);
        count += sent > 0 ? sent : 0;
    }
    return (double)count / (t - began);
}

int main(int argc, char **argv) {
    int sends = argc == 7 && !strcmp(argv[1], "send"), size = BUFFER;
    if (!sends && !(argc == 5 && !strcmp(argv[1], "receive")))
        return 2;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[3]))};
    int bytes = sends ? atoi(argv[5]) : MOST;
    if (inet_pton(AF_INET, argv[2], &address.sin_addr) != 1 || bytes < 1 || bytes > MOST)
        return 2;
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    if (s < 0 || (sends ? connect : bind)(s, (struct sockaddr *)&address, sizeof address) < 0)
        fail("socket");
    setsockopt(s, SOL_SOCKET, sends ? SO_SNDBUFFORCE : SO_RCVBUFFORCE, &size, sizeof size);
    for (int i = 0; i < AT_ONCE; i++) {
        parts[i] = (struct iovec){data[i], (size_t)bytes};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i], .msg_iovlen = 1};
    }
    puts("ready");
    fflush(stdout);
    printf("%.1f\n", sends ? send_all(s, atof(argv[4]), atof(argv[6])) : receive(s, atof(argv[4])));
    return 0;
}
