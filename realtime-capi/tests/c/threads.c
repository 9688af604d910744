/* Eight threads publish 100,000 messages each; a client sees that none is missing, and each thread's in order. */
#include "check.h"

#include <pthread.h>

enum { THREADS = 8 };
static int each = 100000;
static rt_hub *hub;

static void *publish(void *argument)
{
    int number, thread = (int)(intptr_t)argument;
    char text[32];
    for (number = 0; number < each; number++) {
        rt_publication message;
        snprintf(text, sizeof text, "%d %d", thread, number);
        message = text_for("c", text);
        OK(rt_hub_publish(hub, &message, NULL));
    }
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t threads[THREADS];
    int next[THREADS] = {0};
    int fd, thread;
    long left;
    char *buffer = (char *)malloc(1 << 20);
    size_t have = 0;
    rt_stats stats;
    if (argc > 1)
        each = atoi(argv[1]);
    hub = start_hub("[limits]\noutbox_bytes = 268435456");
    fd = tcp_to(rt_hub_port(hub));
    upgrade(fd, "/ws/c?envelope=raw");
    await_subscribers(hub, "c", 1);
    for (thread = 0; thread < THREADS; thread++)
        CHECK(pthread_create(&threads[thread], NULL, publish, (void *)(intptr_t)thread) == 0);
    for (left = (long)THREADS * each; left > 0;) {
        ssize_t got = read(fd, buffer + have, (1 << 20) - have);
        size_t at = 0;
        if (got < 0 && errno == EINTR)
            continue;
        CHECK(got > 0);
        have += (size_t)got;
        /* Short text frames only: a byte, a length, the payload. */
        while (have - at >= 2 && have - at - 2 >= (size_t)buffer[at + 1]) {
            int number;
            char text[32];
            size_t length = (size_t)buffer[at + 1];
            CHECK(buffer[at] == (char)0x81 && length < sizeof text);
            memcpy(text, buffer + at + 2, length);
            text[length] = '\0';
            CHECK(sscanf(text, "%d %d", &thread, &number) == 2 && thread >= 0 && thread < THREADS);
            CHECK(next[thread] == number);
            next[thread]++;
            left--;
            at += 2 + length;
        }
        memmove(buffer, buffer + at, have - at);
        have -= at;
    }
    CHECK(have == 0);
    for (thread = 0; thread < THREADS; thread++) {
        CHECK(pthread_join(threads[thread], NULL) == 0);
        CHECK(next[thread] == each);
    }
    stats.size = sizeof stats;
    OK(rt_hub_stats(hub, &stats));
    CHECK(stats.published == (uint64_t)THREADS * (uint64_t)each && stats.closed == 0 && stats.queue_full == 0);
    close(fd);
    free(buffer);
    OK(rt_hub_stop(hub, 5000));
    rt_hub_free(hub);
    puts("ok");
    return 0;
}
