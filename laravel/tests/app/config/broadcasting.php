<?php

return [
    'default' => env('BROADCAST_CONNECTION', 'realtime'),
    'connections' => [
        'log' => ['driver' => 'log'],
        'null' => ['driver' => 'null'],
    ],
];
