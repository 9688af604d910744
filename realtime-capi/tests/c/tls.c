/* A client over TLS: whom it trusts, and what it says of others. */
#include "check.h"

/* A busy machine may take longer for the handshake than a call has; then the next ones fail at once for a second. */
static rt_status publish(rt_client *client, rt_receipt *receipt)
{
    rt_publication message = text_for("c", "over TLS");
    struct timespec moment = {0, 100 * 1000 * 1000};
    int tries;
    for (tries = 0; tries < DEADLINE * 10; tries++) {
        rt_status status = rt_client_publish(client, &message, receipt);
        const char *said = rt_last_error_message();
        if (status == RT_OK || strstr(said, "certificate") != NULL || strstr(said, "socket_ca") != NULL)
            return status;
        nanosleep(&moment, NULL);
    }
    return RT_ERROR_TIMEOUT;
}

int main(int argc, char **argv)
{
    const char *secret = "0123456789abcdef0123456789abcdef";
    char toml[2048], address[64], certificate[1024];
    rt_hub *hub;
    rt_client *client = NULL;
    rt_receipt receipt;
    rt_config *config = rt_config_new();
    CHECK(argc == 4);
    snprintf(certificate, sizeof certificate, "%s/certificate.pem", argv[1]);
    snprintf(toml, sizeof toml,
             "listen = \"127.0.0.1:0\"\nsocket = \"tls://127.0.0.1:%s\"\nsecret = \"%s\"\n"
             "socket_cert = \"%s\"\nsocket_key = \"%s/key.pem\"",
             argv[2], secret, certificate, argv[1]);
    OK(rt_config_toml(config, toml));
    OK(rt_hub_new(config, &hub));
    rt_config_free(config);
    OK(rt_hub_start(hub));

    snprintf(address, sizeof address, "tls://localhost:%s", argv[2]);
    OK(rt_client_new(address, secret, &client));
    OK(rt_client_trust(client, argv[3]));
    STATUS(RT_ERROR_UNAVAILABLE, publish(client, &receipt));
    CHECK(strstr(rt_last_error_message(), "signed by nobody that is trusted here") != NULL);
    OK(rt_client_trust(client, "/nowhere/ca.pem"));
    STATUS(RT_ERROR_UNAVAILABLE, publish(client, &receipt));
    CHECK(strstr(rt_last_error_message(), "cannot read `/nowhere/ca.pem`") != NULL);
    OK(rt_client_trust(client, certificate));
    OK(publish(client, &receipt));
    CHECK(receipt.offset == 1);
    rt_client_free(client);
    OK(rt_hub_stop(hub, 5000));
    rt_hub_free(hub);
    puts("ok");
    return 0;
}
