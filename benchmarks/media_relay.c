// SPDX-License-Identifier: Apache-2.0
// The yardstick of benchmarks/media.py: what sendmmsg does when nothing but C stands around it.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define AT_ONCE 1024

static struct mmsghdr *table(const struct sockaddr_in *names, int count, struct iovec *vector)
{
    struct mmsghdr *messages = calloc(count, sizeof *messages);
    for (int i = 0; i < count; i++) {
        messages[i].msg_hdr.msg_name = (void *)&names[i];
        messages[i].msg_hdr.msg_namelen = sizeof names[i];
        messages[i].msg_hdr.msg_iov = vector;
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    return messages;
}

static long copy(int fd, struct mmsghdr *messages, int count)
{
    long sent = 0;
    for (int at = 0; at < count;) {
        int n = count - at < AT_ONCE ? count - at : AT_ONCE;
        int done = sendmmsg(fd, messages + at, n, 0);
        if (done > 0)
            sent += done, at += done;
        else if (errno != EINTR)
            at++;
    }
    return sent;
}

// Sends `packets` copies of a packet to every address; returns how many datagrams were sent.
long blast(int fd, const struct sockaddr_in *names, int count, const char *packet, int length, int packets)
{
    struct iovec vector = {(void *)packet, length};
    struct mmsghdr *messages = table(names, count, &vector);
    long sent = 0;
    for (int i = 0; i < packets; i++)
        sent += copy(fd, messages, count);
    free(messages);
    return sent;
}

// Receives `packets` datagrams on fd and copies each to every address.
long relay(int fd, const struct sockaddr_in *names, int count, int packets)
{
    char buffer[2048];
    struct iovec vector = {buffer, 0};
    struct mmsghdr *messages = table(names, count, &vector);
    long sent = 0;
    for (int i = 0; i < packets; i++) {
        ssize_t length = recv(fd, buffer, sizeof buffer, 0);
        if (length < 0)
            break;
        vector.iov_len = length;
        sent += copy(fd, messages, count);
    }
    free(messages);
    return sent;
}
