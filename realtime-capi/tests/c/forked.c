/* A child of a process with a hub: the hub is the parent's, a client is everybody's. */
#include "check.h"

#include <sys/wait.h>

static int child(rt_hub *hub, rt_client *client)
{
    rt_receipt receipt;
    rt_publication message = text_for("c", "from the child");
    STATUS(RT_ERROR_FORKED, rt_hub_publish(hub, &message, NULL));
    STATUS(RT_ERROR_FORKED, rt_hub_stop(hub, 0));
    CHECK(rt_hub_port(hub) == 0);
    rt_hub_free(hub);
    OK(rt_client_publish(client, &message, &receipt));
    CHECK(receipt.matched == 1);
    rt_client_free(client);
    puts("ok in the child");
    return 0;
}

int main(int argc, char **argv)
{
    char payload[256], toml[512];
    rt_hub *hub;
    rt_client *client = NULL;
    rt_publication message = text_for("c", "from the parent");
    rt_config *config = rt_config_new();
    int fd, status;
    pid_t pid;
    CHECK(argc == 2);
    snprintf(toml, sizeof toml, "listen = \"127.0.0.1:0\"\nsocket = \"%s/bus.sock\"", argv[1]);
    OK(rt_config_toml(config, toml));
    OK(rt_hub_new(config, &hub));
    rt_config_free(config);
    OK(rt_hub_start(hub));
    fd = tcp_to(rt_hub_port(hub));
    upgrade(fd, "/ws/c?envelope=raw");
    await_subscribers(hub, "c", 1);
    snprintf(toml, sizeof toml, "%s/bus.sock", argv[1]);
    OK(rt_client_new(toml, NULL, &client));
    OK(rt_client_publish(client, &message, NULL));
    next_frame(fd, payload, sizeof payload);
    CHECK(strcmp(payload, "from the parent") == 0);

    fflush(stdout);
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0)
        _exit(child(hub, client));
    next_frame(fd, payload, sizeof payload);
    CHECK(strcmp(payload, "from the child") == 0);
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);

    /* The parent has noticed nothing. */
    OK(rt_hub_publish(hub, &message, NULL));
    next_frame(fd, payload, sizeof payload);
    CHECK(strcmp(payload, "from the parent") == 0);
    OK(rt_client_publish(client, &message, NULL));
    next_frame(fd, payload, sizeof payload);
    rt_client_free(client);
    OK(rt_hub_stop(hub, 5000));
    rt_hub_free(hub);
    close(fd);
    puts("ok");
    return 0;
}
