<?php

return [
    'default' => env('BROADCAST_CONNECTION', 'realtime'),
    'connections' => [
        // Without a queue: each event goes out right after the commit that it tells of.
        'realtime' => ['driver' => 'realtime', 'queue' => false],
        // How it was before: the same hub over HTTP, with Pusher's SDK.
        'pusher' => [
            'driver' => 'pusher',
            'key' => env('REALTIME_APP_KEY'),
            'secret' => env('REALTIME_APP_SECRET'),
            'app_id' => env('REALTIME_APP_ID'),
            'options' => ['host' => '127.0.0.1', 'port' => 8080, 'scheme' => 'http', 'useTLS' => false],
        ],
    ],
];
