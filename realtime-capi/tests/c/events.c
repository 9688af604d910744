/* What happens to connections and channels, read from a loop and by a callback. */
#include "check.h"

#include <poll.h>

static const char *names[] = {"other", "connect", "subscribe", "joined", "left", "message", "unsubscribe", "disconnect", "occupied", "vacated"};

/* The next event, waited for as a program with a loop of its own does. */
static const rt_event *await_event(rt_hub *hub, int descriptor)
{
    const rt_event *event = NULL;
    time_t end = time(NULL) + DEADLINE;
    for (;;) {
        struct pollfd ready;
        OK(rt_hub_next_event(hub, 0, &event));
        if (event != NULL)
            return event;
        CHECK(time(NULL) <= end);
        ready.fd = descriptor;
        ready.events = POLLIN;
        CHECK(poll(&ready, 1, DEADLINE * 1000) == 1);
    }
}

static int is(const char *text, const char *expected)
{
    return text != NULL && strcmp(text, expected) == 0;
}

/* Reads events until the connection has gone; checks those of the connection and the channel, whose order is theirs. */
static void from_a_loop(rt_hub *hub)
{
    static const uint32_t of_connection[] = {RT_EVENT_CONNECT, RT_EVENT_SUBSCRIBE, RT_EVENT_MESSAGE, RT_EVENT_UNSUBSCRIBE, RT_EVENT_DISCONNECT};
    static const uint32_t of_channel[] = {RT_EVENT_OCCUPIED, RT_EVENT_VACATED};
    char payload[4096], socket_id[64];
    const rt_event *event;
    size_t seen = 0, seen_of_channel = 0;
    int descriptor = -1, fd = tcp_to(rt_hub_port(hub)), given_back = 0;
    OK(rt_hub_event_fd(hub, &descriptor));
    CHECK(descriptor >= 0);
    upgrade(fd, "/ws");
    next_frame(fd, payload, sizeof payload);
    CHECK(sscanf(strstr(payload, "\"socket_id\":\""), "\"socket_id\":\"%63[0-9.]", socket_id) == 1);
    send_text(fd, "{\"action\":\"subscribe\",\"channel\":\"orders\"}");
    send_text(fd, "{\"action\":\"message\",\"event\":\"hello\",\"data\":{\"a\":[1]}}");
    send_text(fd, "{\"action\":\"unsubscribe\",\"channel\":\"orders\"}");
    while (seen < 5 || seen_of_channel < 2) {
        event = await_event(hub, descriptor);
        CHECK(event->number < 100 && event->at_ms > 1600000000000ULL && event->dropped == 0 && event->app == NULL);
        CHECK(strstr(event->json, names[event->kind]) != NULL);
        if (event->socket_id == NULL) {
            CHECK(seen_of_channel < 2 && event->kind == of_channel[seen_of_channel] && is(event->channel, "orders"));
            seen_of_channel++;
        } else {
            if (event->kind == RT_EVENT_SUBSCRIBE && !given_back) {
                /* Somebody who cannot do it now: it comes again. */
                given_back = 1;
                CHECK(event->attempt == 1);
                OK(rt_event_release(hub, event));
                continue;
            }
            CHECK(event->attempt == (event->kind == RT_EVENT_SUBSCRIBE ? 2U : 1U));
            CHECK(seen < 5 && event->kind == of_connection[seen] && is(event->socket_id, socket_id));
            seen++;
            if (event->kind == RT_EVENT_MESSAGE) {
                CHECK(is(event->event, "hello") && is(event->data, "{\"a\":[1]}") && event->text == NULL);
                CHECK(event->channel == NULL);
            }
            if (event->kind == RT_EVENT_UNSUBSCRIBE) {
                CHECK(is(event->channel, "orders"));
                close(fd);
            }
        }
        OK(rt_event_done(hub, event));
    }
    event = (const rt_event *)&seen;
    OK(rt_hub_next_event(hub, 0, &event));
    CHECK(event == NULL);
}

struct heard {
    rt_hub *hub;
    int count;
    uint32_t last;
};

static void on_event(const rt_event *event, void *userdata)
{
    struct heard *heard = (struct heard *)userdata;
    rt_publication message = text_for("log", event->json);
    /* A callback may call into the library, also while the hub stops. */
    rt_status status = rt_hub_publish(heard->hub, &message, NULL);
    CHECK(status == RT_OK || status == RT_ERROR_STATE);
    heard->last = event->kind;
    __atomic_add_fetch(&heard->count, 1, __ATOMIC_SEQ_CST);
}

static void by_callback(rt_hub *hub)
{
    /* Outlives this function, as the last callback does. */
    static struct heard heard;
    time_t end = time(NULL) + DEADLINE;
    char payload[4096];
    int count, fd;
    heard.hub = hub;
    OK(rt_hub_on_event(hub, on_event, &heard));
    STATUS(RT_ERROR_STATE, rt_hub_on_event(hub, on_event, &heard));
    fd = tcp_to(rt_hub_port(hub));
    upgrade(fd, "/ws/quiet");
    /* `connected` and `subscribed`. */
    next_frame(fd, payload, sizeof payload);
    next_frame(fd, payload, sizeof payload);
    close(fd);
    /* Connect, subscribe, occupied, disconnect, vacated. */
    while (__atomic_load_n(&heard.count, __ATOMIC_SEQ_CST) < 5) {
        CHECK(time(NULL) <= end);
        rest();
    }
    OK(rt_hub_on_event(hub, NULL, NULL));
    count = __atomic_load_n(&heard.count, __ATOMIC_SEQ_CST);
    fd = tcp_to(rt_hub_port(hub));
    upgrade(fd, "/ws/quiet");
    await_subscribers(hub, "quiet", 1);
    CHECK(__atomic_load_n(&heard.count, __ATOMIC_SEQ_CST) == count);
    close(fd);
    /* Another one may follow, and ends with the hub. */
    OK(rt_hub_on_event(hub, on_event, &heard));
}

int main(void)
{
    const rt_event *event = NULL;
    int descriptor = -1;
    rt_hub *hub = start_hub("");
    STATUS(RT_ERROR_INVALID_ARGUMENT, rt_hub_event_fd(hub, &descriptor));
    STATUS(RT_ERROR_INVALID_ARGUMENT, rt_hub_next_event(hub, 0, &event));
    STATUS(RT_ERROR_INVALID_ARGUMENT, rt_hub_on_event(hub, on_event, NULL));
    rt_hub_free(hub);

    hub = start_hub("[hooks]\nevents = [\"connect\", \"subscribe\", \"message\", \"unsubscribe\", \"disconnect\", \"occupied\", \"vacated\"]");
    STATUS(RT_ERROR_NULL, rt_hub_event_fd(hub, NULL));
    STATUS(RT_ERROR_NULL, rt_hub_event_fd(NULL, &descriptor));
    STATUS(RT_ERROR_NULL, rt_hub_next_event(hub, 0, NULL));
    STATUS(RT_ERROR_NULL, rt_hub_next_event(NULL, 0, &event));
    STATUS(RT_ERROR_NULL, rt_hub_on_event(NULL, on_event, NULL));
    OK(rt_event_done(hub, NULL));
    OK(rt_event_release(NULL, NULL));
    from_a_loop(hub);
    by_callback(hub);
    OK(rt_hub_stop(hub, 5000));
    STATUS(RT_ERROR_STATE, rt_hub_start(hub));
    rt_hub_free(hub);
    puts("ok");
    return 0;
}
