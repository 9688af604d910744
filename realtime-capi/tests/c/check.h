/* What the C tests share: checks that name their line, and a WebSocket client in a few lines. */
#ifndef CHECK_H
#define CHECK_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "realtime.h"

#define CHECK(condition)                                                                                \
    do {                                                                                                \
        if (!(condition)) {                                                                             \
            fprintf(stderr, "%s:%d: not true: %s (%s)\n", __FILE__, __LINE__, #condition,               \
                    rt_last_error_message());                                                           \
            exit(1);                                                                                    \
        }                                                                                               \
    } while (0)

/* Fails unless a call answers this status, and a failed one has words. */
#define STATUS(expected, call)                                                                          \
    do {                                                                                                \
        rt_status got_ = (call);                                                                        \
        if (got_ != (expected)) {                                                                       \
            fprintf(stderr, "%s:%d: %s is %d, not %s: %s\n", __FILE__, __LINE__, #call, (int)got_,      \
                    #expected, rt_last_error_message());                                                \
            exit(1);                                                                                    \
        }                                                                                               \
        if (got_ != RT_OK)                                                                              \
            CHECK(rt_last_error_message()[0] != '\0');                                                  \
    } while (0)

#define OK(call) STATUS(RT_OK, call)

/* Seconds after which a read or a wait is a failure. */
#define DEADLINE 60

static inline rt_hub *start_hub(const char *more)
{
    rt_config *config = rt_config_new();
    rt_hub *hub = NULL;
    CHECK(config != NULL);
    OK(rt_config_set(config, "listen", "127.0.0.1:0"));
    OK(rt_config_set(config, "socket", ""));
    /* Under valgrind, on a busy machine, the usual ones are short. */
    OK(rt_config_set(config, "publish_timeout_ms", "60000"));
    OK(rt_config_set(config, "limits.handshake_timeout_ms", "60000"));
    OK(rt_config_toml(config, more));
    OK(rt_hub_new(config, &hub));
    rt_config_free(config);
    OK(rt_hub_start(hub));
    return hub;
}

static inline rt_publication text_for(const char *channel, const char *text)
{
    rt_publication message;
    memset(&message, 0, sizeof message);
    message.size = sizeof message;
    message.channel = channel;
    message.data = text;
    message.length = text ? strlen(text) : 0;
    return message;
}

static inline int tcp_to(uint16_t port)
{
    struct sockaddr_in address;
    struct timeval deadline;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0);
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
    deadline.tv_sec = DEADLINE;
    deadline.tv_usec = 0;
    CHECK(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &deadline, sizeof deadline) == 0);
    return fd;
}

static inline void send_all(int fd, const void *data, size_t length)
{
    const char *next = (const char *)data;
    while (length > 0) {
        ssize_t sent = send(fd, next, length, MSG_NOSIGNAL);
        CHECK(sent > 0);
        next += sent;
        length -= (size_t)sent;
    }
}

static inline void read_all(int fd, void *data, size_t length)
{
    char *next = (char *)data;
    while (length > 0) {
        ssize_t got = read(fd, next, length);
        /* A process that was stopped and goes on finds a read with a deadline interrupted. */
        if (got < 0 && errno == EINTR)
            continue;
        CHECK(got > 0);
        next += got;
        length -= (size_t)got;
    }
}

/* Upgrades a connection to a path of the hub. */
static inline void upgrade(int fd, const char *path)
{
    char request[512], answer[1024];
    size_t length = 0;
    snprintf(request, sizeof request,
             "GET %s HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
             "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
             path);
    send_all(fd, request, strlen(request));
    do {
        CHECK(length < sizeof answer - 1);
        read_all(fd, answer + length, 1);
        answer[++length] = '\0';
    } while (strstr(answer, "\r\n\r\n") == NULL);
    CHECK(strncmp(answer, "HTTP/1.1 101", 12) == 0);
}

/* Sends a masked text frame of at most 125 bytes. */
static inline void send_text(int fd, const char *text)
{
    unsigned char frame[6 + 125] = {0x81, 0, 0, 0, 0, 0};
    size_t length = strlen(text);
    CHECK(length <= 125);
    frame[1] = (unsigned char)(0x80 | length);
    memcpy(frame + 6, text, length);
    send_all(fd, frame, 6 + length);
}

/* Reads a frame of at most `room - 1` bytes; gives its first byte and ends the payload with NUL. */
static inline int next_frame(int fd, char *payload, size_t room)
{
    unsigned char head[2], extended[8];
    uint64_t length;
    int bytes, at;
    read_all(fd, head, 2);
    length = head[1] & 0x7f;
    bytes = length == 126 ? 2 : length == 127 ? 8 : 0;
    if (bytes > 0) {
        read_all(fd, extended, (size_t)bytes);
        for (length = 0, at = 0; at < bytes; at++)
            length = length << 8 | extended[at];
    }
    CHECK(length < room);
    read_all(fd, payload, (size_t)length);
    payload[length] = '\0';
    return head[0];
}

/* Between looks at a state: under valgrind one thread runs at a time. */
static inline void rest(void)
{
    const struct timespec millisecond = {0, 1000000};
    nanosleep(&millisecond, NULL);
}

/* The number of subscribers of a channel, when it has reached `wanted`. */
static inline void await_subscribers(const rt_hub *hub, const char *name, size_t wanted)
{
    size_t found = 0;
    time_t end = time(NULL) + DEADLINE;
    do {
        rt_channels *channels = NULL;
        rt_channel channel;
        found = 0;
        OK(rt_hub_channels(hub, NULL, &channels));
        while (rt_channels_next(channels, &channel))
            if (strcmp(channel.name, name) == 0)
                found = channel.subscribers;
        rt_channels_free(channels);
        CHECK(time(NULL) <= end);
        if (found != wanted)
            rest();
    } while (found != wanted);
}

#endif
