/*
 * librealtime: a realtime hub, for any language that can call C.
 *
 * A hub serves WebSocket clients from threads of its own. The host publishes to channels; every
 * subscribed client gets it. In short:
 *
 *     rt_config *config = rt_config_new();
 *     rt_config_set(config, "listen", "127.0.0.1:8080");
 *
 *     rt_hub *hub = NULL;
 *     if (rt_hub_new(config, &hub) != RT_OK || rt_hub_start(hub) != RT_OK) {
 *         fprintf(stderr, "%s\n", rt_last_error_message());
 *         exit(1);
 *     }
 *     rt_config_free(config);
 *
 *     rt_publication message = {0};
 *     message.size = sizeof message;
 *     message.channel = "orders";
 *     message.data = "shipped";
 *     message.length = 7;
 *     if (rt_hub_publish(hub, &message, NULL) != RT_OK)
 *         fprintf(stderr, "%s\n", rt_last_error_message());
 *
 *     rt_hub_stop(hub, 5000);
 *     rt_hub_free(hub);
 *
 * Conventions
 *
 * Names       rt_noun_verb.
 * Results     Functions return rt_status unless they cannot fail. RT_OK is 0. Outputs are written
 *             only on success, where a function does not say otherwise. rt_last_error_message()
 *             has the words, for the thread that called.
 * Ownership   What _new gives, the _free of the same noun takes, once; _free accepts NULL. Arguments
 *             that are pointers to const, and what they point to, are borrowed for the call: the
 *             library keeps no reference. Lists belong to the caller; what they show lives as long
 *             as they do. What a callback is given lives until it returns. A descriptor belongs to
 *             the hub when the call that hands it over has returned RT_OK, else to the caller.
 * NULL        Every pointer may be NULL without harm. Where one is needed the result is
 *             RT_ERROR_NULL.
 * Texts       UTF-8 that ends with NUL, or a pointer with a length where it may be anything.
 * Threads     A hub and a client may be used by many threads at once; configurations and lists by
 *             one at a time. _free is the last call of all. Callbacks come from the library's threads,
 *             userdata last.
 * Fork        A hub stays with the process that started it. In a forked child its descriptors are
 *             closed, every call on it returns RT_ERROR_FORKED, and rt_hub_free gives its memory
 *             back. A client goes on in the child with a connection of its own.
 * The process Loading the library does nothing: no thread, no signal handler, no environment. The
 *             hub's threads have all signals blocked. No call ends the process; a fault inside is
 *             RT_ERROR_PANIC.
 */


#ifndef REALTIME_H
#define REALTIME_H

/* Made from the sources of realtime-capi by `make header`. Do not edit. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The version that this header is of. */
#define RT_VERSION "0.1.0"


// `rt_event.kind`: something that this version of the header has no number for; see `json`.
#define RT_EVENT_OTHER 0

// `rt_event.kind`: a connection has come.
#define RT_EVENT_CONNECT 1

// `rt_event.kind`: a connection hears a channel.
#define RT_EVENT_SUBSCRIBE 2

// `rt_event.kind`: a user has come onto a channel that shows its users.
#define RT_EVENT_JOINED 3

// `rt_event.kind`: a user has left one.
#define RT_EVENT_LEFT 4

// `rt_event.kind`: a client has sent something for the application.
#define RT_EVENT_MESSAGE 5

// `rt_event.kind`: a connection has said that it no longer wants to hear a channel.
#define RT_EVENT_UNSUBSCRIBE 6

// `rt_event.kind`: a connection has gone, and all of its subscriptions with it.
#define RT_EVENT_DISCONNECT 7

// `rt_event.kind`: a channel has its first subscriber.
#define RT_EVENT_OCCUPIED 8

// `rt_event.kind`: a channel has lost its last one.
#define RT_EVENT_VACATED 9

// See `rt_abi_version`.
#define RT_ABI_VERSION 0

// Log level: what needs somebody now.
#define RT_LOG_ERROR 1

// Log level: what may need somebody soon.
#define RT_LOG_WARN 2

// Log level: starts, stops and refusals, with their reasons.
#define RT_LOG_INFO 3

// Log level: what helps to find a fault.
#define RT_LOG_DEBUG 4

// `rt_publication.kind`: a string. Clients of JSON protocols get it as a JSON string.
#define RT_TEXT 0

// `rt_publication.kind`: JSON text. Clients get the value that it denotes.
#define RT_JSON 1

// `rt_publication.kind`: bytes, sent in binary frames where the client's protocol has them.
#define RT_BINARY 2

// `rt_publication.flags`: the channel's history does not keep it.
#define RT_NO_HISTORY 1

// What a function returns. Numbers are never reused; a later version may add some.
typedef enum rt_status {
    // It worked, and outputs have been written.
    RT_OK = 0,
    // An argument that must not be NULL is.
    RT_ERROR_NULL = 1,
    // An argument breaks a rule: a name, an id, JSON, UTF-8, a number.
    RT_ERROR_INVALID_ARGUMENT = 2,
    // A message is larger than the configured limit.
    RT_ERROR_TOO_LARGE = 3,
    // The hub has accepted as much as it holds. Try again later.
    RT_ERROR_QUEUE_FULL = 4,
    // A deadline passed. What was asked may or may not have happened. Try again later.
    RT_ERROR_TIMEOUT = 5,
    // The hub, or its broker, cannot be reached now. Try again later.
    RT_ERROR_UNAVAILABLE = 6,
    // The configuration cannot be used.
    RT_ERROR_CONFIG = 7,
    // The address or the socket cannot be listened on.
    RT_ERROR_BIND = 8,
    // The hub is not in the state for this: not started, started already, or stopped.
    RT_ERROR_STATE = 9,
    // The hub belongs to the process that this one was forked from.
    RT_ERROR_FORKED = 10,
    // A fault of the library, which goes on. Please report it.
    RT_ERROR_PANIC = 11,
    // The system refused something: threads, descriptors, memory.
    RT_ERROR_SYSTEM = 12,
    // The other process' hub does not allow this.
    RT_ERROR_UNAUTHORIZED = 13,
} rt_status;

// A list of channels. Not for several threads at once.
typedef struct rt_channels rt_channels;

// A connection to another process' hub, made with the first call and made again when the hub has
// been restarted. May be used by many threads: their calls wait for each other. Every call has a
// deadline of about a second; after one has passed calls fail at once for a second.
typedef struct rt_client rt_client;

// Settings for a hub. Not for several threads at once.
typedef struct rt_config rt_config;

// A hub. May be used by many threads at once, but `rt_hub_free` must be the last call of all.
typedef struct rt_hub rt_hub;

// A list of users. Not for several threads at once.
typedef struct rt_users rt_users;

// A message and where it goes. Set it to zeros, then `size`, then what is needed:
//
// ```c
// rt_publication message = {0};
// message.size = sizeof message;
// message.channel = "orders";
// message.data = "{\"id\":42}";
// message.length = 9;
// message.kind = RT_JSON;
// ```
//
// It is borrowed for the call, with everything it points to.
typedef struct rt_publication {
    // `sizeof (rt_publication)`. Later versions add fields at the end.
    size_t size;
    // The app by name. NULL: the default one.
    const char *app;
    // The channel: 1–200 bytes of UTF-8 without control characters. NULL if `user` is given.
    const char *channel;
    // Instead of a channel: all connections of this user.
    const char *user;
    // The event's name. NULL: `message`.
    const char *event;
    // The body; may be NULL if `length` is 0.
    const void *data;
    // Bytes in `data`, without a NUL.
    size_t length;
    // `RT_TEXT`, `RT_JSON` or `RT_BINARY`.
    uint32_t kind;
    // Socket ids of connections that do not get it; what is not a socket id is ignored, because it
    // usually comes from clients. May be NULL.
    const char *const *except;
    // How many.
    size_t except_count;
    // Idempotency key, 1–128 bytes: within five minutes a repeat is accepted and not sent again.
    // NULL: none.
    const char *id;
    // How long it stays in the channel's history, in milliseconds; 0: as long as the channel keeps its
    // messages.
    uint64_t ttl_ms;
    // 0, or `RT_NO_HISTORY`.
    uint32_t flags;
} rt_publication;

// Where an accepted publication stands.
typedef struct rt_receipt {
    // The numbering that `offset` belongs to.
    uint64_t epoch;
    // The publication's number in its channel, from 1, without gaps; 0 where the channel's `conflate_ms`
    // holds it until its window ends.
    uint64_t offset;
    // Subscriptions on this hub that it was queued to.
    size_t matched;
} rt_receipt;

// Something that has happened. Which kinds are queued the setting `hooks.events` says. Texts that do
// not apply are NULL. Made by the library alone, which may add fields at the end.
typedef struct rt_event {
    // Names it, and tells a repeat.
    uint64_t number;
    // When: milliseconds since 1970.
    uint64_t at_ms;
    // Events that found no room in the queue, since somebody was last told.
    uint64_t dropped;
    // `RT_EVENT_CONNECT` and so on.
    uint32_t kind;
    // 1 for the first time, more when it was given out before and not acknowledged.
    uint32_t attempt;
    // The app; NULL for the default one.
    const char *app;
    // The connection.
    const char *socket_id;
    // Whose connection it is, or who came or left.
    const char *user_id;
    // The channel.
    const char *channel;
    // A message's name.
    const char *event;
    // A message's data as JSON text.
    const char *data;
    // A message that is a text of no protocol, from a client with the raw envelope.
    const char *text;
    // All of it, as a JSON object.
    const char *json;
} rt_event;

// Takes one event, which lives until the function returns and is acknowledged then.
typedef void (*rt_event_callback)(const struct rt_event *event, void *userdata);

// What a hub has counted since its start. Set `size` before the call.
typedef struct rt_stats {
    // `sizeof (rt_stats)`. Later versions add fields at the end.
    size_t size;
    // Open connections.
    uint64_t connections;
    // Subscriptions of those connections.
    uint64_t subscriptions;
    // Channels with subscribers.
    uint64_t channels;
    // Publications accepted.
    uint64_t published;
    // Publications refused because the queue was full.
    uint64_t queue_full;
    // Bytes accepted and not yet sent or queued to clients.
    uint64_t ingress_bytes;
    // Messages from clients.
    uint64_t received;
    // Requests refused before they became connections.
    uint64_t refused;
    // Connections that have ended.
    uint64_t closed;
    // Of those: the client read too slowly.
    uint64_t closed_slow;
    // Milliseconds since the start.
    uint64_t uptime_ms;
} rt_stats;

// A user on a channel. The texts live as long as the list.
typedef struct rt_user {
    // Who.
    const char *id;
    // JSON text; NULL if there is none.
    const char *info;
    // How many of the user's connections are subscribed.
    size_t connections;
} rt_user;

// A channel with subscribers. The text lives as long as the list.
typedef struct rt_channel {
    // Its name.
    const char *name;
    // Its subscriptions.
    size_t subscribers;
} rt_channel;

// Takes one record: a line of UTF-8 that lives until the function returns. Called from the library's
// threads, several at once; it must not call into the library and should not block.
typedef void (*rt_log_callback)(uint32_t level, const char *message, void *userdata);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// What went wrong in this thread's last call that did not return `RT_OK`: one line of UTF-8
// without a newline at its end, for people. Never NULL; empty before the first error. It belongs
// to the library and is good until this thread's next call that fails.
const char *rt_last_error_message(void);

// Makes a client for the hub at this address: the path of its socket, or `tcp://HOST:PORT` or
// `tls://HOST:PORT` with the hub's `secret`. `address` may be NULL: the usual places are tried. `secret` may be NULL where
// none is needed. Connects with the first call, so that it succeeds without a hub. On success
// `*out` is a client to be freed with `rt_client_free`.
//
// Requires: The texts are NULL or end with NUL; `out` is NULL or a place for a pointer.
enum rt_status rt_client_new(const char *address,
                             const char *secret,
                             struct rt_client **out);

// Trusts the certificates of a file in PEM where the hub is reached over `tls://`, from the next
// connection on. `ca_file` may be NULL: the system's are trusted, as without this call. The file is
// read by the call that connects.
//
// Requires: `client` is NULL or from `rt_client_new`; `ca_file` is NULL or ends with NUL.
enum rt_status rt_client_trust(const struct rt_client *client, const char *ca_file);

// Frees a client. NULL is accepted.
//
// Requires: `client` came from `rt_client_new`, has not been freed, and no thread uses it any more.
void rt_client_free(struct rt_client *client);

// Publishes through another process' hub. Without a `receipt` it returns once the message is in the
// socket, which the hub reads in order even when it is told to stop; with one it waits for the
// hub's answer.
//
// Requires: As for `rt_hub_publish`, with a client from `rt_client_new`.
enum rt_status rt_client_publish(const struct rt_client *client,
                                 const struct rt_publication *publication,
                                 struct rt_receipt *receipt);

// Publishes several messages through another process' hub, which checks them together: none is sent
// if one is wrong, and go to one app. Returns once they are in the socket.
//
// Requires: `client` is NULL or from `rt_client_new`; `publications` as for `rt_hub_publish_batch`.
enum rt_status rt_client_publish_batch(const struct rt_client *client,
                                       const struct rt_publication *publications,
                                       size_t count);

// See `rt_hub_channel_users`.
//
// Requires: As for `rt_hub_channel_users`, with a client from `rt_client_new`.
enum rt_status rt_client_channel_users(const struct rt_client *client,
                                       const char *app,
                                       const char *channel,
                                       struct rt_users **out);

// See `rt_hub_channels`.
//
// Requires: As for `rt_hub_channels`, with a client from `rt_client_new`.
enum rt_status rt_client_channels(const struct rt_client *client, const char *app, struct rt_channels **out);

// See `rt_hub_disconnect_user`. Only the hub's own user and root may do that.
//
// Requires: As for `rt_hub_disconnect_user`, with a client from `rt_client_new`.
enum rt_status rt_client_disconnect_user(const struct rt_client *client,
                                         const char *app,
                                         const char *user,
                                         uint16_t code,
                                         const char *reason,
                                         size_t *closed);

// Makes a configuration in which everything has its default. Free it with `rt_config_free`. NULL
// only when memory has run out.
struct rt_config *rt_config_new(void);

// Frees a configuration. NULL is accepted. Hubs that were made of it are not affected.
//
// Requires: `config` came from `rt_config_new` and has not been freed.
void rt_config_free(struct rt_config *config);

// Adds settings from TOML text. An unknown setting is an error that names the nearest one.
//
// Requires: `config` is NULL or from `rt_config_new`; `toml` is NULL or ends with NUL.
enum rt_status rt_config_toml(struct rt_config *config, const char *toml);

// Adds settings from a TOML file.
//
// Requires: `config` is NULL or from `rt_config_new`; `path` is NULL or ends with NUL.
enum rt_status rt_config_file(struct rt_config *config, const char *path);

// Adds the settings from `REALTIME_*` environment variables (`REALTIME_LIMITS__OUTBOX_BYTES`). They
// are stronger than a file and weaker than `rt_config_set`, whatever the order of the calls.
//
// Requires: `config` is NULL or from `rt_config_new`. No other thread changes the environment meanwhile.
enum rt_status rt_config_environment(struct rt_config *config);

// Sets one setting by its dotted name, its value as text: `"limits.outbox_bytes"`, `"2097152"`.
// Stronger than files and the environment.
//
// Requires: `config` is NULL or from `rt_config_new`; the texts are NULL or end with NUL.
enum rt_status rt_config_set(struct rt_config *config, const char *name, const char *value);

// Gives a descriptor for the host's own loop (poll, epoll): readable when `rt_hub_next_event` may have
// something. It waits again when that, with a timeout of 0, has nothing any more. It belongs to the
// hub and is good until `rt_hub_free`. `RT_ERROR_INVALID_ARGUMENT`: `hooks.events` is empty.
//
// Requires: `hub` is NULL or from `rt_hub_new`; `descriptor` is NULL or a place for one.
enum rt_status rt_hub_event_fd(const struct rt_hub *hub, int *descriptor);

// Waits for the next event, at most `timeout_ms`. `*event` is NULL when there was none in time. Each
// event goes to one caller; those of one connection, and those of one channel, come in order, the
// next when the one before is acknowledged. To be ended with `rt_event_done` or `rt_event_release`.
//
// Requires: `hub` is NULL or from `rt_hub_new`; `event` is NULL or a place for a pointer.
enum rt_status rt_hub_next_event(const struct rt_hub *hub,
                                 uint64_t timeout_ms,
                                 const struct rt_event **event);

// Acknowledges an event and frees it. NULL is accepted.
//
// Requires: `hub` is NULL or the hub that gave it; `event` is NULL or from `rt_hub_next_event` and has not been
// ended.
enum rt_status rt_event_done(const struct rt_hub *hub, const struct rt_event *event);

// Gives an event back unacknowledged, for this or another caller to get again, and frees it. NULL is
// accepted. So does the hub by itself when `hooks.lease_ms` have passed.
//
// Requires: As for `rt_event_done`.
enum rt_status rt_event_release(const struct rt_hub *hub, const struct rt_event *event);

// Calls a function with every event, one after the other, on a thread of the library that does
// nothing else: it may block, and may call into the library, except `rt_hub_free` and this function.
// A NULL `callback` ends that; when it returns, no thread is in the callback any more. The hub's end
// does the same. `RT_ERROR_STATE`: there is one already.
//
// Requires: `hub` is NULL or from `rt_hub_new`; `callback` and `userdata` may be used from another thread until
// then.
enum rt_status rt_hub_on_event(struct rt_hub *hub, rt_event_callback callback, void *userdata);

// Makes a hub that does not run yet. `config` may be NULL: then everything has its default. On
// success `*out` is a hub to be freed with `rt_hub_free`.
//
// Requires: `config` is NULL or from `rt_config_new`; `out` is NULL or a place for a pointer.
enum rt_status rt_hub_new(const struct rt_config *config, struct rt_hub **out);

// Lets the hub accept clients on a TCP socket that listens already, instead of `listen`. To be
// called before `rt_hub_start`. On success the descriptor is the hub's, which closes it.
//
// Requires: `hub` is NULL or from `rt_hub_new`; nobody else uses `descriptor` afterwards.
enum rt_status rt_hub_listen_on(struct rt_hub *hub, int descriptor);

// Binds, starts the hub's threads and returns once clients can connect. The threads have all
// signals blocked. A second start is `RT_ERROR_STATE`, also after `rt_hub_stop`. A start that
// fails may be tried again, with `rt_hub_listen_on` anew if that was used.
//
// Requires: `hub` is NULL or from `rt_hub_new`.
enum rt_status rt_hub_start(struct rt_hub *hub);

// Stops: no new clients and publications; what was accepted goes out; clients are closed with a
// code that tells them to come back, and have until the timeout to take it. Blocks so long at
// most. `RT_ERROR_TIMEOUT`: not all of it ended in time; it ends by itself. Stopping a hub twice,
// or one that was never started, is not an error.
//
// Requires: `hub` is NULL or from `rt_hub_new`.
enum rt_status rt_hub_stop(struct rt_hub *hub, uint64_t timeout_ms);

// Frees a hub; one that runs is stopped first, for half a second at most. NULL is accepted. In a
// forked child it gives the memory back and leaves the parent's hub alone.
//
// Requires: `hub` came from `rt_hub_new`, has not been freed, and no thread uses it any more.
void rt_hub_free(struct rt_hub *hub);

// The port that clients connect to; 0 if the hub does not run.
//
// Requires: `hub` is NULL or from `rt_hub_new`.
uint16_t rt_hub_port(const struct rt_hub *hub);

// Hands a connected TCP socket to the hub, as if the hub had accepted it: the client's HTTP request
// is still to be read. On success the descriptor is the hub's, which closes it.
//
// Requires: `hub` is NULL or from `rt_hub_new`; nobody else uses `descriptor` afterwards.
enum rt_status rt_hub_accept(const struct rt_hub *hub, int descriptor);

// Publishes to a channel or to a user. Never waits for a client; waits for room in the hub's queue
// at most `publish_timeout_ms` of the configuration. On success the message has its place in the
// channel's order and is on its way to every subscriber; `receipt`, unless NULL, says where.
//
// Requires: `hub` is NULL or from `rt_hub_new`; `publication` is NULL or as `rt_publication` says; `receipt` is
// NULL or a place for one.
enum rt_status rt_hub_publish(const struct rt_hub *hub,
                              const struct rt_publication *publication,
                              struct rt_receipt *receipt);

// Publishes several messages, in their order. All are checked first: if one is wrong nothing is
// sent. `receipts`, unless NULL, has room for `count`. A failure after that (`RT_ERROR_QUEUE_FULL`,
// a broker's) leaves those before it sent; `*accepted`, unless NULL, says how many were, always.
//
// Requires: `publications` is NULL, if `count` is 0, or an array of `count`, each as `rt_publication` says and
// of the size of this library's; the outputs are NULL or places for what they are.
enum rt_status rt_hub_publish_batch(const struct rt_hub *hub,
                                    const struct rt_publication *publications,
                                    size_t count,
                                    struct rt_receipt *receipts,
                                    size_t *accepted);

// Who is subscribed to a channel, ordered by id. On success `*out` is a list to be freed with
// `rt_users_free`. Waits a second at most. `app` may be NULL: the default one.
//
// Requires: `hub` is NULL or from `rt_hub_new`; the texts are NULL or end with NUL; `out` is NULL or a place for
// a pointer.
enum rt_status rt_hub_channel_users(const struct rt_hub *hub,
                                    const char *app,
                                    const char *channel,
                                    struct rt_users **out);

// The channels that have subscribers, ordered by name. On success `*out` is a list to be freed with
// `rt_channels_free`. `app` may be NULL: the default one.
//
// Requires: As for `rt_hub_channel_users`.
enum rt_status rt_hub_channels(const struct rt_hub *hub, const char *app, struct rt_channels **out);

// Says whose a connection is. `user` may be NULL: nobody's. `info`, unless NULL, is JSON text that
// others may see. `*found`, unless NULL, says whether there is such a connection.
//
// Requires: `hub` is NULL or from `rt_hub_new`; the texts are NULL or end with NUL; `found` is NULL or a place
// for a bool.
enum rt_status rt_hub_set_user(const struct rt_hub *hub,
                               const char *app,
                               const char *socket_id,
                               const char *user,
                               const char *info,
                               bool *found);

// Closes all connections of a user with a code of the application's choice (1000 or 3000–4999; 4000–4099
// tell clients not to come back). `reason` may be NULL. `*closed`, unless NULL, says how many.
//
// Requires: `hub` is NULL or from `rt_hub_new`; the texts are NULL or end with NUL; `closed` is NULL or a place
// for a number.
enum rt_status rt_hub_disconnect_user(const struct rt_hub *hub,
                                      const char *app,
                                      const char *user,
                                      uint16_t code,
                                      const char *reason,
                                      size_t *closed);

// Reads the counters. Fills as much of `*stats` as its `size` says.
//
// Requires: `hub` is NULL or from `rt_hub_new`; `stats` is NULL or points to `size` bytes, `size` being set.
enum rt_status rt_hub_stats(const struct rt_hub *hub, struct rt_stats *stats);

// The library's version, as `MAJOR.MINOR.PATCH`. Belongs to the library.
const char *rt_version(void);

// The number of the binary interface, which is `RT_ABI_VERSION` of the header that a program should
// have been compiled with. It changes only when such programs have to be compiled anew.
uint32_t rt_abi_version(void);

// How many users the list has, whatever has been read of it. 0 for NULL.
//
// Requires: `users` is NULL or a list that has not been freed.
size_t rt_users_count(const struct rt_users *users);

// Reads the next user. False at the end, and for NULL; `*user` is then unchanged.
//
// Requires: `users` is NULL or a list that has not been freed; `user` is NULL or a place for one.
bool rt_users_next(struct rt_users *users, struct rt_user *user);

// Frees a list. NULL is accepted.
//
// Requires: `users` is NULL or a list that has not been freed.
void rt_users_free(struct rt_users *users);

// How many channels the list has, whatever has been read of it. 0 for NULL.
//
// Requires: `channels` is NULL or a list that has not been freed.
size_t rt_channels_count(const struct rt_channels *channels);

// Reads the next channel. False at the end, and for NULL; `*channel` is then unchanged.
//
// Requires: `channels` is NULL or a list that has not been freed; `channel` is NULL or a place for one.
bool rt_channels_next(struct rt_channels *channels, struct rt_channel *channel);

// Frees a list. NULL is accepted.
//
// Requires: `channels` is NULL or a list that has not been freed.
void rt_channels_free(struct rt_channels *channels);

// Sends log records of this level and of more important ones to a function, for all hubs of the
// process. A NULL `callback` sends them nowhere, as before the first call; when that returns, no
// thread is in the former callback any more. `RT_ERROR_STATE`: another library of this process has
// taken the records.
//
// Requires: `callback` and `userdata` may be used from every thread, until they are replaced.
enum rt_status rt_log_to(rt_log_callback callback, uint32_t level, void *userdata);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* REALTIME_H */
