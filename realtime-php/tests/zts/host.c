/*
 * A server that embeds thread-safe PHP as FrankenPHP does: one process, PHP threads that answer requests, and an engine
 * that is ended and started again, on another thread each time.
 *
 *   host EXTENSION SCRIPT THREADS REQUESTS ENGINES
 *
 * Runs SCRIPT with $engine, $thread and $request set, REQUESTS times on each thread of each engine. Half of the requests
 * of a thread follow each other as a FrankenPHP worker's do, without RSHUTDOWN and RINIT between them. Says "engine N" when
 * one is up and waits for a line on stdin; says "ended" after the last one and waits for another line before it exits.
 */

#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <php.h>
#include <SAPI.h>
#include <php_main.h>
#include <sapi/embed/php_embed.h>

static int engine, threads, requests;
static const char *extension, *script;
static atomic_int failures;

/* What the script prints are failures. */
static size_t print(const char *text, size_t length)
{
    if (length > 0) {
        atomic_fetch_add(&failures, 1);
        fwrite(text, 1, length, stderr);
    }
    return length;
}

static void run(int thread, int request)
{
    char code[4096];
    snprintf(code, sizeof code, "$engine = %d; $thread = %d; $request = %d; require '%s';", engine, thread, request, script);
    zend_first_try {
        if (zend_eval_string_ex(code, NULL, "request", true) == FAILURE) {
            atomic_fetch_add(&failures, 1);
        }
    } zend_catch {
        atomic_fetch_add(&failures, 1);
        fprintf(stderr, "the request was aborted\n");
    } zend_end_try();
}

static void *php_thread(void *argument)
{
    int thread = (int)(long)argument, request = 0;
    ts_resource(0);
    while (request < requests / 2) {
        if (php_request_startup() == FAILURE) {
            atomic_fetch_add(&failures, 1);
            break;
        }
        run(thread, request++);
        php_request_shutdown(NULL);
    }
    /* A worker: one request of PHP's, in which the SAPI is activated for each request of a client. */
    if (php_request_startup() == FAILURE) {
        atomic_fetch_add(&failures, 1);
    } else {
        while (request < requests) {
            sapi_deactivate();
            sapi_activate();
            run(thread, request++);
        }
        php_request_shutdown(NULL);
    }
    ts_free_thread();
    return NULL;
}

static void wait_for_line(void)
{
    char line[16];
    if (fgets(line, sizeof line, stdin) == NULL) {
        exit(3);
    }
}

static void *engine_thread(void *unused)
{
    pthread_t workers[64];
    char ini[8192];
    (void)unused;
    snprintf(ini, sizeof ini, "%sextension=%s\n", "html_errors=0\ndisplay_errors=1\nlog_errors=0\nerror_reporting=-1\nmemory_limit=64M\n", extension);
    php_embed_module.name = "frankenphp";
    php_embed_module.ub_write = print;
    php_embed_module.php_ini_ignore = 1;
    php_embed_module.ini_entries = NULL;
    php_tsrm_startup();
    sapi_startup(&php_embed_module);
    php_embed_module.ini_entries = strdup(ini);
    if (php_embed_module.startup(&php_embed_module) == FAILURE) {
        fprintf(stderr, "the engine did not start\n");
        exit(4);
    }
    printf("engine %d\n", engine);
    wait_for_line();
    for (long i = 0; i < threads; i++) {
        if (pthread_create(&workers[i], NULL, php_thread, (void *)i) != 0) {
            exit(5);
        }
    }
    for (int i = 0; i < threads; i++) {
        pthread_join(workers[i], NULL);
    }
    php_module_shutdown();
    sapi_shutdown();
    tsrm_shutdown();
    return NULL;
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IONBF, 0);
    if (argc != 6 || (threads = atoi(argv[3])) > 64) {
        return 2;
    }
    extension = argv[1];
    script = argv[2];
    requests = atoi(argv[4]);
    for (engine = 1; engine <= atoi(argv[5]); engine++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, engine_thread, NULL) != 0 || pthread_join(thread, NULL) != 0) {
            return 5;
        }
    }
    printf("ended\n");
    wait_for_line();
    return failures == 0 ? 0 : 1;
}
