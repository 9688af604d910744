<?php

return [

    /*
    |--------------------------------------------------------------------------
    | The app
    |--------------------------------------------------------------------------
    |
    | What the hub and this application both know. The secret signs who may
    | join a channel. An application that had Reverb or Pusher keeps theirs.
    |
    */

    'app' => [
        'id' => env('REALTIME_APP_ID', env('REVERB_APP_ID', env('PUSHER_APP_ID'))),
        'key' => env('REALTIME_APP_KEY', env('REVERB_APP_KEY', env('PUSHER_APP_KEY'))),
        'secret' => env('REALTIME_APP_SECRET', env('REVERB_APP_SECRET', env('PUSHER_APP_SECRET'))),
    ],

    /*
    | 32 random bytes in base64, for EncryptedPrivateChannel. The hub never has
    | them. `php -r 'echo base64_encode(random_bytes(32));'`
    */

    'encryption_master_key' => env('REALTIME_ENCRYPTION_MASTER_KEY'),

    /*
    |--------------------------------------------------------------------------
    | How events leave this application
    |--------------------------------------------------------------------------
    |
    | queue: true sends ShouldBroadcast events through a queue worker, as
    |   Laravel does. false sends them from the process that fired them: right
    |   after the database commit, and otherwise when the response has been
    |   sent or the job has ended. What was rolled back or failed is not
    |   announced.
    |
    | transport: "auto" is the extension where it is loaded, else the HTTP API
    |   if `url` is set, else the hub's bus socket. "bus" and "http" force one.
    |
    | socket: the hub's bus, a path, tcp://host:port or tls://host:port, or a
    |   path and one of these with a comma between, for PHP without the
    |   extension; null looks in the usual places. The extension has
    |   realtime.socket in php.ini.
    |
    | secret: what both sides of the bus over TCP know, 32 bytes or more.
    |
    | socket_ca: the PEM file of whom to trust over tls://; null: whom the
    |   system trusts.
    |
    | url: where the HTTP API is, http://127.0.0.1:8080 for example.
    |
    | The extension on a host without a hub publishes to the Redis that the hubs
    | share: realtime.broker.url in php.ini or REALTIME_BROKER__URL in the
    | environment of PHP (not in .env, which it does not read).
    |
    */

    'queue' => (bool) env('REALTIME_QUEUE', true),

    'transport' => env('REALTIME_TRANSPORT', 'auto'),

    'socket' => env('REALTIME_SOCKET'),

    'secret' => env('REALTIME_SECRET'),

    'socket_ca' => env('REALTIME_SOCKET_CA'),

    'url' => env('REALTIME_API_URL'),

    /*
    | Whether a private channel's signature also names the user who joined.
    | broadcastToUser(), getChannelUsers() and disconnectUser() then know users
    | whose Echo never signed in.
    */

    'sign_user' => true,

    /*
    | true records instead of sending, null does so while unit tests run, false
    | never. See Realtime\Laravel\Facades\Realtime::fake().
    */

    'fake' => null,

    /*
    |--------------------------------------------------------------------------
    | The hub of realtime:serve
    |--------------------------------------------------------------------------
    |
    | Settings of the hub by their own names; `realtime config` lists them all.
    | The app above, and APP_URL as an allowed origin, are added where they are
    | not set here. What is null is left to the hub.
    |
    */

    'server' => [
        'listen' => env('REALTIME_LISTEN', '127.0.0.1:8080'),
        'socket' => env('REALTIME_SOCKET'),
        'secret' => env('REALTIME_SECRET'),
        'socket_cert' => env('REALTIME_SOCKET_CERT'),
        'socket_key' => env('REALTIME_SOCKET_KEY'),
        // Several hubs are one over a Redis: redis://:password@host:6379/0.
        'broker' => ['url' => env('REALTIME_BROKER__URL'), 'prefix' => env('REALTIME_BROKER__PREFIX')],
        'allowed_origins' => null,
        'auth' => ['mode' => 'none'],
        // What realtime:listen is to dispatch, of: connect, disconnect, subscribe,
        // unsubscribe, joined, left, occupied, vacated, message.
        // 'hooks' => ['events' => ['joined', 'left']],
    ],

    /*
    | How often realtime:serve and realtime:listen look whether realtime:restart
    | was called.
    */

    'restart_check_seconds' => 5,

];
