/*
 * A sensor gateway: sensors send lines over TCP, browsers see them live, and the hub lives in this
 * process. One epoll loop serves sensors and page; one port serves page and WebSockets, because the
 * loop hands every connection that does not ask for the page over to the hub.
 *
 *     make run
 *     ./gateway [--simulate] [--page PORT] [--sensors PORT]
 *
 * A sensor sends `NAME VALUE` and a newline, NAME being 1-32 of a-z, 0-9 and -, VALUE a number:
 *
 *     echo 'boiler-1 71.5' | nc -N 127.0.0.1 PORT
 */
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "page.h"
#include "realtime.h"

enum { LINE = 64, NAME = 32, EVENTS = 64 };

enum kind { PAGE_LISTENER, SENSOR_LISTENER, BROWSER, SENSOR, CLOCK, SIGNAL };

/* What epoll tells of: a descriptor and what it is. */
struct source {
    enum kind kind;
    int fd;
    size_t have;
    char line[LINE];
};

static int poller;
static rt_hub *hub;

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static void must(rt_status status, const char *what)
{
    if (status != RT_OK) {
        fprintf(stderr, "%s: %s\n", what, rt_last_error_message());
        exit(1);
    }
}

static void watch(int fd, enum kind kind)
{
    struct epoll_event event = {.events = EPOLLIN};
    struct source *source = calloc(1, sizeof *source);
    if (source == NULL)
        fail("memory");
    source->fd = fd;
    source->kind = kind;
    event.data.ptr = source;
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) != 0)
        fail("epoll");
}

/* Takes a source out; its descriptor is somebody else's now, or closed. */
static void forget(struct source *source, int is_handed_over)
{
    epoll_ctl(poller, EPOLL_CTL_DEL, source->fd, NULL);
    if (!is_handed_over)
        close(source->fd);
    free(source);
}

static int listen_on(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int yes = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) != 0 ||
        bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fd, 128) != 0)
        fail("listen");
    return fd;
}

static int port_of(int fd)
{
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    if (getsockname(fd, (struct sockaddr *)&address, &length) != 0)
        fail("getsockname");
    return ntohs(address.sin_port);
}

/* Every subscriber of `sensors` gets the value, in an event of the sensor's name. */
static void publish(const char *name, double value)
{
    char json[32];
    rt_publication message = {.size = sizeof message, .channel = "sensors", .event = name, .data = json, .kind = RT_JSON};
    message.length = (size_t)snprintf(json, sizeof json, "%.6g", value);
    if (rt_hub_publish(hub, &message, NULL) != RT_OK)
        fprintf(stderr, "%s is lost: %s\n", name, rt_last_error_message());
}

/* A line of a sensor's; 0 if it is none. */
static int take_line(char *line)
{
    char *value = strchr(line, ' '), *end = NULL, *at;
    double number;
    if (value == NULL || value == line || value - line > NAME)
        return 0;
    *value++ = '\0';
    for (at = line; *at != '\0'; at++)
        if (!islower((unsigned char)*at) && !isdigit((unsigned char)*at) && *at != '-')
            return 0;
    number = strtod(value, &end);
    if (end == value || (*end != '\0' && *end != '\r') || !isfinite(number))
        return 0;
    publish(line, number);
    return 1;
}

static void on_sensor(struct source *sensor)
{
    ssize_t got = read(sensor->fd, sensor->line + sensor->have, LINE - sensor->have);
    char *end;
    if (got <= 0) {
        if (got == 0 || (errno != EAGAIN && errno != EINTR))
            forget(sensor, 0);
        return;
    }
    sensor->have += (size_t)got;
    while ((end = memchr(sensor->line, '\n', sensor->have)) != NULL) {
        *end = '\0';
        if (!take_line(sensor->line)) {
            fputs("a sensor sent something else than NAME VALUE and is dropped\n", stderr);
            forget(sensor, 0);
            return;
        }
        sensor->have -= (size_t)(end + 1 - sensor->line);
        memmove(sensor->line, end + 1, sensor->have);
    }
    if (sensor->have == LINE) {
        fprintf(stderr, "a sensor sent a line of more than %d bytes and is dropped\n", LINE - 1);
        forget(sensor, 0);
    }
}

/* The page is served here; everything else is the hub's. Only looks at the bytes, so that the hub reads them too. */
static void on_browser(struct source *browser)
{
    char start[16];
    ssize_t got = recv(browser->fd, start, sizeof start - 1, MSG_PEEK | MSG_DONTWAIT);
    if (got <= 0) {
        if (got == 0 || (errno != EAGAIN && errno != EINTR))
            forget(browser, 0);
        return;
    }
    start[got] = '\0';
    if (strncmp(start, "GET / ", (size_t)got < 6 ? (size_t)got : 6) != 0) {
        if (rt_hub_accept(hub, browser->fd) == RT_OK) {
            forget(browser, 1);
        } else {
            fprintf(stderr, "a client was turned away: %s\n", rt_last_error_message());
            forget(browser, 0);
        }
    } else if (got >= 6) {
        char request[4096], head[128];
        int length = snprintf(head, sizeof head,
                              "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: %zu\r\n"
                              "Connection: close\r\n\r\n",
                              sizeof page - 1);
        if (recv(browser->fd, request, sizeof request, MSG_DONTWAIT) < 0 ||
            send(browser->fd, head, (size_t)length, MSG_NOSIGNAL) < 0 ||
            send(browser->fd, page, sizeof page - 1, MSG_NOSIGNAL) < 0)
            fputs("the page could not be sent\n", stderr);
        shutdown(browser->fd, SHUT_WR);
        forget(browser, 0);
    }
}

static void on_clock(int fd)
{
    static double time;
    uint64_t ticks;
    if (read(fd, &ticks, sizeof ticks) != (ssize_t)sizeof ticks)
        return;
    time += 0.1 * (double)ticks;
    publish("boiler-1", 70 + 4 * sin(time / 3));
    publish("boiler-2", 62 + 2 * sin(time / 2 + 1));
    publish("outdoor", 11 + sin(time / 7) / 2);
}

static void serve(void)
{
    struct epoll_event events[EVENTS];
    for (;;) {
        int at, count = epoll_wait(poller, events, EVENTS, -1);
        if (count < 0 && errno != EINTR)
            fail("epoll_wait");
        for (at = 0; at < count; at++) {
            struct source *source = events[at].data.ptr;
            int fd;
            switch (source->kind) {
            case PAGE_LISTENER:
            case SENSOR_LISTENER:
                while ((fd = accept4(source->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
                    watch(fd, source->kind == PAGE_LISTENER ? BROWSER : SENSOR);
                break;
            case BROWSER:
                on_browser(source);
                break;
            case SENSOR:
                on_sensor(source);
                break;
            case CLOCK:
                on_clock(source->fd);
                break;
            case SIGNAL:
                return;
            }
        }
    }
}

int main(int argc, char **argv)
{
    int at, page_port = 0, sensor_port = 0, simulate = 0, page_listener, sensor_listener;
    sigset_t signals;
    rt_config *config = rt_config_new();
    for (at = 1; at < argc; at++) {
        if (strcmp(argv[at], "--simulate") == 0) {
            simulate = 1;
        } else if (strcmp(argv[at], "--page") == 0 && at + 1 < argc) {
            page_port = atoi(argv[++at]);
        } else if (strcmp(argv[at], "--sensors") == 0 && at + 1 < argc) {
            sensor_port = atoi(argv[++at]);
        } else {
            fprintf(stderr, "usage: %s [--simulate] [--page PORT] [--sensors PORT]\n", argv[0]);
            return 2;
        }
    }
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (poller < 0)
        fail("epoll");

    /* The hub's own listener is not used here: any free port, on this machine only. */
    must(rt_config_set(config, "listen", "127.0.0.1:0"), "configuration");
    must(rt_config_set(config, "socket", ""), "configuration");
    must(rt_hub_new(config, &hub), "hub");
    must(rt_hub_start(hub), "hub");
    rt_config_free(config);

    watch(page_listener = listen_on(page_port), PAGE_LISTENER);
    watch(sensor_listener = listen_on(sensor_port), SENSOR_LISTENER);
    if (simulate) {
        struct itimerspec tenth = {.it_interval = {.tv_nsec = 100000000}, .it_value = {.tv_nsec = 100000000}};
        int clock = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
        if (clock < 0 || timerfd_settime(clock, 0, &tenth, NULL) != 0)
            fail("timerfd");
        watch(clock, CLOCK);
    }
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    watch(signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC), SIGNAL);

    printf("page     http://127.0.0.1:%d/\nsensors  127.0.0.1:%d, lines of NAME VALUE\n", port_of(page_listener), port_of(sensor_listener));
    fflush(stdout);
    serve();
    must(rt_hub_stop(hub, 5000), "stop");
    rt_hub_free(hub);
    puts("stopped");
    return 0;
}
