/* A hub in this process, from its start to its end, as a client sees it. */
#include "check.h"

#include <fcntl.h>

static int records;
static char userdata_mark;

static void on_log(uint32_t level, const char *message, void *userdata)
{
    CHECK(level >= RT_LOG_ERROR && level <= RT_LOG_INFO && message != NULL && userdata == &userdata_mark);
    __atomic_add_fetch(&records, 1, __ATOMIC_SEQ_CST);
}

static void publishes(rt_hub *hub, int fd)
{
    static const unsigned char binary[] = {0, 1, 255};
    char payload[4096];
    const char *except[3];
    rt_receipt receipt;
    rt_publication message = text_for("orders", "shipped \"7\"");

    OK(rt_hub_publish(hub, &message, &receipt));
    CHECK(receipt.offset == 1 && receipt.matched == 1 && receipt.epoch != 0);
    CHECK(next_frame(fd, payload, sizeof payload) == 0x81);
    CHECK(strstr(payload, "\"data\":\"shipped \\\"7\\\"\"") && strstr(payload, "\"event\":\"message\""));

    message = text_for("orders", "{\"id\":42}");
    message.kind = RT_JSON;
    message.event = "shipped";
    OK(rt_hub_publish(hub, &message, NULL));
    next_frame(fd, payload, sizeof payload);
    CHECK(strstr(payload, "\"data\":{\"id\":42}") && strstr(payload, "\"event\":\"shipped\""));

    /* A repeat with the same key is accepted, and not sent again. */
    message = text_for("orders", "once");
    message.id = "key";
    OK(rt_hub_publish(hub, &message, &receipt));
    CHECK(receipt.offset == 3);
    OK(rt_hub_publish(hub, &message, &receipt));
    CHECK(receipt.offset == 3);
    next_frame(fd, payload, sizeof payload);
    CHECK(strstr(payload, "once"));

    /* Bytes go out in a binary frame to those who get bare payloads. */
    {
        int raw = tcp_to(rt_hub_port(hub));
        upgrade(raw, "/ws/bytes?envelope=raw");
        await_subscribers(hub, "bytes", 1);
        message = text_for("bytes", NULL);
        message.data = binary;
        message.length = sizeof binary;
        message.kind = RT_BINARY;
        OK(rt_hub_publish(hub, &message, NULL));
        CHECK(next_frame(raw, payload, sizeof payload) == 0x82 && memcmp(payload, binary, sizeof binary) == 0);
        close(raw);
    }

    /* What is no socket id is ignored; the connection's own id keeps it out. */
    except[0] = "nonsense";
    except[1] = NULL;
    message = text_for("orders", "for others");
    message.except = except;
    message.except_count = 2;
    OK(rt_hub_publish(hub, &message, NULL));
    next_frame(fd, payload, sizeof payload);
    CHECK(strstr(payload, "for others"));
}

static void batches(rt_hub *hub, int fd)
{
    rt_publication messages[3];
    rt_receipt receipts[3];
    char payload[4096];
    size_t accepted = 9;
    messages[0] = text_for("orders", "a");
    messages[1] = text_for("orders", "b");
    messages[2] = text_for("", "c");
    STATUS(RT_ERROR_INVALID_ARGUMENT, rt_hub_publish_batch(hub, messages, 3, receipts, &accepted));
    messages[2] = text_for("orders", "c");
    OK(rt_hub_publish_batch(hub, messages, 3, receipts, &accepted));
    CHECK(accepted == 3 && receipts[2].offset == receipts[0].offset + 2);
    next_frame(fd, payload, sizeof payload);
    CHECK(strstr(payload, "\"data\":\"a\""));
    next_frame(fd, payload, sizeof payload);
    CHECK(strstr(payload, "\"data\":\"b\""));
    next_frame(fd, payload, sizeof payload);
    CHECK(strstr(payload, "\"data\":\"c\""));
}

static void users(rt_hub *hub, int fd, const char *socket_id)
{
    char payload[4096];
    rt_users *list = NULL;
    rt_user user;
    rt_publication message;
    bool found = false;
    size_t closed = 0;
    OK(rt_hub_set_user(hub, NULL, socket_id, "anna", "{\"name\":\"Anna\"}", &found));
    CHECK(found);
    OK(rt_hub_set_user(hub, NULL, "1.2", "anna", NULL, &found));
    CHECK(!found);
    OK(rt_hub_channel_users(hub, NULL, "orders", &list));
    CHECK(rt_users_count(list) == 1 && rt_users_next(list, &user));
    CHECK(strcmp(user.id, "anna") == 0 && strcmp(user.info, "{\"name\":\"Anna\"}") == 0 && user.connections == 1);
    CHECK(!rt_users_next(list, &user));
    rt_users_free(list);
    message = text_for(NULL, "for you");
    message.user = "anna";
    OK(rt_hub_publish(hub, &message, NULL));
    next_frame(fd, payload, sizeof payload);
    CHECK(strstr(payload, "for you"));
    OK(rt_hub_disconnect_user(hub, NULL, "anna", 4001, "bye", &closed));
    CHECK(closed == 1);
    CHECK(next_frame(fd, payload, sizeof payload) == 0x88);
    CHECK((unsigned char)payload[0] == 4001 >> 8 && (unsigned char)payload[1] == (4001 & 255));
    CHECK(strcmp(payload + 2, "bye") == 0);
}

/* A listener of the host's, and a connection that the host has accepted. */
static void handed_over(void)
{
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    rt_config *config = rt_config_new();
    rt_hub *hub = NULL;
    char payload[4096];
    rt_publication message;
    int own, peer, taken, listener = socket(AF_INET, SOCK_STREAM, 0);
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 8) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&address, &length) == 0);
    own = socket(AF_INET, SOCK_STREAM, 0);
    OK(rt_config_set(config, "socket", ""));
    OK(rt_hub_new(config, &hub));
    rt_config_free(config);
    STATUS(RT_ERROR_INVALID_ARGUMENT, rt_hub_listen_on(hub, own));
    STATUS(RT_ERROR_INVALID_ARGUMENT, rt_hub_listen_on(hub, -1));
    OK(rt_hub_listen_on(hub, listener));
    OK(rt_hub_start(hub));
    CHECK(rt_hub_port(hub) == ntohs(address.sin_port));
    STATUS(RT_ERROR_STATE, rt_hub_listen_on(hub, own));
    STATUS(RT_ERROR_INVALID_ARGUMENT, rt_hub_accept(hub, own));
    close(own);

    /* Another listener, of which the hub knows nothing. */
    listener = socket(AF_INET, SOCK_STREAM, 0);
    address.sin_port = 0;
    CHECK(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 8) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&address, &length) == 0);
    peer = tcp_to(ntohs(address.sin_port));
    taken = accept(listener, NULL, NULL);
    CHECK(taken >= 0);
    OK(rt_hub_accept(hub, taken));
    upgrade(peer, "/ws/handed?envelope=raw");
    await_subscribers(hub, "handed", 1);
    message = text_for("handed", "over");
    OK(rt_hub_publish(hub, &message, NULL));
    next_frame(peer, payload, sizeof payload);
    CHECK(strcmp(payload, "over") == 0);
    close(peer);
    close(listener);
    rt_hub_free(hub);
}

int main(void)
{
    char payload[4096], socket_id[64];
    rt_stats stats;
    rt_hub *hub;
    rt_publication message;
    int fd;
    CHECK(rt_abi_version() == RT_ABI_VERSION && strcmp(rt_version(), RT_VERSION) == 0);
    CHECK(rt_last_error_message()[0] == '\0');
    OK(rt_log_to(on_log, RT_LOG_INFO, &userdata_mark));
    hub = start_hub("[[apps]]\nname = \"shop\"");
    CHECK(rt_hub_port(hub) != 0);

    fd = tcp_to(rt_hub_port(hub));
    upgrade(fd, "/ws");
    next_frame(fd, payload, sizeof payload);
    CHECK(sscanf(strstr(payload, "\"socket_id\":\""), "\"socket_id\":\"%63[0-9.]", socket_id) == 1);
    send_text(fd, "{\"action\":\"subscribe\",\"channel\":\"orders\"}");
    next_frame(fd, payload, sizeof payload);
    CHECK(strstr(payload, "subscribed"));

    publishes(hub, fd);
    batches(hub, fd);
    message = text_for("orders", "elsewhere");
    message.app = "shop";
    OK(rt_hub_publish(hub, &message, NULL));
    users(hub, fd, socket_id);
    close(fd);
    stats.size = sizeof stats;
    OK(rt_hub_stats(hub, &stats));
    CHECK(stats.published >= 9 && stats.closed >= 1 && stats.uptime_ms < 3600 * 1000);

    /* A request that is refused is logged with its reason. */
    fd = tcp_to(rt_hub_port(hub));
    send_text(fd, "no HTTP");
    while (read(fd, payload, sizeof payload) > 0)
        ;
    close(fd);
    OK(rt_hub_stop(hub, 5000));
    CHECK(__atomic_load_n(&records, __ATOMIC_SEQ_CST) > 0);
    OK(rt_log_to(NULL, 0, NULL));
    CHECK(rt_hub_port(hub) == 0);
    rt_hub_free(hub);
    handed_over();
    puts("ok");
    return 0;
}
