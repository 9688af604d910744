<?php

return [
    'default' => 'sqlite',
    'connections' => ['sqlite' => ['driver' => 'sqlite', 'database' => base_path('database.sqlite'), 'prefix' => '']],
    'migrations' => 'migrations',
];
