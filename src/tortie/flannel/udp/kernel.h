/* The kernel's side: a TUN device, a UDP socket, a raw socket for ICMP, and the two threads between them. */
#ifndef KERNEL_H
#define KERNEL_H

#include <stdatomic.h>
#include <time.h>

#include "outlet.h"
#include "table.h"

/* What the daemon has opened for it. */
struct opened {
    int tun, udp, icmp;
};

/* What the kernel can do, or is to be thought to. */
struct abilities {
    int cut_tcp, cut_udp;     /* the device gives packets that are still to be cut (TSO, USO), and takes such */
    int send_many, take_many; /* UDP_SEGMENT and UDP_GRO of the socket */
};

/* A thread of its own, for one direction. `turn` is odd while it works with the table. The outlet comes first: what is
 * given to its functions is the worker. */
struct worker {
    struct outlet outlet;
    struct opened fds;
    struct abilities can;
    _Atomic(struct table *) *table;
    atomic_uint turn;
    time_t second; /* in which so many ICMP messages were sent */
    int told;
};

/* Asks the device and the socket; what `less` has not set is not even asked for. */
struct abilities abilities(struct opened fds, struct abilities less);
void *leave_forever(void *worker);
void *arrive_forever(void *worker);

/* Ends the program with one line of why. */
_Noreturn void fail(const char *doing);

#endif
