/* What a call of rt_hub_publish costs: prints the hub's port, then, for each line on its input, the mean of a call in ns. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "realtime.h"

enum { BURST = 1000, BURSTS = 20 };

static void must(rt_status status)
{
    if (status != RT_OK) {
        fprintf(stderr, "%s\n", rt_last_error_message());
        exit(1);
    }
}

static long long now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

int main(void)
{
    static char body[100];
    char line[16];
    rt_config *config = rt_config_new();
    rt_hub *hub = NULL;
    rt_stats stats = {.size = sizeof stats};
    rt_publication message = {.size = sizeof message, .channel = "c", .data = body, .length = sizeof body};
    memset(body, 'x', sizeof body);
    must(rt_config_set(config, "listen", "127.0.0.1:0"));
    must(rt_config_set(config, "socket", ""));
    must(rt_hub_new(config, &hub));
    must(rt_hub_start(hub));
    printf("%d\n", rt_hub_port(hub));
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL) {
        long long spent = 0;
        for (int burst = 0; burst < BURSTS; burst++) {
            const struct timespec pause = {.tv_nsec = 200000};
            long long start = now();
            for (int call = 0; call < BURST; call++)
                must(rt_hub_publish(hub, &message, NULL));
            spent += now() - start;
            do {
                nanosleep(&pause, NULL);
                must(rt_hub_stats(hub, &stats));
            } while (stats.ingress_bytes > 0);
        }
        printf("%f\n", (double)spent / (BURST * BURSTS));
        fflush(stdout);
    }
    rt_hub_stop(hub, 1000);
    rt_hub_free(hub);
    return 0;
}
