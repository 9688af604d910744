/* The library loaded, used and unloaded fifty times. */
#include <dirent.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "realtime.h"

static int entries(const char *path)
{
    int count = 0;
    DIR *directory = opendir(path);
    if (directory == NULL)
        exit(2);
    while (readdir(directory) != NULL)
        count++;
    closedir(directory);
    return count;
}

#define FIND(type, name)                                     \
    type name##_;                                            \
    *(void **)&name##_ = dlsym(library, #name);              \
    if (name##_ == NULL) {                                   \
        fprintf(stderr, "no %s: %s\n", #name, dlerror());    \
        return 1;                                            \
    }

typedef rt_config *(*config_new)(void);
typedef void (*config_free)(rt_config *);
typedef rt_status (*config_set)(rt_config *, const char *, const char *);
typedef rt_status (*hub_new)(const rt_config *, rt_hub **);
typedef rt_status (*hub_start)(rt_hub *);
typedef rt_status (*hub_stop)(rt_hub *, uint64_t);
typedef void (*hub_free)(rt_hub *);

int main(int argc, char **argv)
{
    int round, threads, descriptors;
    if (argc != 2)
        return 2;
    threads = entries("/proc/self/task");
    descriptors = entries("/proc/self/fd");
    for (round = 0; round < 50; round++) {
        rt_config *config;
        rt_hub *hub = NULL;
        void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
        if (library == NULL) {
            fprintf(stderr, "%s\n", dlerror());
            return 1;
        }
        if (entries("/proc/self/task") != threads || entries("/proc/self/fd") != descriptors) {
            fprintf(stderr, "round %d: loading alone started something\n", round);
            return 1;
        }
        {
            FIND(config_new, rt_config_new)
            FIND(config_free, rt_config_free)
            FIND(config_set, rt_config_set)
            FIND(hub_new, rt_hub_new)
            FIND(hub_start, rt_hub_start)
            FIND(hub_stop, rt_hub_stop)
            FIND(hub_free, rt_hub_free)
            config = rt_config_new_();
            if (rt_config_set_(config, "listen", "127.0.0.1:0") != RT_OK || rt_config_set_(config, "socket", "") != RT_OK ||
                rt_hub_new_(config, &hub) != RT_OK || rt_hub_start_(hub) != RT_OK || rt_hub_stop_(hub, 5000) != RT_OK) {
                fprintf(stderr, "round %d: it does not work\n", round);
                return 1;
            }
            rt_hub_free_(hub);
            rt_config_free_(config);
        }
        if (dlclose(library) != 0) {
            fprintf(stderr, "%s\n", dlerror());
            return 1;
        }
        if (entries("/proc/self/task") != threads || entries("/proc/self/fd") != descriptors) {
            fprintf(stderr, "round %d: %d threads, %d descriptors are left\n", round, entries("/proc/self/task") - threads,
                    entries("/proc/self/fd") - descriptors);
            return 1;
        }
    }
    puts("ok");
    return 0;
}
