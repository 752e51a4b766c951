/* See kernel.h.
 *
 *   leave_forever    read, read, ... from the device, as long as it has packets ──► leave ──► sendmmsg, UDP_SEGMENT
 *   arrive_forever   recvmmsg, UDP_GRO ──► arrive ──► writev to the device
 */
#define _GNU_SOURCE
#include "kernel.h"

#include <errno.h>
#include <linux/if_tun.h>
#include <netinet/udp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "arrive.h"
#include "leave.h"

#ifndef TUN_F_USO4 /* Linux 6.2 */
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif
#ifndef UDP_SEGMENT /* Linux 4.18, 5.0 */
#define UDP_SEGMENT 103
#define UDP_GRO 104
#endif

enum { ICMP_PER_SECOND = 1000 }; /* as net.ipv4.icmp_msgs_per_sec was until it became 10,000 */
enum { FRAMES = 128, FRAME = sizeof(struct virtio_net_hdr) + MOST_PACKET, ROOM = 4 * FRAME };
enum { MESSAGES = 32, MESSAGE = MOST_PACKET + 1 + 4 * 64 }; /* not a power of two: all would share the same cache */

_Noreturn void fail(const char *doing) {
    fprintf(stderr, "tortie-udp: %s: %s\n", doing, strerror(errno));
    _exit(1);
}

struct abilities abilities(struct opened fds, struct abilities less) {
    int yes = 1, segment;
    unsigned tcp = TUN_F_CSUM | TUN_F_TSO4, udp = TUN_F_USO4 | TUN_F_USO6; /* of USO all or nothing */
    socklen_t len = sizeof segment;
    struct abilities can = {0};
    /* A kernel that does not know it would send a bundle as one datagram. */
    can.send_many = less.send_many && !getsockopt(fds.udp, IPPROTO_UDP, UDP_SEGMENT, &segment, &len);
    can.cut_udp = less.cut_tcp && less.cut_udp && !ioctl(fds.tun, TUNSETOFFLOAD, tcp | udp);
    can.cut_tcp = can.cut_udp || (less.cut_tcp && !ioctl(fds.tun, TUNSETOFFLOAD, tcp));
    if (!can.cut_tcp && ioctl(fds.tun, TUNSETOFFLOAD, 0))
        fail("TUNSETOFFLOAD");
    can.take_many = less.take_many && !setsockopt(fds.udp, IPPROTO_UDP, UDP_GRO, &yes, sizeof yes);
    return can;
}

/* --- leaving ------------------------------------------------------------------------------------------------------ */

union segment {
    char room[CMSG_SPACE(sizeof(uint16_t))];
    struct cmsghdr align;
};

static void say_size(struct msghdr *message, union segment *control, size_t size) {
    uint16_t value = (uint16_t)size;
    message->msg_control = control->room;
    message->msg_controllen = sizeof control->room;
    struct cmsghdr *c = CMSG_FIRSTHDR(message);
    c->cmsg_level = IPPROTO_UDP;
    c->cmsg_type = UDP_SEGMENT;
    c->cmsg_len = CMSG_LEN(sizeof value);
    memcpy(CMSG_DATA(c), &value, sizeof value);
}

/* One after the other, where the kernel takes no bundle: a path of a smaller MTU, a device without checksums. */
static void send_apart(struct worker *worker, struct bundle *bundle) {
    struct counts *counts = &worker->outlet.counts;
    struct iovec *part = bundle->parts, *end = part + bundle->part_count;
    for (size_t left = bundle->bytes; left;) {
        size_t len = left < bundle->size ? left : bundle->size, have = 0;
        struct msghdr message = {.msg_name = &bundle->to, .msg_namelen = sizeof bundle->to, .msg_iov = part};
        while (have < len && part < end)
            have += part++->iov_len;
        message.msg_iovlen = (size_t)(part - message.msg_iov);
        int ok = sendmsg(worker->fds.udp, &message, 0) >= 0;
        count(counts, SENT_CALLS, 1);
        count(counts, ok ? SENT_PACKETS : SENT_REFUSED, 1);
        count(counts, SENT_BYTES, ok ? len : 0);
        left -= len;
    }
}

static void send_all(struct outlet *outlet, struct bundle *bundles, size_t many) {
    static union segment controls[BUNDLES]; /* this is one thread's */
    static struct mmsghdr messages[BUNDLES];
    struct worker *worker = (struct worker *)outlet;
    for (size_t i = 0; i < many; i++) {
        struct bundle *one = &bundles[i];
        messages[i].msg_hdr = (struct msghdr){
            .msg_name = &one->to, .msg_namelen = sizeof one->to, .msg_iov = one->parts, .msg_iovlen = one->part_count};
        if (one->count > 1)
            say_size(&messages[i].msg_hdr, &controls[i], one->size);
    }
    for (size_t done = 0; done < many;) {
        int sent = sendmmsg(worker->fds.udp, messages + done, (unsigned)(many - done), 0);
        count(&outlet->counts, SENT_CALLS, 1);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && bundles[done].count > 1)
            send_apart(worker, &bundles[done]);
        else if (sent < 0)
            count(&outlet->counts, SENT_REFUSED, 1);
        for (int i = 0; i < sent; i++) {
            count(&outlet->counts, SENT_PACKETS, bundles[done + (size_t)i].count);
            count(&outlet->counts, SENT_BYTES, bundles[done + (size_t)i].bytes);
        }
        done += sent > 0 ? (size_t)sent : 1;
    }
}

static void tell(struct outlet *outlet, const uint8_t *packet, size_t len) {
    struct worker *worker = (struct worker *)outlet;
    struct sockaddr_in to = {.sin_family = AF_INET};
    time_t second = time(NULL);
    if (second != worker->second)
        worker->told = 0;
    worker->second = second;
    if (worker->told++ >= ICMP_PER_SECOND)
        return;
    memcpy(&to.sin_addr, packet + IPV4_TO, 4);
    if (sendto(worker->fds.icmp, packet, len, MSG_DONTWAIT, (struct sockaddr *)&to, sizeof to) < 0)
        return; /* nobody is owed an ICMP message */
}

/* A packet of the device, 0 for none now. Of other errors than that of a device that is gone the next packet knows
 * nothing: the kernel says EINVAL of one that it cannot describe. */
static size_t next_frame(int tun, uint8_t *frame) {
    ssize_t len = read(tun, frame, FRAME);
    if (len < 0 && errno == EBADFD)
        fail("read from the TUN device");
    return len > 0 ? (size_t)len : 0;
}

void *leave_forever(void *own) {
    struct worker *worker = own;
    struct leaving *leaving = calloc(1, sizeof *leaving);
    uint8_t *room = malloc(ROOM);
    if (!leaving || !room)
        fail("malloc");
    prctl(PR_SET_NAME, "udp-leave");
    worker->outlet.send = send_all;
    worker->outlet.icmp = tell;
    leaving->outlet = &worker->outlet;
    leaving->most = worker->can.send_many ? BUNDLE_COUNT : 1;
    struct pollfd ready = {.fd = worker->fds.tun, .events = POLLIN};
    for (;;) {
        size_t used = 0, frames = 0, len = 1;
        atomic_fetch_add(&worker->turn, 1);
        leaving->table = atomic_load(worker->table);
        while (len && frames < FRAMES && used + FRAME <= ROOM) { /* `used` may be past ROOM: it is rounded up */
            len = next_frame(worker->fds.tun, room + used);
            if (len)
                leave(leaving, room + used, len);
            used += (len + 63) / 64 * 64;
            frames++;
        }
        leave_all(leaving);
        atomic_fetch_add(&worker->turn, 1);
        if (!len && poll(&ready, 1, -1) < 0 && errno != EINTR)
            fail("poll");
    }
}

/* --- arriving ----------------------------------------------------------------------------------------------------- */

static void write_frame(struct outlet *outlet, struct written *packets) {
    packets->parts[0] = (struct iovec){&packets->head, sizeof packets->head};
    ssize_t done = writev(((struct worker *)outlet)->fds.tun, packets->parts, (int)packets->part_count);
    if (done < 0 && errno == EBADFD)
        fail("write to the TUN device");
    count(&outlet->counts, RECEIVED_CALLS, 1);
    count(&outlet->counts, done < 0 ? RECEIVED_REFUSED : RECEIVED_PACKETS, packets->count);
    count(&outlet->counts, RECEIVED_BYTES, done < 0 ? 0 : packets->bytes);
}

static size_t size_of_each(struct msghdr *message) {
    int size = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c))
        if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_GRO)
            memcpy(&size, CMSG_DATA(c), sizeof size);
    return size > 0 ? (size_t)size : 0;
}

struct inbox {
    struct mmsghdr messages[MESSAGES];
    struct sockaddr_in from[MESSAGES];
    struct iovec parts[MESSAGES];
    union {
        char room[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } controls[MESSAGES];
    uint8_t data[MESSAGES][MESSAGE];
};

static int receive(int udp, struct inbox *inbox) {
    for (int i = 0; i < MESSAGES; i++) {
        inbox->parts[i] = (struct iovec){inbox->data[i], MESSAGE};
        inbox->messages[i].msg_hdr = (struct msghdr){
            .msg_name = &inbox->from[i], .msg_namelen = sizeof inbox->from[i], .msg_iov = &inbox->parts[i],
            .msg_iovlen = 1, .msg_control = &inbox->controls[i], .msg_controllen = sizeof inbox->controls[i]};
    }
    int found = recvmmsg(udp, inbox->messages, MESSAGES, MSG_WAITFORONE, NULL);
    if (found < 0 && errno == EBADF)
        fail("receive from the network");
    return found > 0 ? found : 0; /* an error that the network reported is not ours */
}

void *arrive_forever(void *own) {
    struct worker *worker = own;
    struct arriving *arriving = calloc(1, sizeof *arriving);
    struct inbox *inbox = calloc(1, sizeof *inbox);
    if (!arriving || !inbox)
        fail("malloc");
    prctl(PR_SET_NAME, "udp-arrive");
    worker->outlet.write = write_frame;
    worker->outlet.icmp = tell;
    arriving->outlet = &worker->outlet;
    arriving->merges_tcp = worker->can.cut_tcp;
    arriving->merges_udp = worker->can.cut_udp;
    for (;;) {
        int found = receive(worker->fds.udp, inbox);
        atomic_fetch_add(&worker->turn, 1);
        arriving->table = atomic_load(worker->table);
        for (int i = 0; i < found; i++) {
            struct msghdr *message = &inbox->messages[i].msg_hdr;
            arrive(arriving, inbox->from[i].sin_addr.s_addr, inbox->data[i], inbox->messages[i].msg_len,
                   size_of_each(message));
        }
        arrive_all(arriving);
        atomic_fetch_add(&worker->turn, 1);
    }
}
