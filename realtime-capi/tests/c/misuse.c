/* Every function with NULL, and every misuse that C allows short of lying about memory. */
#include "check.h"

static void nulls(void)
{
    rt_config *config = rt_config_new();
    rt_hub *hub = NULL;
    rt_client *client = NULL;
    rt_publication message = text_for("c", "x");
    rt_users *users = NULL;
    rt_channels *channels = NULL;
    rt_user user;
    rt_channel channel;
    rt_stats stats;

    STATUS(RT_ERROR_NULL, rt_config_toml(NULL, ""));
    STATUS(RT_ERROR_NULL, rt_config_toml(config, NULL));
    STATUS(RT_ERROR_NULL, rt_config_file(NULL, "x"));
    STATUS(RT_ERROR_NULL, rt_config_file(config, NULL));
    STATUS(RT_ERROR_NULL, rt_config_environment(NULL));
    STATUS(RT_ERROR_NULL, rt_config_set(NULL, "listen", "x"));
    STATUS(RT_ERROR_NULL, rt_config_set(config, NULL, "x"));
    STATUS(RT_ERROR_NULL, rt_config_set(config, "listen", NULL));
    rt_config_free(NULL);

    STATUS(RT_ERROR_NULL, rt_hub_new(config, NULL));
    STATUS(RT_ERROR_NULL, rt_hub_listen_on(NULL, 0));
    STATUS(RT_ERROR_NULL, rt_hub_start(NULL));
    STATUS(RT_ERROR_NULL, rt_hub_stop(NULL, 0));
    STATUS(RT_ERROR_NULL, rt_hub_accept(NULL, 0));
    STATUS(RT_ERROR_NULL, rt_hub_publish(NULL, &message, NULL));
    STATUS(RT_ERROR_NULL, rt_hub_publish_batch(NULL, &message, 1, NULL, NULL));
    STATUS(RT_ERROR_NULL, rt_hub_channel_users(NULL, NULL, "c", &users));
    STATUS(RT_ERROR_NULL, rt_hub_channels(NULL, NULL, &channels));
    STATUS(RT_ERROR_NULL, rt_hub_set_user(NULL, NULL, "1.2", NULL, NULL, NULL));
    STATUS(RT_ERROR_NULL, rt_hub_disconnect_user(NULL, NULL, "u", 4000, NULL, NULL));
    STATUS(RT_ERROR_NULL, rt_hub_stats(NULL, &stats));
    CHECK(rt_hub_port(NULL) == 0);
    rt_hub_free(NULL);

    hub = start_hub("");
    STATUS(RT_ERROR_NULL, rt_hub_publish(hub, NULL, NULL));
    STATUS(RT_ERROR_NULL, rt_hub_publish_batch(hub, NULL, 1, NULL, NULL));
    OK(rt_hub_publish_batch(hub, NULL, 0, NULL, NULL));
    STATUS(RT_ERROR_NULL, rt_hub_channel_users(hub, NULL, NULL, &users));
    STATUS(RT_ERROR_NULL, rt_hub_channel_users(hub, NULL, "c", NULL));
    STATUS(RT_ERROR_NULL, rt_hub_channels(hub, NULL, NULL));
    STATUS(RT_ERROR_NULL, rt_hub_set_user(hub, NULL, NULL, "u", NULL, NULL));
    STATUS(RT_ERROR_NULL, rt_hub_disconnect_user(hub, NULL, NULL, 4000, NULL, NULL));
    OK(rt_hub_disconnect_user(hub, NULL, "u", 4000, NULL, NULL));
    STATUS(RT_ERROR_NULL, rt_hub_stats(hub, NULL));
    message.channel = NULL;
    STATUS(RT_ERROR_NULL, rt_hub_publish(hub, &message, NULL));
    message = text_for("c", NULL);
    OK(rt_hub_publish(hub, &message, NULL));
    message.length = 1;
    STATUS(RT_ERROR_NULL, rt_hub_publish(hub, &message, NULL));
    message = text_for("c", "x");
    message.except_count = 1;
    STATUS(RT_ERROR_NULL, rt_hub_publish(hub, &message, NULL));
    rt_hub_free(hub);

    CHECK(rt_users_count(NULL) == 0 && !rt_users_next(NULL, &user));
    CHECK(rt_channels_count(NULL) == 0 && !rt_channels_next(NULL, &channel));
    rt_users_free(NULL);
    rt_channels_free(NULL);

    STATUS(RT_ERROR_NULL, rt_client_new("/nowhere", NULL, NULL));
    STATUS(RT_ERROR_NULL, rt_client_trust(NULL, "/ca.pem"));
    STATUS(RT_ERROR_NULL, rt_client_publish(NULL, &message, NULL));
    STATUS(RT_ERROR_NULL, rt_client_publish_batch(NULL, NULL, 0));
    STATUS(RT_ERROR_NULL, rt_client_channel_users(NULL, NULL, "c", &users));
    STATUS(RT_ERROR_NULL, rt_client_channels(NULL, NULL, &channels));
    STATUS(RT_ERROR_NULL, rt_client_disconnect_user(NULL, NULL, "u", 4000, NULL, NULL));
    OK(rt_client_new("/nowhere/realtime.sock", NULL, &client));
    STATUS(RT_ERROR_INVALID_ARGUMENT, rt_client_trust(client, "\xff"));
    OK(rt_client_trust(client, "/nowhere/ca.pem"));
    OK(rt_client_trust(client, NULL));
    STATUS(RT_ERROR_NULL, rt_client_publish(client, NULL, NULL));
    STATUS(RT_ERROR_NULL, rt_client_channel_users(client, NULL, NULL, &users));
    STATUS(RT_ERROR_NULL, rt_client_channel_users(client, NULL, "c", NULL));
    STATUS(RT_ERROR_NULL, rt_client_channels(client, NULL, NULL));
    STATUS(RT_ERROR_NULL, rt_client_disconnect_user(client, NULL, NULL, 4000, NULL, NULL));
    message = text_for("c", "x");
    STATUS(RT_ERROR_UNAVAILABLE, rt_client_publish(client, &message, NULL));
    rt_client_free(client);
    rt_client_free(NULL);
    OK(rt_log_to(NULL, 99, NULL));
    rt_config_free(config);
}

static void states(void)
{
    rt_config *config = rt_config_new();
    rt_hub *hub = NULL, *second = NULL;
    rt_publication message = text_for("c", "x");
    char address[32];
    OK(rt_config_set(config, "listen", "127.0.0.1:0"));
    OK(rt_config_set(config, "socket", ""));
    OK(rt_hub_new(config, &hub));
    STATUS(RT_ERROR_STATE, rt_hub_publish(hub, &message, NULL));
    STATUS(RT_ERROR_STATE, rt_hub_accept(hub, 0));
    OK(rt_hub_stop(hub, 0));
    OK(rt_hub_start(hub));
    STATUS(RT_ERROR_STATE, rt_hub_start(hub));

    /* A port in use is an error of the start, which may be tried again. */
    snprintf(address, sizeof address, "127.0.0.1:%d", rt_hub_port(hub));
    OK(rt_config_set(config, "listen", address));
    OK(rt_hub_new(config, &second));
    STATUS(RT_ERROR_BIND, rt_hub_start(second));
    OK(rt_hub_stop(hub, 5000));
    OK(rt_hub_start(second));
    rt_hub_free(second);

    OK(rt_hub_stop(hub, 5000));
    STATUS(RT_ERROR_STATE, rt_hub_start(hub));
    STATUS(RT_ERROR_STATE, rt_hub_publish(hub, &message, NULL));
    rt_hub_free(hub);

    STATUS(RT_ERROR_CONFIG, rt_config_set(config, "lissten", "x"));
    CHECK(strstr(rt_last_error_message(), "did you mean `listen`?"));
    STATUS(RT_ERROR_CONFIG, rt_config_toml(config, "limits = ["));
    STATUS(RT_ERROR_CONFIG, rt_config_file(config, "/nowhere/realtime.toml"));
    OK(rt_config_set(config, "listen", "nonsense"));
    STATUS(RT_ERROR_CONFIG, rt_hub_new(config, &hub));
    /* Open to others without a word on who may come in. */
    OK(rt_config_set(config, "listen", "0.0.0.0:0"));
    STATUS(RT_ERROR_CONFIG, rt_hub_new(config, &hub));
    OK(rt_config_environment(config));
    rt_config_free(config);
    /* An unfinished hub is freed like any other. */
    OK(rt_hub_new(NULL, &hub));
    rt_hub_free(hub);
}

static void arguments(void)
{
    char channel[202], event[202], id[130];
    rt_hub *hub = start_hub("[limits]\npublication_bytes = 1000");
    rt_client *client = NULL;
    rt_publication message = text_for("c", "x");
    char *body = (char *)calloc(1001, 1);
    size_t length;
    memset(channel, 'c', sizeof channel);
    memset(event, 'e', sizeof event);
    memset(id, 'i', sizeof id);
    memset(body, 'x', 1001);

    message.size = sizeof message - 1;
    STATUS(RT_ERROR_INVALID_ARGUMENT, rt_hub_publish(hub, &message, NULL));
    message.size = 0;
    STATUS(RT_ERROR_INVALID_ARGUMENT, rt_hub_publish(hub, &message, NULL));
    message = text_for("c", "x");
    message.kind = 3;
    STATUS(RT_ERROR_INVALID_ARGUMENT, rt_hub_publish(hub, &message, NULL));
    message = text_for("c", "\xff");
    STATUS(RT_ERROR_INVALID_ARGUMENT, rt_hub_publish(hub, &message, NULL));
    message.kind = RT_BINARY;
    OK(rt_hub_publish(hub, &message, NULL));
    message = text_for("c", "{");
    message.kind = RT_JSON;
    STATUS(RT_ERROR_INVALID_ARGUMENT, rt_hub_publish(hub, &message, NULL));
    message = text_for("\xff", "x");
    STATUS(RT_ERROR_INVALID_ARGUMENT, rt_hub_publish(hub, &message, NULL));
    message = text_for("#user:1", "x");
    STATUS(RT_ERROR_INVALID_ARGUMENT, rt_hub_publish(hub, &message, NULL));
    message = text_for("c", "x");
    message.user = "u";
    STATUS(RT_ERROR_INVALID_ARGUMENT, rt_hub_publish(hub, &message, NULL));
    message = text_for("c", "x");
    message.app = "nobody's";
    STATUS(RT_ERROR_INVALID_ARGUMENT, rt_hub_publish(hub, &message, NULL));
    message = text_for("c", "x");
    message.flags = 2;
    STATUS(RT_ERROR_INVALID_ARGUMENT, rt_hub_publish(hub, &message, NULL));
    message.flags = RT_NO_HISTORY;
    message.ttl_ms = 1000;
    OK(rt_hub_publish(hub, &message, NULL));
    for (length = 199; length <= 201; length++) {
        channel[length] = '\0';
        message = text_for(channel, "x");
        STATUS(length <= 200 ? RT_OK : RT_ERROR_INVALID_ARGUMENT, rt_hub_publish(hub, &message, NULL));
        channel[length] = 'c';
        event[length] = '\0';
        message = text_for("c", "x");
        message.event = event;
        STATUS(length <= 200 ? RT_OK : RT_ERROR_INVALID_ARGUMENT, rt_hub_publish(hub, &message, NULL));
        event[length] = 'e';
    }
    for (length = 127; length <= 129; length++) {
        id[length] = '\0';
        message = text_for("c", "x");
        message.id = id;
        STATUS(length <= 128 ? RT_OK : RT_ERROR_INVALID_ARGUMENT, rt_hub_publish(hub, &message, NULL));
        id[length] = 'i';
    }
    for (length = 999; length <= 1001; length++) {
        message = text_for("c", "");
        message.data = body;
        message.length = length;
        STATUS(length <= 1000 ? RT_OK : RT_ERROR_TOO_LARGE, rt_hub_publish(hub, &message, NULL));
    }
    STATUS(RT_ERROR_INVALID_ARGUMENT, rt_hub_set_user(hub, NULL, "nonsense", "u", NULL, NULL));
    STATUS(RT_ERROR_INVALID_ARGUMENT, rt_hub_set_user(hub, NULL, "1.2", "u", "{", NULL));
    STATUS(RT_ERROR_INVALID_ARGUMENT, rt_hub_disconnect_user(hub, NULL, "u", 1001, NULL, NULL));
    STATUS(RT_ERROR_INVALID_ARGUMENT, rt_hub_disconnect_user(hub, "x", "u", 4000, NULL, NULL));
    STATUS(RT_ERROR_INVALID_ARGUMENT, rt_client_new("\xff", NULL, &client));
    rt_hub_free(hub);
    free(body);
}

int main(void)
{
    nulls();
    states();
    arguments();
    puts("ok");
    return 0;
}
